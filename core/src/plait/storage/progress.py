"""Progress on stderr: a rich bar with rate, loss and time left, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Silent:
    """No progress."""

    def start(self, total: int, done: int, what: str) -> None:
        """Begin a bar of ``total`` steps at ``done``."""

    def advance(self, done: int, note: str) -> None:
        """Show that ``done`` steps are done."""

    def say(self, text: str) -> None:
        """A line above the bar."""

    def stop(self) -> None:
        """Take the bar away."""


class Bar(Silent):
    """A rich progress bar on stderr; updated at most ten times a second so that small steps stay fast."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next = 0.0

    def start(self, total: int, done: int, what: str) -> None:
        """Begin a bar of ``total`` steps at ``done``."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, note="", rate="")
        self._bar.start()

    def advance(self, done: int, note: str) -> None:
        """Show that ``done`` steps are done."""
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[self._task].speed
            self._bar.update(self._task, completed=done, note=note, rate=f"{speed:.1f} steps/s" if speed else "")

    def say(self, text: str) -> None:
        """A line above the bar."""
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(stderr=True)
        console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make(kind: Any) -> Silent:
    """``True`` -> a bar, ``False`` -> silence, anything else is used as it is."""
    if isinstance(kind, Silent):
        return kind
    return Bar() if kind else Silent()
