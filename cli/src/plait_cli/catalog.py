"""Looking at run directories, here or on an object store: finding them, and in what state each is. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.declare.recipe import Recipe
from plait.errors import BadInput, PlaitError
from plait.storage.directory import RunDirectory
from plait.storage.places import stores, url_of

DEPTH = 4
"""How deep below a folder runs are looked for (``runs/<experiment>/seed-3``)."""


@dataclass
class Seen:
    """A run as found on disk.

    Attributes:
        path: its directory, or the local copy of one on an object store.
        shown: how the user names it: the path, or the URL.
        status: ``finished``, ``running``, ``interrupted`` (also when killed), ``failed`` or ``damaged``.
        reason: why it failed or cannot be read.
        recipe: the resolved recipe, None when damaged.
        details: ``<plugin>/<metric>`` -> {value, unit, better, note} of a finished run.
    """

    path: Path
    shown: str
    status: str
    reason: str = ""
    recipe: Recipe | None = None
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait runs --json``."""
        recipe = self.recipe
        return {
            "run": self.shown,
            "status": self.status,
            "reason": self.reason,
            "plugins": list(recipe.plugins) if recipe else [],
            "data": recipe.data.name if recipe else None,
            "model": recipe.model.name if recipe else None,
            "seed": recipe.seed if recipe else None,
            "step": self.step,
            "metrics": {name: detail.get("value") for name, detail in self.details.items()},
        }


def find(root: Path, depth: int = DEPTH) -> Iterator[RunDirectory]:
    """The run directories at or below ``root``, in the order of their names; never inside a run.

    Args:
        root: a path, or the URL of an object store.
        depth: how many folders below it.

    Raises:
        BadInput: the store does not answer, or its package is not installed.
    """
    url = url_of(root)
    if url is not None:
        yield from stores(url).published_below(url, depth)
        return
    directory = RunDirectory(root)
    try:
        if directory.recipe_file.is_file():
            yield directory
        elif depth > 0 and root.is_dir():
            for child in sorted(root.iterdir()):
                if child.is_dir() and not child.name.startswith("."):
                    yield from find(child, depth - 1)
    except OSError:
        return


def look(directory: RunDirectory) -> Seen:
    """What state a run is in; a damaged one is described, never raised."""
    seen = Seen(directory.path, directory.shown, "interrupted")
    try:
        directory.peek()
        seen.recipe = directory.recipe()
        events = directory.events()
        seen.step = max((int(e["step"]) for e in events if isinstance(e.get("step"), int)), default=0)
        results = [e for e in events if e.get("event") == "result"]
        if results:
            seen.status, seen.details = "finished", dict(results[-1]["details"])
        elif events and events[-1].get("event") == "failed":
            seen.status, seen.reason = "failed", str(events[-1].get("error", ""))
    except (PlaitError, OSError, KeyError, TypeError, ValueError) as error:
        return Seen(directory.path, directory.shown, "damaged", " ".join(str(error).split()))
    if seen.status != "finished" and directory.is_being_written():
        seen.status = "running"
    elif seen.status == "interrupted" and not directory.shared:
        seen.reason = "or running on another machine"
    return seen


def finished(paths: Iterable[Path]) -> list[Seen]:
    """The finished runs at or below each path.

    Raises:
        BadInput: nothing there, or a run that has not finished.
    """
    finished_runs: dict[str, Seen] = {}
    for path in paths:
        runs = [look(directory) for directory in find(path)]
        if not runs:
            raise BadInput(f"{path} is not a run directory and holds none. `plait runs` lists what there is.")
        for seen in runs:
            if seen.status != "finished":
                why = f" ({seen.reason})" if seen.reason else ""
                fix = "" if seen.status in ("running", "damaged") else f" Finish it with: plait resume {seen.shown}"
                raise BadInput(f"{seen.shown} has no result: it is {seen.status}{why}.{fix}")
            finished_runs.setdefault(str(seen.path.resolve()), seen)
    return list(finished_runs.values())
