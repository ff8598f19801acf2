"""Every package alone: wheels of core, cli and one plugin in an environment where no other plait package exists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = {file.parent.name: f"plugins/{file.parent.name}" for file in sorted(ROOT.glob("plugins/*/pyproject.toml"))}
Start = Callable[..., subprocess.CompletedProcess[str]]


def other_libraries(folder: Path) -> Path:
    """Links to everything installed here but plait's own packages: torch is too large to install once more."""
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = entry.name.lower().lstrip("_")
        if not name.startswith(("plait", "editable")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / part) for part in ("core", "cli", *PLUGINS.values(), ".")]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, *sources], check=True, timeout=300)
    return folder


def test_every_distribution_has_licence_typing_and_version(wheels: Path) -> None:
    import zipfile

    built = sorted(wheels.glob("*.whl"))
    assert len(built) == len(PLUGINS) + 3
    for wheel in built:
        names = zipfile.ZipFile(wheel).namelist()
        assert any("LICENSE" in name for name in names), wheel.name
        if not wheel.name.startswith("plait-"):
            assert any(name.endswith("py.typed") for name in names), wheel.name


@pytest.fixture(scope="module", params=list(PLUGINS))
def alone(request: pytest.FixtureRequest, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Start]:
    """(plugin, start): run a command in a fresh environment with core, cli and that plugin only."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv/bin/python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(packages, "other.pth").write_text(f"{other_libraries(folder / 'other')}\n")
    chosen = [next(iter(wheels.glob(f"plait_{part}-*.whl"))) for part in ("core", "cli", request.param)]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, chosen)], check=True, timeout=300)

    def start(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"PATH": f"{python.parent}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)

    return request.param, start


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_that_plugin_is_there(alone: tuple[str, Start]) -> None:
    name, start = alone
    found = document(start("plait", "plugins", "--json"))
    assert {item["name"]: item["status"] for item in found} == {"task": "ok", name: "ok"}
    assert document(start("plait", "info", name, "--json"))


def test_it_runs(alone: tuple[str, Start]) -> None:
    name, start = alone
    plugins = () if name == "zoo" else ("-p", name)
    done = document(start("plait", "run", *plugins, "--steps", "4", "--out", "tiny", "--json"))
    assert done["metrics"]["task/accuracy"] >= 0
    assert any(key.startswith(f"{name}/") for key in done["metrics"]) or name == "zoo"


def test_its_tests_pass(alone: tuple[str, Start]) -> None:
    name, start = alone
    done = start(
        "python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(ROOT / PLUGINS[name] / "tests"), timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_the_refusal_without_the_zoo_says_what_to_do(alone: tuple[str, Start]) -> None:
    name, start = alone
    if name == "zoo":
        pytest.skip("the zoo is there")
    done = start("plait", "run", "--data", "toned-digits", "--out", "none")
    assert done.returncode == 2 and "no data source named 'toned-digits'" in done.stderr
