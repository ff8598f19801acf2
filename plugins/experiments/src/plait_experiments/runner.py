"""The cache of cells in front of workers: what is kept is not run again."""

from __future__ import annotations

from collections.abc import Sequence

from plait.errors import BadInput
from plait_experiments import cells
from plait_experiments.cells import Job, Outcome
from plait_experiments.progress import Progress
from plait_experiments.workers import Workers, make_workers


class Runner:
    """Runs jobs, each once.

    Args:
        workers: local processes of one thread each; default one a core, 0 for this process.
        ray: address of a Ray cluster, or ``local``.
        fresh: run every cell again.
        progress: told of every cell.

    Attributes:
        outcomes: by the key of the job, of every job so far.
        ran, cached: how many cells were run, and how many were there already.
        stale: distributions from other sources of which some kept result comes.

    Raises:
        BadInput: a negative number of workers.
    """

    def __init__(self, workers: int | None, ray: str | None, fresh: bool, progress: Progress) -> None:
        if workers is not None and workers < 0:
            raise BadInput(f"--workers {workers}: give a number from 1 on.")
        self._wanted = (workers, ray)
        self._workers: Workers | None = None
        self.fresh, self._progress = fresh, progress
        self.outcomes: dict[str, Outcome] = {}
        self.ran = self.cached = 0
        self.stale: set[str] = set()

    def kept(self, job: Job) -> Outcome | None:
        """The outcome of a job that was run by this or an earlier call; None when it is not in the cache."""
        outcome = self.outcomes.get(job.key)
        if outcome is None and (outcome := cells.stored(job)) is not None:
            self.outcomes[job.key] = outcome
            self.cached += 1
            self._progress.known(outcome)
            self.stale |= {n for n, digest in outcome.sources.items() if job.sources.get(n, digest) != digest}
        return outcome

    def run(self, jobs: Sequence[Job], further: int = 0) -> None:
        """Make sure of the outcomes of these jobs.

        Args:
            jobs: any; those of one key are one.
            further: how many cells are still to come afterwards, for the time left.
        """
        todo: dict[str, Job] = {}
        for job in jobs:
            if self.fresh and job.key not in self.outcomes:
                cells.discard(job)
            if self.kept(job) is None:
                todo[job.key] = job
        self._progress.expect(len(todo), further)
        if not todo:
            return
        if self._workers is None:  # only now: a second call that runs nothing starts no process
            self._workers = make_workers(*self._wanted)
            self._progress.parallel = self._workers.count or 1
        for outcome in self._workers.run(list(todo.values())):
            job = todo[outcome.key]
            self.outcomes[outcome.key] = outcome
            self.ran += 1
            if outcome.status == "done" and cells.stored(job) is None:  # the worker wrote it on another machine's disk
                cells.store(job, outcome)
            self._progress.finished(job, outcome)

    def close(self) -> None:
        """End the workers."""
        self._progress.stop()
        if self._workers is not None:
            self._workers.close()
