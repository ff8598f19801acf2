"""The plugin classes of a package that is not installed; `plait.planning.discovery.pretend` makes them count."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from plait.declare.options import load_object
from plait.declare.recipe import read_toml
from plait.errors import BadInput
from plait.planning.discovery import GROUP
from plait.plugin import Plugin


def classes_in(folder: Path) -> list[type[Plugin]]:
    """The plugin classes of a package that is not installed, by the entry points in its ``pyproject.toml``.

    Its sources (``src/``, else the folder) stay importable in this process.

    Raises:
        BadInput: no such file, no entry point of plait in it, or a plugin that cannot be imported.
    """
    project = read_toml(folder / "pyproject.toml").get("project", {})
    points: dict[str, str] = project.get("entry-points", {}).get(GROUP, {})
    if not points:
        raise BadInput(f"{folder / 'pyproject.toml'} has no [project.entry-points.{GROUP}].")
    source = folder / "src" if (folder / "src").is_dir() else folder
    if str(source.resolve()) not in sys.path:
        sys.path.append(str(source.resolve()))
    classes: list[type[Plugin]] = []
    for path in points.values():
        plugin: Any = load_object(path, "plugin")
        classes.append(plugin)
    return classes
