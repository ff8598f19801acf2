"""Plugins of an older and a newer hook contract, as installed packages, through the command line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import plait

Call = Callable[..., object]
HERE = plait.CONTRACT_VERSION
PLUGIN = """
import plait
class {name}(plait.Plugin):
    name, summary, contract = "{name}", "a plugin", {contract}
    @plait.hookimpl
    def loss_terms(self, outputs): return {{"size": outputs.square().mean()}}
"""


@pytest.fixture(scope="module")
def next_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plait-core that speaks the next contract: this one's sources with another number."""
    folder = tmp_path_factory.mktemp("next-core")
    shutil.copytree(Path(plait.__file__).parent, folder / "plait", ignore=shutil.ignore_patterns("__pycache__"))
    for file, pattern, text in (
        ("hooks.py", r"^CONTRACT_VERSION = \d+", f"CONTRACT_VERSION = {HERE + 1}"),
        ("_version.py", r"^__version__ = .*", '__version__ = "9.0.0"'),
    ):
        path = folder / "plait" / file
        changed, count = re.subn(pattern, text, path.read_text(encoding="utf-8"), flags=re.M)
        assert count == 1
        path.write_text(changed, encoding="utf-8")
    return folder


def plugin(package: Call, name: str, contract: int, before: str = "") -> Path:
    text = before + PLUGIN.format(name=name, contract=contract)
    folder: Path = package(f"plait-{name}", {name: f"versions_{name}:{name}"}, **{f"versions_{name}": text})  # type: ignore[assignment]
    return folder


def refused_everywhere(program: Call, name: str, packages: tuple[Path, ...], *words: str) -> None:
    """Every command that is asked for the plugin names it, says why and what to do, and does nothing."""
    listed = {item["name"]: item for item in program("plugins", "--json", packages=packages).document}
    assert listed[name]["status"] == "incompatible" and listed["fits"]["status"] == "ok"
    text = program("plugins", packages=packages)
    assert text.code == 0 and f"{name} (plait-{name} 0.3) is incompatible: it was written for" in text.out
    answers = [program("plan", "-p", name, packages=packages), program("info", name, packages=packages)]
    answers.append(program("run", "-p", name, "--steps", "1", "--out", "never", packages=packages))
    for answer in answers:
        assert answer.code == 2 and "Traceback" not in answer.err
        assert answer.err.startswith(f"error: plugin '{name}' (plait-{name} 0.3) is incompatible: ")
        assert all(word in answer.err for word in words), answer.err
    examined = program("doctor", "plugins", "--json", packages=packages)
    if listed["doctor"]["status"] == "ok":
        checks = {check["name"]: check for check in examined.document["checks"]}
        assert examined.code == 1 and checks[name]["status"] == "problem" and checks["fits"]["status"] == "ok"
        assert all(word in checks[name]["found"] for word in words)
    else:  # the tool is a plugin of the older contract itself
        assert examined.code == 2 and "plugin 'doctor' (plait-doctor" in examined.err and "incompatible" in examined.err
    works = program("plan", "-p", "fits", packages=packages)
    assert works.code == 0 and "ok: they can work together." in works.out


def test_a_plugin_of_a_newer_contract(program: Call, package: Call, tmp_path: Path) -> None:
    packages = (plugin(package, "newer", HERE + 1), plugin(package, "fits", HERE))
    words = (
        f"it was written for hook contract {HERE + 1}, and this plait-core {plait.__version__} speaks contract {HERE}",
        f"pip install -U plait-core, for a release that speaks contract {HERE + 1}",
        f"an older release of plait-newer may be written for contract {HERE}",
    )
    refused_everywhere(program, "newer", packages, *words)
    assert not (tmp_path / "never").exists()


def test_a_plugin_of_an_older_contract(program: Call, package: Call, next_core: Path, tmp_path: Path) -> None:
    packages = (next_core, plugin(package, "older", HERE), plugin(package, "fits", HERE + 1))
    words = (
        f"it was written for hook contract {HERE}, and this plait-core 9.0.0 speaks contract {HERE + 1}",
        "pip install -U plait-older, for a newer release of plugin 'older'",
        "in an environment of its own: pip install plait-older 'plait-core>=0.1,<0.2'",
        "Its author finds what changed in docs/hook-contract.md#changes",
    )
    refused_everywhere(program, "older", packages, *words)
    assert not (tmp_path / "never").exists()


def test_a_newer_plugin_that_needs_what_is_not_there_yet(program: Call, package: Call) -> None:
    early = plugin(package, "early", HERE + 1, before="from plait import NotYetHere\n")
    answer = program("run", "-p", "early", packages=(early,))
    assert answer.code == 2 and "cannot import name 'NotYetHere'" in answer.err
    assert "pip install -U plait-core" in answer.err and "NotYetHere" in answer.err and "Traceback" not in answer.err


def test_the_page_has_the_anchor_and_the_present_version() -> None:
    from packaging.specifiers import SpecifierSet

    from plait.planning import discovery as contract

    page, _, anchor = contract.CHANGES.partition("#")
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    section = text.partition(f"### {anchor.capitalize()}\n")[2]
    numbers = [int(row) for row in re.findall(r"^\| (\d+) \|", section, re.M)]
    assert sorted(numbers) == sorted(contract.RELEASES) and max(numbers) == HERE
    assert SpecifierSet(contract.RELEASES[HERE].removeprefix("plait-core")).contains(plait.__version__)
