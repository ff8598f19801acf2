"""Progress of many runs on stderr: cells done, failures as they happen, time left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from plait_experiments.cells import Job, Outcome
from plait_report.formatting import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """Counts cells, and shows a rich bar while some run.

    Args:
        word: what is done, e.g. ``verifying``; empty to show nothing.

    Attributes:
        parallel: how many cells run at once.
    """

    def __init__(self, word: str = "") -> None:
        self.word = word
        self.parallel = 1
        self.total = self.done = 0
        self._seconds: list[float] = []
        self._bar: RichProgress | None = None

    def expect(self, cells: int, further: int) -> None:
        """``cells`` are to be run now, ``further`` afterwards at most."""
        self.total = self.done + cells + further
        if cells and self.word and self._bar is None:
            self._bar = _bar(self.word)
            self._bar.start()
        if cells:
            self._show("")

    def known(self, outcome: Outcome) -> None:
        """A cell from the cache; its time tells how long the others take."""
        self._seconds.append(outcome.seconds)

    def finished(self, job: Job, outcome: Outcome) -> None:
        """A cell was run; a failure is said above the bar."""
        self.done += 1
        if outcome.status == "done":
            self._seconds.append(outcome.seconds)
        elif self._bar is not None:
            word = "no data" if outcome.status == "unavailable" else "failed"
            self._bar.console.print(f"{job.label} {word}: {outcome.error}", style="red", markup=False, highlight=False)
        self._show(f"{job.label}, {duration(outcome.seconds)}")

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def left(self) -> float | None:
        """Seconds left, judged by the mean cell; None before one is known."""
        if not self._seconds:
            return None
        mean = math.fsum(self._seconds) / len(self._seconds)
        return mean * math.ceil((self.total - self.done) / self.parallel)

    def _show(self, note: str) -> None:
        if self._bar is None:
            return
        left = self.left
        about = f"about {duration(left)} left" if left is not None else "time left: known after the first cell"
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self.done, total=self.total, left=about, note=note)


def _bar(word: str) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
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
    bar.add_task("", total=None, left="", note="")
    return bar
