"""Sweeps: one recipe over a grid of values and seeds, or over ranges that an optimiser searches.

Every point is a cell, so that it is kept, shared and gone on with like those of `plait verify`.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.declare.recipe import Recipe, assemble
from plait.errors import BadInput, Interrupted, nearest
from plait.planning.plan import make_plan
from plait.storage.files import write_atomically, write_text
from plait_experiments import statistics
from plait_experiments.cells import Cache, Job, Outcome
from plait_experiments.choice import Choice, choose
from plait_experiments.grid import SEED, Axis, Point, Range, parse_all, points, value_at
from plait_experiments.progress import Progress
from plait_experiments.runner import Runner
from plait_experiments.search import Search, Visit
from plait_experiments.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    progress: bool = False,
    **changes: Any,
) -> Sweep:
    """Run a recipe at every point of a grid, or let Optuna look for the best point.

    Every run is kept, by everything that can change its result: a sweep that was stopped goes on where it was, and one
    with more points runs only those. `plait verify` keeps its runs in the same place.

    Args:
        recipe: as of `plait.run`.
        over: ``KEY=VALUES`` texts, see `plait_experiments.grid.parse`; or a mapping of dotted key -> values.
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
        changes: as in `plait.declare.recipe.assemble`.

    Raises:
        BadInput: a bad key, value or name, or something that is not installed.
        Refused: plugins that cannot work together at some point.
        Interrupted: stopped by Ctrl-C; finished runs are kept.
    """
    start = time.monotonic()
    base = assemble(recipe, **changes)
    axes = parse_all(over)
    runner = Runner(workers, ray, fresh, Progress("sweeping" if progress else ""))
    kept = Cache(cache)

    def job_at(point: Point) -> Job:
        """The cell of a point; refuses an unknown key or a bad value, naming the point."""
        where = "--over " + " ".join(f"{key}={value}" for key, value in point.items())
        return kept.job(base.merged(point, where), point={k: v for k, v in point.items() if k != SEED})

    search = Search(runner, job_at, axes, optimize, direction, trials, storage, study, workers) if optimize else None
    try:
        if search is not None:
            visits, notes = search.run(base, kept.folder)
        else:
            visits, notes = [Visit(point, job_at(point)) for point in _grid(axes)], []
            runner.run([visit.job for visit in visits])
    except KeyboardInterrupt:
        raise Interrupted("stopped; every finished run is kept. Go on with the same command.") from None
    finally:
        runner.close()
    keys = [axis.key for axis in axes]
    return Sweep(
        tuple(keys if SEED in keys else [*keys, SEED]),
        tuple(_row(visit, runner.outcomes.get(visit.job.key)) for visit in visits),
        runner.ran,
        runner.cached,
        time.monotonic() - start,
        optimize,
        search.direction if search is not None else "",
        tuple(notes),
        _own(base, keys) if optimize else {},
    )


def _own(recipe: Recipe, keys: Sequence[str]) -> Point:
    """What a recipe says of these keys by itself, the seed aside; nothing where it is incomplete without them."""
    try:
        plain = make_plan(recipe).recipe.model_dump(mode="json")
    except BadInput:
        return {}
    return {key: value_at(plain, key) for key in keys if key != SEED}


def _grid(axes: Sequence[Axis | Range]) -> list[Point]:
    for axis in axes:
        if isinstance(axis, Range):
            raise BadInput(
                f"--over {axis.key}: a range {axis.low:g}..{axis.high:g} is for --optimize METRIC; "
                "a grid needs values: KEY=1,2,3."
            )
    return list(points([axis for axis in axes if isinstance(axis, Axis)]))


def _row(visit: Visit, outcome: Outcome | None) -> Row:
    job = visit.job
    if outcome is None:
        outcome = Outcome(job.key, "unavailable", error="done by an earlier call; not in this cache")
    point = {**visit.point, SEED: job.seed}
    return Row(point, job.folder, outcome.status, outcome.metrics, outcome.seconds, outcome.error, visit.trial)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        point: what was varied, the seed included.
        run: its directory.
        status: ``done``, ``failed`` or ``unavailable`` (its data is not here).
        metrics: ``<plugin>/<metric>`` -> value, None where undefined.
        seconds: wall-clock time.
        error: why it is not done.
        trial: of an optimiser; None on a grid.
    """

    point: Point
    run: str
    status: str
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    trial: int | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    point: Point
    rows: tuple[Row, ...]

    def summary(self, metric: str) -> Summary:
        """Mean and standard error over the seeds."""
        return statistics.summary([row.metrics.get(metric) for row in self.rows if row.status == "done"])

    def scores(self, metric: str) -> dict[int, float | None]:
        """A metric by seed; None where a run gave none."""
        return {row.point[SEED]: row.metrics.get(metric) if row.status == "done" else None for row in self.rows}


@dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    Attributes:
        keys: what was varied, in order.
        rows: every run.
        ran, cached: how many were run now, and how many were there already.
        seconds: wall-clock time of this call.
        optimized: the metric that was optimised, or empty.
        direction: ``maximize`` or ``minimize``.
        notes: lines for the user.
        default: what the recipe says of the keys by itself.
    """

    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    ran: int
    cached: int
    seconds: float
    optimized: str = ""
    direction: str = ""
    notes: tuple[str, ...] = ()
    default: Point = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Every metric of some run."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def failed(self) -> list[Row]:
        """The runs without a result."""
        return [row for row in self.rows if row.status != "done"]

    def groups(self) -> list[Group]:
        """The rows by their point without the seed, in order of first appearance."""
        together: dict[str, list[Row]] = {}
        for row in self.rows:
            key = json.dumps({k: v for k, v in row.point.items() if k != SEED}, sort_keys=True, default=str)
            rows = together.setdefault(key, [])
            if row.run not in [known.run for known in rows]:  # an optimiser may come back to a point
                rows.append(row)
        return [Group({k: v for k, v in rows[0].point.items() if k != SEED}, tuple(rows)) for rows in together.values()]

    def best(self) -> Group | None:
        """The point to take by the optimised metric; None without one.

        That is the point with the best mean; but where the recipe's own point was run too, at the same seeds, and the
        best does not exceed it by more than the standard error of their paired difference, the recipe's own.
        """
        choice = self._choice()
        return self.groups()[choice.chosen] if choice.chosen is not None else None

    def tie(self) -> tuple[Group, Summary] | None:
        """The point with the best mean and its difference to the recipe's own, where `best` is the latter for that."""
        choice = self._choice()
        if choice.best is None or choice.best == choice.chosen:
            return None
        gain = choice.gains[choice.best]
        assert gain is not None
        return self.groups()[choice.best], gain

    def _choice(self) -> Choice:
        groups = self.groups()
        scores = [group.scores(self.optimized) for group in groups]
        default = next((i for i, group in enumerate(groups) if group.point == self.default), None)
        return choose(scores, default, self.direction == "maximize")

    def main_metric(self) -> str:
        """The metric that tables and plots show when none is asked for."""
        preferred = [self.optimized, "task/accuracy", "task/loss"]
        return next((name for name in preferred if name in self.metrics), next(iter(self.metrics), ""))

    def checked(self, names: Sequence[str]) -> list[str]:
        """Metric names of the user.

        Raises:
            BadInput: one that no run has.
        """
        for name in names:
            if self.metrics and name not in self.metrics:
                raise BadInput(f"no run has the metric {name!r}.{nearest(name, self.metrics)}")
        return list(names)

    def table(self, metrics: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows: a point a line, mean and standard error of each metric."""
        keys = [key for key in self.keys if key != SEED]
        columns = [*keys, "runs", *(c for name in metrics for c in (name, "standard error"))]
        rows: list[list[Any]] = []
        for group in self.groups():
            summaries = [group.summary(name) for name in metrics]
            figures = [value for summary in summaries for value in (summary.mean, summary.standard_error)]
            done = sum(row.status == "done" for row in group.rows)
            rows.append([*(group.point.get(key) for key in keys), done, *figures])
        return columns, rows

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        best, tie = self.best(), self.tie()
        return {
            "keys": list(self.keys),
            "rows": [asdict(row) for row in self.rows],
            "groups": [
                {"point": g.point, "metrics": {name: g.summary(name).as_dict() for name in self.metrics}}
                for g in self.groups()
            ],
            "optimized": self.optimized or None,
            "direction": self.direction or None,
            "best": best.point if best is not None else None,
            "tie": {"point": tie[0].point, "minus_default": tie[1].as_dict()} if tie is not None else None,
            "ran": self.ran,
            "cached": self.cached,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    # ---- files --------------------------------------------------------------------------------------------------
    def write(self, folder: Path, *, metric: str = "", parquet: bool = False) -> list[Path]:
        """Write ``sweep.json``, ``runs.csv`` (a run a line), ``plot.svg``, and ``runs.parquet`` if asked for.

        Raises:
            BadInput: Parquet without pyarrow.
            RunFailed: the disk is full or not writable.
        """
        columns = self.columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_text(folder / "sweep.json", json.dumps(self.as_dict(), indent=1, default=str))
        write_text(folder / "runs.csv", text.getvalue())
        files = [folder / "sweep.json", folder / "runs.csv"]
        if parquet:
            pyarrow, parquet_files = _pyarrow()
            frame = pyarrow.table({name: _one_kind(values) for name, values in columns.items()})
            write_atomically(folder / "runs.parquet", lambda path: parquet_files.write_table(frame, path))
            files.append(folder / "runs.parquet")
        if any(row.status == "done" for row in self.rows):
            figure = self.plot(metric or self.main_metric())
            write_atomically(folder / "plot.svg", lambda path: figure.savefig(path, format="svg"))
            files.append(folder / "plot.svg")
        return files

    def columns(self) -> dict[str, list[Any]]:
        """The rows as columns: what was varied, every metric, and what became of the run."""
        varied: dict[str, list[Any]] = {key: [row.point.get(key) for row in self.rows] for key in self.keys}
        measured = {name: [row.metrics.get(name) for row in self.rows] for name in self.metrics}
        own = ("trial", "status", "seconds", "error", "run")
        return varied | measured | {name: [getattr(row, name) for row in self.rows] for name in own}

    def plot(self, metric: str) -> Figure:
        """The metric over the first varied number, a line for each combination of the rest; bars without a number."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        groups = [(g, s) for g in self.groups() if (s := g.summary(metric)).mean is not None]
        numeric = [k for k in self.keys if k != SEED and all(_is_number(g.point.get(k)) for g, _ in groups)]
        along = next((k for k in numeric if len({g.point[k] for g, _ in groups}) > 1), "")
        lines: dict[str, list[tuple[Any, float, float]]] = {}
        for group, summary in groups:
            rest = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in group.point.items() if k != along)
            place = group.point[along] if along else rest or "all"
            name = "" if self.optimized or not along else rest
            lines.setdefault(name, []).append((place, summary.mean or 0.0, summary.standard_error or 0.0))
        for name, marks in lines.items():
            x, y, error = zip(*sorted(marks, key=lambda mark: mark[0]) if along else marks, strict=True)
            style = "o" if self.optimized or not along else "o-"
            axes.errorbar(x, y, yerr=error, fmt=style, capsize=3, label=name or None)
        axes.set_xlabel(along)
        axes.set_ylabel(metric)
        if not along:
            axes.tick_params(axis="x", rotation=30)
        if any(lines) and len(lines) > 1:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        axes.set_title("mean over seeds, with its standard error", fontsize="small")
        return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_kind(values: list[Any]) -> list[Any]:
    """Values that one column can hold: mixed kinds and lists as text."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} or (len(kinds) == 1 and kinds <= {str, bool}):
        return [float(v) if v is not None and float in kinds else v for v in values]
    return [None if v is None else str(v) for v in values]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(
            "--parquet needs pyarrow: pip install 'plait-experiments[search]'. runs.csv is there."
        ) from error
    return pyarrow, parquet
