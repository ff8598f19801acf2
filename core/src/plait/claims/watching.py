"""Progress of a verification on stderr: cells done, failures as they happen, time left."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from plait.claims.cells import Job, Outcome
from plait.report.formatting import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Watcher:
    """Counts, and shows nothing."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._parallel = 1
        self._seconds: list[float] = []

    def workers(self, count: int | None) -> None:
        """How many cells run at once."""
        self._parallel = count or 1

    def expect(self, cells: int, further: int) -> None:
        """``cells`` are to be run now, ``further`` afterwards at most."""
        self.total = self.done + cells + further

    def known(self, job: Job, outcome: Outcome) -> None:
        """A cell from the cache; its time tells how long the others take."""
        self._seconds.append(outcome.seconds)

    def finished(self, job: Job, outcome: Outcome) -> None:
        """A cell was run."""
        self.done += 1
        if outcome.status == "done":
            self._seconds.append(outcome.seconds)

    def stop(self) -> None:
        """No more to come."""

    @property
    def left(self) -> float | None:
        """Seconds left, judged by the mean cell; None before one is known."""
        if not self._seconds:
            return None
        mean = math.fsum(self._seconds) / len(self._seconds)
        return mean * math.ceil((self.total - self.done) / self._parallel)


class Bar(Watcher):
    """A rich progress bar on stderr.

    Args:
        word: what is done.
    """

    def __init__(self, word: str = "verifying") -> None:
        super().__init__()
        self._word = word
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._changed = time.monotonic()

    def expect(self, cells: int, further: int) -> None:
        """Show the bar, if there is anything to run."""
        super().expect(cells, further)
        if not cells:
            return
        if self._bar is None:
            self._bar, self._task = _bar(self._word)
            self._bar.start()
        self._show("")

    def finished(self, job: Job, outcome: Outcome) -> None:
        """Advance; a failure is said above the bar."""
        super().finished(job, outcome)
        if outcome.status != "done" and self._bar is not None:
            from rich.text import Text

            word = "no data" if outcome.status == "unavailable" else "failed"
            self._bar.console.print(Text(f"{job.label} {word}: {outcome.error}", style="red"))
        self._show(f"{job.label}, {duration(outcome.seconds)}")

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, note: str) -> None:
        if self._bar is None or self._task is None:
            return
        left = self.left
        about = f"about {duration(left)} left" if left is not None else "time left: known after the first cell"
        self._bar.update(self._task, completed=self.done, total=self.total, left=about, note=note)


def _bar(word: str) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn(f"[bold]{word}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    return bar, bar.add_task("", total=None, left="", note="")


def make(kind: Any) -> Watcher:
    """``True`` -> a bar, ``False`` -> silence, anything else is used as it is."""
    if isinstance(kind, Watcher):
        return kind
    return Bar() if kind else Watcher()
