"""Run a sweep: every point as a cell of `plait.claims`, so that it is kept, shared and gone on with like one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.claims import cells
from plait.claims.cells import Job, Outcome
from plait.claims.watching import Bar, Watcher
from plait.claims.workers import Engine, make_engine
from plait.errors import BadInput, Interrupted
from plait.recipe import Recipe, assemble
from plait.sweeps.grid import Axis, Point, Range, parse_all, points
from plait.sweeps.results import SEED, Row, Sweep

if TYPE_CHECKING:
    from plait.sweeps.searching import Search


class Runner:
    """The cache of cells in front of workers.

    Args:
        recipe: what is varied.
        cache: folder of the cells.
        fresh: run every cell again.
        watcher: progress.
        make: makes the workers when they are first needed.
    """

    def __init__(self, recipe: Recipe, cache: Path, fresh: bool, watcher: Watcher, make: Callable[[], Engine]) -> None:
        self.recipe, self.cache, self.fresh, self.watcher = recipe, cache, fresh, watcher
        self._make = make
        self._engine: Engine | None = None
        self._sources: dict[str, str] = {}
        self.ran = self.cached = 0

    def job(self, point: Point) -> Job:
        """The cell of a point.

        Raises:
            BadInput: an unknown key or a bad value, naming the point.
            Refused: plugins that cannot work together there.
        """
        from plait.composition import make_plan

        where = "--over " + " ".join(f"{key}={value}" for key, value in point.items())
        plan = make_plan(self.recipe.merged(one_budget(point, self.recipe), where))
        plan.raise_if_refused()
        versions = cells.involved(plan.recipe)
        if not versions.keys() <= self._sources.keys():
            self._sources |= dict.fromkeys(versions, "") | cells.sources_of(versions)
        key = cells.make_key(plan.recipe, versions, None, {}, None)
        return Job(
            key,
            str(self.cache / key),
            "run",
            plan.recipe.seed,
            {k: v for k, v in point.items() if k != SEED},
            plan.recipe.model_dump(mode="json", exclude_none=True),
            versions=versions,
            sources={name: self._sources[name] for name in versions if self._sources[name]},
        )

    def run(self, jobs: Sequence[Job], further: int = 0) -> dict[str, Outcome]:
        """The outcome of every job by its key, from the cache where it is there."""
        outcomes: dict[str, Outcome] = {}
        todo: dict[str, Job] = {}
        for job in {job.key: job for job in jobs}.values():
            if self.fresh:
                cells.discard(job)
            found = cells.stored(job)
            if found is None:
                todo[job.key] = job
            else:
                outcomes[job.key] = found
                self.cached += 1
                self.watcher.known(job, found)
        self.watcher.expect(len(todo), further)
        if todo:
            if self._engine is None:
                self._engine = self._make()
                self.watcher.workers(getattr(self._engine, "count", None))
            for outcome in self._engine.run(list(todo.values())):
                outcomes[outcome.key] = outcome
                self.ran += 1
                if outcome.status == "done" and cells.stored(todo[outcome.key]) is None:
                    cells.store(todo[outcome.key], outcome)  # the worker wrote it on another machine's disk
                self.watcher.finished(todo[outcome.key], outcome)
        return outcomes

    def close(self) -> None:
        """End the workers."""
        self.watcher.stop()
        if self._engine is not None:
            self._engine.close()


def one_budget(point: Point, recipe: Recipe) -> Point:
    """A budget in steps takes the place of one in epochs, and the other way round."""
    found = dict(point)
    for key, rival in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{key}" in point and getattr(recipe.train, rival) is not None:
            found.setdefault(f"train.{rival}", None)
    return found


def row(point: Point, job: Job, outcome: Outcome, trial: int | None = None) -> Row:
    """A line of the result."""
    full = {**point, SEED: job.seed}
    return Row(full, job.folder, outcome.status, outcome.metrics, outcome.seconds, outcome.error, trial)


def sweep(
    recipe: Recipe | Path | str | Mapping[str, Any] | None = None,
    over: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    *,
    optimize: str = "",
    direction: str = "",
    trials: int = 20,
    storage: str = "",
    study: str = "plait",
    workers: int | None = None,
    ray: str | None = None,
    cache: Path | str | None = None,
    fresh: bool = False,
    progress: Any = False,
    **changes: Any,
) -> Sweep:
    """Run a recipe at every point of a grid, or let Optuna look for the best point.

    Every run is kept, by everything that can change its result: a sweep that was stopped goes on where it was, and one
    with more points runs only those. `plait verify` keeps its runs in the same place.

    Args:
        recipe: as of `plait.run`.
        over: ``KEY=VALUES`` texts, see `plait.sweeps.grid.parse`; or a mapping of dotted key -> values.
        optimize: a metric; ``over`` may then hold ranges. Prefer one that ends in ``@validation``.
        direction: ``maximize`` or ``minimize``; default as the metric itself says.
        trials: how many points the optimiser tries in all, those of an earlier call included.
        storage: Optuna's storage, a URL that several machines may share.
        study: the study's name in the storage.
        workers: local processes of one thread each; default one a core, 0 for this process.
        ray: address of a Ray cluster, or ``local``.
        cache: folder of the runs; default as of `plait verify`.
        fresh: run everything again.
        progress: True for progress on stderr.
        changes: as in `plait.recipe.assemble`.

    Raises:
        BadInput: a bad key, value or name, or something that is not installed.
        Refused: plugins that cannot work together at some point.
        Interrupted: stopped by Ctrl-C; finished runs are kept.
    """
    start = time.monotonic()
    base = assemble(recipe, **changes)
    axes = parse_all(over)
    if workers is not None and workers < 0:
        raise BadInput(f"--workers {workers}: give a number from 1 on.")
    watcher = progress if isinstance(progress, Watcher) else Bar("sweeping") if progress else Watcher()
    folder = Path(cache) if cache is not None else cells.default_cache()
    runner = Runner(base, folder, fresh, watcher, lambda: make_engine(workers, ray))
    search: Search | None = None
    if optimize:
        from plait.sweeps.searching import Search

        search = Search(axes, optimize, direction, trials, storage, study, workers)
    try:
        rows, notes = search.run(runner) if search is not None else (_grid(axes, runner), [])
    except KeyboardInterrupt:
        raise Interrupted("stopped; every finished run is kept. Go on with the same command.") from None
    finally:
        runner.close()
    keys = [axis.key for axis in axes]
    return Sweep(
        tuple(keys if SEED in keys else [*keys, SEED]),
        tuple(rows),
        runner.ran,
        runner.cached,
        time.monotonic() - start,
        optimize,
        search.direction if search is not None else "",
        tuple(notes),
    )


def _grid(axes: Sequence[Axis | Range], runner: Runner) -> list[Row]:
    ranges = [axis for axis in axes if isinstance(axis, Range)]
    if ranges:
        raise BadInput(
            f"--over {ranges[0].key}: a range {ranges[0].low:g}..{ranges[0].high:g} is for --optimize METRIC; "
            "a grid needs values: KEY=1,2,3."
        )
    every = list(points([axis for axis in axes if isinstance(axis, Axis)]))
    jobs = [runner.job(point) for point in every]  # refuses before anything starts
    outcomes = runner.run(jobs)
    return [row(point, job, outcomes[job.key]) for point, job in zip(every, jobs, strict=True)]
