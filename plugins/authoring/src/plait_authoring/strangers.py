"""Try plugin classes that are not packaged yet, as if they were installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait.planning import discovery as registry
from plait.declare.options import load_object
from plait.errors import BadInput
from plait.plugin import Plugin
from plait.declare.recipe import read_toml


@contextmanager
def installed(*plugins: type[Plugin], distribution: str = "stranger", alone: bool = False) -> Iterator[None]:
    """Make plugin classes installed inside the ``with`` block, through the registry's own checks.

    Args:
        plugins: subclasses of `plait.Plugin`.
        distribution: the distribution's name shown for them, with ``-<plugin>`` behind it.
        alone: hide the plugins that really are installed (the core's own stays).
    """
    before = registry.installed
    real = [i for i in registry.discover() if not alone or i.name == registry.BUILTIN]
    found = [registry.examine(registry.Installed(p.name, f"{distribution}-{p.name}", "1.0"), p) for p in plugins]
    everything = (*real, *found)
    registry.mark_duplicates(list(everything))
    registry.installed = lambda: everything  # type: ignore[assignment]
    try:
        yield
    finally:
        registry.installed = before


def classes_in(folder: Path) -> list[type[Plugin]]:
    """The plugin classes of a package that is not installed, by the entry points in its ``pyproject.toml``.

    Its sources (``src/``, else the folder) stay importable in this process.

    Raises:
        BadInput: no such file, no entry point of plait in it, or a plugin that cannot be imported.
    """
    project = read_toml(folder / "pyproject.toml").get("project", {})
    points: dict[str, str] = project.get("entry-points", {}).get(registry.GROUP, {})
    if not points:
        raise BadInput(f"{folder / 'pyproject.toml'} has no [project.entry-points.{registry.GROUP}].")
    source = folder / "src" if (folder / "src").is_dir() else folder
    if str(source.resolve()) not in sys.path:
        sys.path.append(str(source.resolve()))
    found: list[type[Plugin]] = []
    for path in points.values():
        plugin: Any = load_object(path, "plugin")
        found.append(plugin)
    return found
