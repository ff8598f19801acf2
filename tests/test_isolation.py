"""Packages without their neighbours: wheels in environments where nothing else of plait exists.

A small plait (core, command line, one method) and the meta-package's set are used as programs, as a user does. Every
package is also installed with the core, the command line, the kit and what it declares, and there the tests of it that
are marked ``smoke`` are run, with those of isolated_package.py.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = {"core": ROOT / "core", "cli": ROOT / "cli"}
FOLDERS |= {file.parent.name: file.parent for file in sorted(ROOT.glob("plugins/*/pyproject.toml"))}
PROJECTS: dict[str, dict[str, Any]] = {
    name: tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, folder in {**FOLDERS, "": ROOT}.items()
}
PLUGINS = [name for name in FOLDERS if name not in ("core", "cli")]
TOOL_COMMANDS = {
    "verify chase": "plait-experiments",
    "sweep --over seed=0,1": "plait-experiments",
    "compare run": "plait-experiments",
    "report run": "plait-report",
    "new attic": "plait-authoring",
    "doctor": "plait-doctor",
}

Start = Callable[..., subprocess.CompletedProcess[str]]
Environment = Callable[[Iterable[str]], tuple[Path, Start]]


def declared(name: str, *extras: str) -> list[Requirement]:
    """What a package requires, and what it requires with extras."""
    project = PROJECTS[name]
    optional = project.get("optional-dependencies", {})
    texts = [*project.get("dependencies", []), *(text for extra in extras for text in optional.get(extra, []))]
    return [Requirement(text) for text in texts]


def with_what_they_need(names: Iterable[str], *extras: str) -> set[str]:
    """Packages, and those of plait that they declare, with extras of the first ones."""
    folders = {project["name"]: name for name, project in PROJECTS.items()}
    needed: set[str] = set()
    waiting = [(name, extras) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        needed.add(name)
        required = {folders[r.name] for r in declared(name, *wanted) if r.name in folders}
        waiting += [(other, ()) for other in required - needed]
    return needed


def plugins_of(names: Iterable[str]) -> list[str]:
    """The plugins that packages register."""
    return sorted(plugin for name in names for plugin in PROJECTS[name].get("entry-points", {}).get("plait", {}))


# ---- the wheels --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, *map(str, FOLDERS.values()), str(ROOT)], check=True, timeout=300)
    return folder


def test_every_distribution_has_licence_typing_and_version(wheels: Path) -> None:
    built = sorted(wheels.glob("*.whl"))
    assert len(built) == len(PROJECTS)
    for wheel in built:
        names = zipfile.ZipFile(wheel).namelist()
        assert any("LICENSE" in name for name in names), wheel.name
        if not wheel.name.startswith("plait-"):
            assert any(name.endswith("py.typed") for name in names), wheel.name


def imports(file: Path) -> Iterator[str]:
    """Top-level names of what a file imports, but for what it can do without (``except ImportError``)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(handler) for handler in node.handlers):
            guarded.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in guarded:
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in guarded and not node.level and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("name", list(FOLDERS))
def test_every_import_is_declared(name: str) -> None:
    """By the package or by one of plait's that it requires: all other libraries are linked, whoever asked for them."""
    installed = importlib.metadata.packages_distributions()
    extras = list(PROJECTS[name].get("optional-dependencies", {}))
    places = {"src": [extra for extra in extras if extra != "test"]}
    if name in PLUGINS:  # the core and the command line are tested where everything is
        places["tests"] = extras
    undeclared: dict[str, str] = {}
    for place, chosen in places.items():
        files = sorted((FOLDERS[name] / place).rglob("*.py"))
        required = [*declared(name, *chosen), *(r for n in with_what_they_need([name], *chosen) for r in declared(n))]
        known = {canonicalize_name(requirement.name) for requirement in required}
        own = {*sys.stdlib_module_names, *(file.stem for file in files), f"plait_{name}"}
        own.add("plait" if name == "core" else "")
        for file in files:
            for module in {*imports(file)} - own:
                ours = ["plait-core" if module == "plait" else module] if module.startswith("plait") else []
                distributions = installed.get(module, ours)  # nothing: it is not here, so all of this works without
                if distributions and not {*map(canonicalize_name, distributions)} & known:
                    undeclared[f"{module} in {place}"] = file.name
    assert not undeclared, f"{FOLDERS[name]}/pyproject.toml"


# ---- the environments --------------------------------------------------------------------------------------------
def other_libraries(folder: Path) -> Path:
    """Links to everything installed here but plait's own packages: torch is too large to install once more.

    The folder is called ``site-packages``: elsewhere hypothesis would read all of it for constants.
    """
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = entry.name.lower().lstrip("_")
        if not name.startswith(("plait", "editable")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Make an environment of packages: its folder, and a function that starts a command there."""
    libraries = other_libraries(tmp_path_factory.mktemp("libraries") / "site-packages")

    def make(names: Iterable[str]) -> tuple[Path, Start]:
        folder = tmp_path_factory.mktemp("alone")
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        python = folder / "venv/bin/python"
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        (packages / "other.pth").write_text(f"{libraries}\n")
        distributions = [PROJECTS[name]["name"].replace("-", "_") for name in names]
        chosen = [str(next(wheels.glob(f"{distribution}-*.whl"))) for distribution in distributions]
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*install, "--no-index", *chosen], check=True, timeout=300)

        def start(*command: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
            kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            own = {"PATH": f"{python.parent}:{kept['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "160", **variables}
            return subprocess.run(command, cwd=folder, env=kept | own, capture_output=True, text=True, timeout=timeout)

        return folder, start

    return make


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- a small plait -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small(environment: Environment) -> tuple[Path, Start]:
    """The core, the command line and chase."""
    return environment(("core", "cli", "chase"))


def test_a_small_plait_plans_runs_resumes_and_exports(small: tuple[Path, Start]) -> None:
    folder, start = small
    listed = document(start("plait", "plugins", "--json"))
    assert {item["name"]: item["status"] for item in listed} == {"task": "ok", "chase": "ok"}
    assert document(start("plait", "plan", "-p", "chase", "--json"))["ok"]
    settings = ("--set", "checkpoint.every_steps=4", "--set", "chase.timing_repeats=0")
    ran = start("plait", "run", "-p", "chase", "--steps", "8", *settings, "--out", "run")
    assert ran.returncode == 0, ran.stderr
    assert "task/accuracy" in ran.stdout and "chase/nonzeros" in ran.stdout
    finished = document(start("plait", "runs", ".", "--json"))
    assert [item["status"] for item in finished] == ["finished"]
    resumed = start("plait", "resume", "run", "--checkpoint", "step-000000004", "--json")
    assert document(resumed)["metrics"].items() >= finished[0]["metrics"].items()
    assert (folder / "run/export/model.safetensors").is_file()
    # nobody makes a report here, and nobody misses it
    assert sorted(path.name for path in (folder / "run").iterdir() if path.suffix in (".html", ".json", ".toml")) == [
        "environment.json",
        "recipe.toml",
    ]
    for done in (ran, resumed):
        assert not [word for word in ("report", "warn", "error", "pip install") if word in done.stderr.lower()]
    assert "report" not in ran.stdout


@pytest.mark.parametrize("command", list(TOOL_COMMANDS))
def test_a_small_plait_says_how_to_get_a_tool(small: tuple[Path, Start], command: str) -> None:
    _, start = small
    done = start("plait", *command.split())
    name, package = command.split()[0], TOOL_COMMANDS[command]
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [f"error: `plait {name}` comes with {package}: pip install {package}."]


def test_a_small_plait_says_that_it_opens_no_store(small: tuple[Path, Start]) -> None:
    folder, start = small
    done = start("plait", "run", "--steps", "1", "--out", "s3://bucket/run")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: s3://bucket/run: no installed package opens runs on object stores")
    assert not (folder / "s3:").exists()


# ---- the whole of plait ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(environment: Environment) -> tuple[Path, Start]:
    """What ``pip install plait`` brings."""
    return environment(sorted(with_what_they_need([""])))


def test_the_meta_package_brings_the_tools_and_no_method() -> None:
    brought = {"", "core", "cli", "stores", "authoring", "doctor", "experiments", "report"}
    assert with_what_they_need([""]) == brought
    (everything,) = (requirement.extras for requirement in declared("", "all") if requirement.name == "plait")
    assert not everything & brought
    assert with_what_they_need(everything) | brought == {*PROJECTS}


def test_the_whole_of_plait_has_every_command_and_a_report(whole: tuple[Path, Start]) -> None:
    folder, start = whole
    listed = document(start("plait", "plugins", "--json"))
    assert {item["name"]: item["status"] for item in listed} == dict.fromkeys(
        ["task", *plugins_of(with_what_they_need([""]))], "ok"
    )
    shown = start("plait", "--help").stdout
    tools = {command.split()[0] for command in TOOL_COMMANDS}
    assert all(f" {name} " in shown for name in {"plugins", "info", "plan", "run", "resume", "runs"} | tools)
    done = start("plait", "run", "--steps", "4", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert (folder / "run/report.html").is_file() and "report.html" in done.stdout


@pytest.mark.parametrize("command", ["verify", "sweep", "compare", "report", "new", "doctor"])
def test_the_whole_of_plait_describes_each_tool(whole: tuple[Path, Start], command: str) -> None:
    _, start = whole
    done = start("plait", command, "--help")
    assert done.returncode == 0 and f"plait {command}" in done.stdout, done.stderr


# ---- every package alone -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PLUGINS)
def test_a_package_passes_a_smoke_set_of_its_tests(environment: Environment, name: str) -> None:
    tests = FOLDERS[name] / "tests"
    files = sorted(tests.glob("test_*.py"))
    assert any("pytest.mark.smoke" in file.read_text(encoding="utf-8") for file in files), "mark some tests as smoke"
    names = sorted(with_what_they_need(["core", "cli", "authoring"]) | with_what_they_need([name], "test"))
    _, start = environment(names)
    together = {
        "distributions": sorted(PROJECTS[n]["name"] for n in names),
        "plugins": plugins_of(names),
        "own": plugins_of([name]),
    }
    arguments = ("-q", "-x", "-m", "smoke", "-p", "no:cacheprovider", "--no-header", "--durations=8")
    command = ("python", "-m", "pytest", *arguments, str(ROOT / "tests/isolated_package.py"), str(tests))
    done = start(*command, PLAIT_ISOLATED=json.dumps(together), timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
