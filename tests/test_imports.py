"""The import contracts of the core, as `make test` lints them, and that each of them can be broken.

The contracts stand in pyproject.toml, under ``[tool.importlinter]``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"plait": ROOT / "core/src/plait", "plait_cli": ROOT / "cli/src/plait_cli"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
FLOORS, CIRCLES, DECLARATIONS, NAMES = (contract["name"] for contract in SETTINGS["contracts"])
ARROWS = {
    "upwards, in a function": ("training/masks.py", "def f():\n    import plait.planning.plan", FLOORS),
    "upwards, in a type hint": ("data/seeds.py", "if TYPE_CHECKING:\n    from plait.plugin import Plugin", FLOORS),
    "between rooms of one floor": ("data/seeds.py", "from plait.distributed import world", FLOORS),
    "a room that no floor has": ("attic.py", "", FLOORS),
    "a circle in a room": ("training/masks.py", "from plait.training import trainer", CIRCLES),
    "declarations that train": ("declare/words.py", "import plait.training.masks", DECLARATIONS),
    "a plugin, in a function": ("run.py", "def f():\n    from plait_chase import chase", NAMES),
    "the command line": ("planning/task.py", "import plait_cli.output", NAMES),
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the tree that is linted: the contracts, and the sources of both packages."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def broken(folder: Path) -> set[str]:
    """The names of the contracts that are broken; what lies in the folder is imported before what is installed."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    said = " ".join(done.stdout.split())
    names = {name for name in (FLOORS, CIRCLES, DECLARATIONS, NAMES) if f"{name} BROKEN" in said}
    assert f"{4 - len(names)} kept, {len(names)} broken" in said, done.stdout + done.stderr
    assert done.returncode == bool(names)
    return names


def test_the_core_keeps_its_floors(copied: Path) -> None:
    assert broken(copied) == set()


def test_every_package_beside_the_core_is_forbidden_to_it() -> None:
    others = {f"plait_{file.parent.name}" for file in ROOT.glob("plugins/*/pyproject.toml")} | {"plait_cli"}
    assert {*SETTINGS["contracts"][-1]["forbidden_modules"]} == others


@pytest.mark.parametrize("arrow", list(ARROWS))
def test_an_arrow_that_is_added_breaks_them(copied: Path, arrow: str) -> None:
    file, text, contract = ARROWS[arrow]
    path = copied / "plait" / file
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{text}\n")
    assert contract in broken(copied)
