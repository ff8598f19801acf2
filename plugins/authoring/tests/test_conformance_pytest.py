"""The suite as pytest runs it: from a test file, from the command line, and on packages that are broken as packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import plait
from plait.planning import discovery
from plait_authoring.conformance import checks
from plait_authoring.subject import Subject
from plait_authoring.verdicts import Broken

PLUGIN = '''"""A plugin."""

from plait import Plugin, hookimpl


class Tidy(Plugin):
    """One figure."""

    name = "tidy"
    summary = "one figure"
    contract = 1

    @hookimpl
    def evaluate(self):
        """It."""
        from plait import Metric

        return {"one": Metric(1.0, "", "neither")}
'''
Package = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """``package(plugin=..., **files)``: install a distribution ``plait-tidy`` for this test."""
    stack = ExitStack()

    def make(plugin: str = PLUGIN, point: str = "tidy = plait_tidy.plugin:Tidy", **files: str) -> Path:
        site = tmp_path / "site"
        folder, info = site / "plait_tidy", site / "plait_tidy-1.0.dist-info"
        folder.mkdir(parents=True)
        info.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "plugin.py").write_text(plugin)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plait-tidy\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[plait]\n{point}\n")
        monkeypatch.syspath_prepend(site)
        stack.enter_context(discovery.pretend())  # looks anew
        return site

    with stack:
        yield make
    for name in [n for n in sys.modules if n.partition(".")[0] == "plait_tidy"]:
        del sys.modules[name]


def message(name: str, folder: Path) -> str:
    (check,) = (check for check in checks() if check.name == name)
    with pytest.raises(Broken) as caught:
        check(Subject("tidy", folder / "runs", {}, {}, None, None, 4))
    return str(caught.value)


def test_heavy_imports_are_named_with_the_line_that_makes_them(tmp_path: Path, package: Package) -> None:
    package("import plait_tidy.method\n" + PLUGIN, method__py="x = 1\nimport numpy\n")
    text = message("light_import", tmp_path)
    assert f"imports numpy, at {tmp_path / 'site/plait_tidy/method.py'}:2" in text
    assert "inside the hooks" in text


@pytest.mark.smoke
def test_a_claims_file_with_an_unknown_key(tmp_path: Path, package: Package) -> None:
    package(claims__toml="[scales.quick]\nseed = 3\n")
    assert "plait_tidy/claims.toml: unknown key 'scales.quick.seed'" in message("claims_file", tmp_path)


def test_an_entry_point_of_another_name(tmp_path: Path, package: Package) -> None:
    package(PLUGIN.replace('name = "tidy"', 'name = "tiny"'))
    assert "is called 'tidy' but the plugin calls itself 'tiny'" in message("discovered", tmp_path)


@pytest.mark.smoke
def test_a_package_that_does_not_import(tmp_path: Path, package: Package) -> None:
    package("import plait_nothing\n" + PLUGIN)
    assert "No module named 'plait_nothing'" in message("discovered", tmp_path)


def start(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


OTHER = "def test_not_asked_for():\n    assert False\n"


@pytest.mark.smoke
def test_the_class_form_and_the_option_beside_paths(tmp_path: Path, package: Package) -> None:
    site = package(PLUGIN.replace('summary = "one figure"', 'summary = ""'))
    form = 'from plait_authoring import plait_plugin_suite\n\nTestConformance = plait_plugin_suite("tidy")\n'
    (tmp_path / "test_tidy.py").write_text(form)
    (tmp_path / "test_other.py").write_text(OTHER)
    chosen = ["-k", "test_described or suggestions or discovered or not_asked"]
    ended = start(tmp_path, site, "--plait-plugin", "tidy", "-rs", *chosen, "test_tidy.py", "test_other.py")
    assert "3 failed, 2 passed, 2 skipped" in ended.stdout, ended.stdout
    assert "plugin 'tidy' fails the check 'described': The class has a one-line summary" in ended.stdout
    assert "\n`summary` is empty" in ended.stdout and '\nChange: write `summary = "' in ended.stdout
    assert "the plugin suggests nothing" in ended.stdout
    before_summary = ended.stdout.partition("short test summary")[0]
    assert "Traceback" not in ended.stdout and "suite.py:" not in before_summary


def test_the_option_alone_collects_no_files(tmp_path: Path, package: Package) -> None:
    (tmp_path / "test_other.py").write_text(OTHER)
    chosen = ["-k", "resumable or discovered or trains or not_asked"]
    ended = start(tmp_path, package(), "--plait-plugin", "tidy", "-v", *chosen)
    assert ended.returncode == 0, ended.stdout
    assert "tidy::TestConformance::test_resumable PASSED" in ended.stdout and "test_other" not in ended.stdout


def test_the_kit_is_light_until_it_is_used() -> None:
    code = (
        "import sys, plait_authoring; assert not {'pytest', 'plait', 'pydantic'} & set(sys.modules); "
        "import plait_authoring.plugin; assert not {'pytest', 'torch', 'numpy', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    code = (
        "import sys, plait_authoring.pytest_plugin; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); "
        "plait_authoring.plait_plugin_suite('tidy'); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_the_suite_refuses() -> None:
    from plait_authoring import plait_plugin_suite

    with pytest.raises(plait.BadInput, match=r"takes a plugin's name or a subclass of plait\.Plugin"):
        plait_plugin_suite(3)  # type: ignore[arg-type]
    with pytest.raises(plait.BadInput, match="at least 4"):
        plait_plugin_suite("tidy", steps=2)
    with pytest.raises(plait.BadInput, match=r"give steps=.* instead of train\.epochs"):
        plait_plugin_suite("tidy", settings={"train.epochs": 2})
