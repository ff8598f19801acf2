"""Progress on stderr: a rich bar with rate, loss and time left, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


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
    """A rich progress bar on stderr."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def start(self, total: int, done: int, what: str) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("[dim]{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task(what, total=total, completed=done, note="", rate="")
        self._bar.start()

    def advance(self, done: int, note: str) -> None:
        if self._bar is not None:
            (task,) = self._bar.tasks
            rate = f"{task.speed:.1f} steps/s" if task.speed else ""
            self._bar.update(task.id, completed=done, note=note, rate=rate)

    def say(self, text: str) -> None:
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(stderr=True)
        console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make(kind: Any) -> Silent:
    """``True`` -> a bar, ``False`` -> silence, anything else is used as it is."""
    if isinstance(kind, Silent):
        return kind
    return Bar() if kind else Silent()
