"""A run directory: its layout, its lock, and reading it back. No torch here."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plait.declare.recipe import Recipe
from plait.distributed.processes import Place
from plait.errors import BadCheckpoint, BadInput, RunLocked


class RunDirectory:
    """The files of one run under ``path``.

    ``recipe.toml`` (resolved), ``environment.json``, ``metrics.jsonl`` (one event a line), ``checkpoints/``,
    ``export/``, and what `artifacts` names.
    """

    shared = True
    """Whether every process of a run sees the same files; else each machine has a copy."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.toml"
        self.environment_file = self.path / "environment.json"
        self.events_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.artifacts_file = self.path / "artifacts.json"

    @property
    def shown(self) -> str:
        """How the user names it."""
        return str(self.path)

    def fetch(self) -> None:
        """Bring what is published to this machine; a local directory needs no such thing."""

    def peek(self) -> None:
        """Bring what says how the run stands, and nothing large."""

    def publish(self) -> None:
        """Publish what is here; a local directory needs no such thing."""

    def must_be_free(self) -> None:
        """Refuse a directory that holds a run.

        Raises:
            BadInput: it does.
        """
        if self.recipe_file.exists():
            raise BadInput(f"{self.path} already holds a run: choose another --out, or `plait resume {self.path}`.")

    def launched(self, place: Place) -> None:
        """Remember the launch whose processes make this run, so that it goes on when the launcher starts them again."""
        if place.launch:
            (self.path / ".launch").write_text(place.launch, encoding="utf-8")

    def launched_by(self, place: Place) -> bool:
        """Whether the launcher of this process has started the run here before."""
        if place.restart:  # torchrun has no name for a launch unless it is given one
            return True
        try:
            return place.launch != "" and (self.path / ".launch").read_text(encoding="utf-8") == place.launch
        except OSError:
            return False

    def create(self) -> None:
        """Make the directory for a new run.

        Raises:
            BadInput: it already holds a run, or cannot be made.
        """
        self.must_be_free()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be made: {error}. Choose another --out.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock; the system frees it when the process ends, however it ends.

        Raises:
            RunLocked: another process holds it.
        """
        from filelock import FileLock, Timeout  # only runs that are written need it

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunLocked(
                f"{self.path} is being written by another process; wait for it or choose another --out."
            ) from error
        except OSError as error:
            raise BadInput(f"{self.path} is not writable: {error}.") from error
        try:
            yield
        finally:
            lock.release()

    def is_being_written(self) -> bool:
        """Whether another process of this machine is writing the run."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self.locked():
                return False
        except BadInput as error:  # not writable: nobody writes it either
            return isinstance(error, RunLocked)

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.load(self.recipe_file)

    def environment(self) -> dict[str, Any]:
        """The recorded environment, empty when missing."""
        return self._table(self.environment_file)

    def events(self) -> list[dict[str, Any]]:
        """All events; a last line cut short by a kill is left out."""
        events = []
        if self.events_file.exists():
            for line in self.events_file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        events.append(event)
        return events

    def result(self) -> dict[str, Any] | None:
        """The final result event, or None when the run did not finish."""
        return next((e for e in reversed(self.events()) if e.get("event") == "result"), None)

    def artifacts(self) -> dict[str, Path]:
        """What installed plugins made of the run when it had ended: name -> file."""
        return {name: self.path / file for name, file in self._table(self.artifacts_file).items()}

    def _table(self, path: Path) -> dict[str, Any]:
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return table

    def saved_checkpoints(self) -> list[Path]:
        """Checkpoints from oldest to newest."""
        return sorted(self.checkpoints.glob("step-*.safetensors"))

    def tidy(self, going_on_from: Path | None) -> None:
        """Before a resume: drop what a kill left half written, and set aside checkpoints of an abandoned future."""
        for half in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            half.unlink(missing_ok=True)
        for folder in self.path.glob(".rehearsal-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.saved_checkpoints():
            if going_on_from is not None and path.name > going_on_from.name:
                path.rename(path.with_name(f"superseded-{path.name}"))

    def checkpoint(self, name: str | None = None) -> Path | None:
        """The named checkpoint, or the newest, or None when there is none.

        Raises:
            BadCheckpoint: no checkpoint of that name.
        """
        saved = self.saved_checkpoints()
        if name is None:
            return saved[-1] if saved else None
        for path in saved:
            if name in (path.name, path.stem):
                return path
        names = ", ".join(path.stem for path in saved) or "none"
        raise BadCheckpoint(f"{self.path} has no checkpoint {name!r}; it has {names}.")


def default_path(recipe: Recipe, root: Path | str = "runs") -> Path:
    """``runs/<time>-<plugins>-s<seed>``, made unique by a counter."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{'+'.join(recipe.plugins) or 'plain'}-s{recipe.seed}"
    path, count = Path(root) / stem, 1
    while path.exists():
        count += 1
        path = Path(root) / f"{stem}-{count}"
    return path
