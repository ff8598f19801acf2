"""`plait new`: what is refused, and that what is written works, for every hook alone, by default and all together."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plait.errors import BadInput
from plait.hooks import HookSpecs, hook_names
from plait.planning import discovery
from plait.planning.discovery import pretend
from plait.plugin import Plugin
from plait_authoring.scaffold import DEFAULT_HOOKS, check_name, choose_hooks, families, new_plugin
from plait_authoring.scaffold.contents import render
from plait_authoring.scaffold.names import LONGEST, Names

LONG = "a-" + "b" * (LONGEST - 2)
PACKAGES: dict[str, tuple[str, ...]] = {
    **{f"only-{hook.replace('_', '-')}": (hook,) for hook in hook_names()},
    "by_default": (),
    "every": ("all",),
}
"""Name of a plugin -> the hooks that it is made with."""


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


# ---- names, hooks and places -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Attic", "'attic'"),
        ("", "lower-case letter"),
        ("2nd", "lower-case letter"),
        ("a b", "'a-b'"),
        ("a/b", "'a-b'"),
        ("..", "lower-case letter"),
        ("attic\n", "'attic'"),
        ("naïve", "lower-case letter"),
        ("attic-", "ends in a letter"),
        ("a" * (LONGEST + 1), f"at most {LONGEST}"),
        ("class", "'class-method'"),
        ("run", "reserved"),
        ("optimizer", "reserved"),
        ("core", "reserved"),
        ("task", "plait-core"),
    ],
)
def test_bad_and_taken_names_are_refused_and_leave_nothing(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        new_plugin(name, path=tmp_path / "place")
    assert not list(tmp_path.iterdir())


def test_the_name_of_an_installed_plugin_is_refused_with_its_distribution(tmp_path: Path) -> None:
    class Taken(Plugin):
        name = "taken-one"
        contract = 1

    with pretend(Taken, distribution="somebody"):
        with pytest.raises(BadInput, match=r"somebody-taken-one 1\.0"):
            new_plugin("taken-one", path=tmp_path)
        with pytest.raises(BadInput, match=r"plait_taken_one.*'taken-one'"):  # another name, the same package
            new_plugin("taken_one", path=tmp_path)
    assert new_plugin("taken-one", path=tmp_path).is_dir()


def test_a_package_or_distribution_that_is_there_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plait_loft").mkdir()
    (tmp_path / "plait_loft" / "__init__.py").touch()
    (tmp_path / "plait_cellar-3.1.dist-info").mkdir()
    (tmp_path / "plait_cellar-3.1.dist-info" / "METADATA").write_text("Name: plait-cellar\nVersion: 3.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=r"plait_loft can be imported already, from .*plait_loft"):
        check_name("loft")
    with pytest.raises(BadInput, match=r"plait-cellar is installed already \(3\.1\)"):
        check_name("cellar")


def test_existing_folders_are_never_touched(tmp_path: Path) -> None:
    attic = new_plugin("attic", path=tmp_path)
    (attic / "README.md").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        new_plugin("attic", path=tmp_path)
    assert (attic / "README.md").read_text() == "mine"
    (tmp_path / "plait-loft").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="exists already"):
        new_plugin("loft", path=tmp_path)


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file is a file"):
        new_plugin("attic", path=tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be written"):
        new_plugin("attic", path=tmp_path / "file" / "below")
    write, written = Path.write_text, []

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        written.append(self)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BadInput, match="No space left"):
        new_plugin("attic", path=tmp_path / "new" / "deeper")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_hooks_and_families() -> None:
    assert choose_hooks() == DEFAULT_HOOKS
    assert choose_hooks(["all"]) == tuple(hook_names())
    assert choose_hooks(["optimizer_step", "loss", "loss_terms"]) == ("loss_terms", "optimizer_step")
    assert choose_hooks(["Optimizer Step", "mask-update"]) == ("optimizer_step", "update_masks")
    with pytest.raises(BadInput, match=r"'evaluat'.*Did you mean 'evaluate'\? Hooks: data_sources, .*Families: data "):
        choose_hooks(["evaluat"])
    with pytest.raises(BadInput, match="empty name"):
        choose_hooks(["loss", ""])


def test_every_family_of_the_contract_is_one_to_choose() -> None:
    of_contract = {hook: vars(HookSpecs)[hook].plait_family for hook in hook_names()}
    for family in of_contract.values():
        (hook,) = choose_hooks([family])
        assert of_contract[hook] == family
    assert families() == {
        "data": "data_sources",
        "model": "models",
        "loss": "loss_terms",
        "mask_update": "update_masks",
        "evaluation": "evaluate",
        "strategy": "fit",
        "afterwards": "export",
        "cli": "commands",
    }


# ---- what is written ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package, importable from one folder that also has what an installation adds: their entry points."""
    folder = tmp_path_factory.mktemp("site")
    for name, hooks in PACKAGES.items():
        project_folder = new_plugin(name, hooks, folder / "made")
        project = tomllib.loads((project_folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        ((key, value),) = project["entry-points"]["plait"].items()
        (info / "entry_points.txt").write_text(f"[plait]\n{key} = {value}\n")
        (package,) = (project_folder / "src").iterdir()
        (folder / package.name).symlink_to(package)
    return folder


ON_TWO_PACKAGES = ("light_import", "artifacts_made", "deterministic", "resumable", "bfloat16", "batch_of_one")
"""Checks with processes of their own, made of two packages; of the others in the slow test."""


def own_tests(names: Sequence[str], site: Path, *deselected: str) -> dict[str, list[tuple[str, str]]]:
    """Package -> (test, outcome) of its own tests, in one process."""
    report = site / f"report-{names[0]}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += ["-c", os.devnull, "--rootdir", str(site), f"--junitxml={report}"]
    command += [f"made/plait-{name}/tests" for name in names] + [f"--deselect={test}" for test in deselected]
    ended = subprocess.run(command, env=environment(site), cwd=site, capture_output=True, text=True, timeout=500)
    assert report.exists(), ended.stdout[-3000:] + ended.stderr[-3000:]
    outcomes: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for case in ElementTree.parse(report).iter("testcase"):
        where = f"{case.get('classname')}".split(".")
        name = next(part for part in where if part.startswith("plait-")).removeprefix("plait-")
        bad = [child for child in case if child.tag in ("failure", "error")]
        outcome = f"{bad[0].get('message')}\n{bad[0].text}" if bad else "skipped" if len(case) else "passed"
        outcomes[name].append((f"{where[where.index('tests') + 1]}::{case.get('name')}", outcome))
    return outcomes


@pytest.fixture(scope="module")
def results(site: Path) -> dict[str, list[tuple[str, str]]]:
    singles = [name for name, hooks in PACKAGES.items() if len(hooks) == 1 and hooks != ("all",)]
    suite = "tests/test_conformance.py::TestConformance::test_"
    deselected = [f"made/plait-{name}/{suite}{check}" for name in singles for check in ON_TWO_PACKAGES]
    return own_tests(list(PACKAGES), site, *deselected)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_new_package_passes_its_own_tests(name: str, results: dict[str, list[tuple[str, str]]]) -> None:
    bad = [f"{test}: {outcome}" for test, outcome in results[name] if outcome not in ("passed", "skipped")]
    assert not bad, "\n".join(bad)
    passed = [test.partition("::")[0] for test, outcome in results[name] if outcome == "passed"]
    hooks = choose_hooks(PACKAGES[name])
    assert passed.count("test_method") >= len(hooks)
    assert passed.count("test_plugin") >= len(hooks) + 1
    assert passed.count("test_conformance") >= 10


@pytest.mark.slow
def test_every_check_is_passed_by_every_package(site: Path) -> None:
    results = own_tests([*PACKAGES], site)
    for outcomes in results.values():
        assert {outcome for _, outcome in outcomes} <= {"passed", "skipped"}, outcomes
        assert ("test_conformance::test_resumable", "passed") in outcomes


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of packages with a random half of the hooks each, and of names as long and as short as can be."""
    folder, draw = tmp_path_factory.mktemp("samples"), random.Random(0)
    chosen: dict[str, tuple[str, ...]] = {LONG: tuple(hook_names()), "z": tuple(hook_names())}
    chosen |= {f"some-{n}": tuple(h for h in hook_names() if draw.random() < 0.5) or ("fit",) for n in range(60)}
    for name, hooks in chosen.items():
        for file, text in render(Names(name), hooks).items():
            place = folder / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_new_packages_are_clean(command: str, site: Path, samples: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", str(site / "made"), str(samples)],
        cwd=site,  # each by its own settings
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_template_is_filled(site: Path) -> None:
    files = [file for file in (site / "made").rglob("*") if file.is_file() and file.suffix != ".yml"]
    assert not [file for file in files if re.search(r"{{|{%", file.read_text(encoding="utf-8"))]


def test_looking_at_a_new_plugin_imports_no_torch(site: Path) -> None:
    modules = [f"{check_name(name).package}.plugin" for name in PACKAGES]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(site), timeout=60).returncode == 0


@pytest.mark.slow
def test_types_are_strict(site: Path, tmp_path: Path) -> None:
    folder = site / "made" / "plait-every"
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "mypy")],
        cwd=folder,
        env={**environment(site), "MYPYPATH": "src"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_the_claims_of_a_new_package_hold(name: str, site: Path, tmp_path: Path) -> None:
    code = f"from plait_experiments.verification import verify; print(verify({name!r}, cache={str(tmp_path)!r}).holds)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(site), capture_output=True, text=True, timeout=500
    )
    assert ended.stdout.strip().endswith("True"), ended.stdout + ended.stderr


def test_reserved_names_are_those_that_a_plugin_may_not_have() -> None:
    for name in sorted(discovery.RESERVED):
        with pytest.raises(BadInput, match="reserved"):
            check_name(name)
