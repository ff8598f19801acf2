"""What several kinds of parts need: where things lie, Markdown tables, and a registry with nothing foreign in it."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from plait.planning import discovery

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent


def plugin_folders() -> dict[str, Path]:
    """Plugin name -> its folder, for every plugin of this repository."""
    return {name: folder for folder, points in _entry_points() for name in points}


def _entry_points() -> list[tuple[Path, dict[str, str]]]:
    folders = []
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        folders.append((file.parent, dict(project.get("entry-points", {}).get("plait", {}))))
    return folders


PLUGINS: dict[str, str] = {name: path for _, points in _entry_points() for name, path in points.items()}
"""This repository's plugins: what else is installed must not change the pages."""


@contextmanager
def only_ours(stand_ins: Collection[str] = ()) -> Iterator[None]:
    """The registry with this repository's plugins, and the named stand-ins, only."""
    items = [item for item in discovery.discover() if item.name == discovery.BUILTIN]
    for name, path in PLUGINS.items():
        module, _, attribute = path.partition(":")
        plugin = getattr(import_module(module), attribute)
        items.append(discovery.examine(discovery.Installed(name, f"plait-{name}", "0.1.0"), plugin))
    items += [_stand_in(name, thing) for name, thing in _strangers().items() if name in stand_ins]
    discovery.mark_duplicates(items)
    with installed(items):
        yield


@contextmanager
def installed(items: Sequence[discovery.Installed]) -> Iterator[None]:
    """These and no others count as installed, under the names that they have here."""
    before = discovery.installed
    discovery.installed = lambda: tuple(items)  # type: ignore[assignment]
    try:
        yield
    finally:
        discovery.installed = before


def _strangers() -> dict[str, Any]:
    """The stand-ins by name: plugin classes, and import paths of plugins that cannot be imported."""
    sys.path.insert(0, str(DOCS))
    try:
        module = importlib.import_module("stand_ins")
    finally:
        sys.path.remove(str(DOCS))
    return {plugin.name: plugin for plugin in (getattr(module, name) for name in module.__all__)} | module.MISSING


def _stand_in(name: str, thing: Any) -> discovery.Installed:
    item = discovery.Installed(name, f"stand-in-{name}", "0.1.0")
    if isinstance(thing, str):
        missing = discovery._load(EntryPoint(name, thing, discovery.GROUP))
        item.status, item.reason = missing.status, missing.reason
        return item
    return discovery.examine(item, thing)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; text in cells cannot break it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)
