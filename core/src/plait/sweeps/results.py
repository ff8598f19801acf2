"""What came of a sweep: its rows, means over seeds, files and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.claims import statistics
from plait.claims.statistics import Summary
from plait.errors import BadInput
from plait.sweeps.grid import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = "seed"


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
    """

    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    ran: int
    cached: int
    seconds: float
    optimized: str = ""
    direction: str = ""
    notes: tuple[str, ...] = ()

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
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            key = json.dumps({k: v for k, v in row.point.items() if k != SEED}, sort_keys=True, default=str)
            rows = found.setdefault(key, [])
            if row.run not in [known.run for known in rows]:  # an optimiser may come back to a point
                rows.append(row)
        return [Group({k: v for k, v in rows[0].point.items() if k != SEED}, tuple(rows)) for rows in found.values()]

    def best(self) -> Group | None:
        """The best point by the mean of the optimised metric; None without one."""
        sign = 1 if self.direction == "maximize" else -1
        able = [(sign * mean, g) for g in self.groups() if (mean := g.summary(self.optimized).mean) is not None]
        return max(able, key=lambda item: item[0])[1] if able and self.optimized else None

    def main_metric(self) -> str:
        """The metric that tables and plots show when none is asked for."""
        preferred = [self.optimized, "task/accuracy", "task/loss"]
        return next((name for name in preferred if name in self.metrics), next(iter(self.metrics), ""))

    def checked(self, names: Sequence[str]) -> list[str]:
        """Metric names of the user.

        Raises:
            BadInput: one that no run has.
        """
        from plait.errors import nearest

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
            found = [group.summary(name) for name in metrics]
            figures = [value for one in found for value in (one.mean, one.standard_error)]
            done = sum(row.status == "done" for row in group.rows)
            rows.append([*(group.point.get(key) for key in keys), done, *figures])
        return columns, rows

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        best = self.best()
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
        from plait.files import write_atomically, write_text

        columns = self.columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_text(folder / "sweep.json", json.dumps(self.as_dict(), indent=1, default=str))
        write_text(folder / "runs.csv", text.getvalue())
        files = [folder / "sweep.json", folder / "runs.csv"]
        if parquet:
            pyarrow, writing = _pyarrow()
            frame = pyarrow.table({name: _one_kind(values) for name, values in columns.items()})
            write_atomically(folder / "runs.parquet", lambda path: writing.write_table(frame, path))
            files.append(folder / "runs.parquet")
        if any(row.status == "done" for row in self.rows):
            figure = self.plot(metric or self.main_metric())
            write_atomically(folder / "plot.svg", lambda path: figure.savefig(path, format="svg"))
            files.append(folder / "plot.svg")
        return files

    def columns(self) -> dict[str, list[Any]]:
        """The rows as columns: what was varied, every metric, and what became of the run."""
        found: dict[str, list[Any]] = {key: [row.point.get(key) for row in self.rows] for key in self.keys}
        found |= {name: [row.metrics.get(name) for row in self.rows] for name in self.metrics}
        own = ("trial", "status", "seconds", "error", "run")
        return found | {name: [getattr(row, name) for row in self.rows] for name in own}

    def plot(self, metric: str) -> Figure:
        """The metric over the first varied number, a line for each combination of the rest; bars without a number."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        groups = [(g, s) for g in self.groups() if (s := g.summary(metric)).mean is not None]
        numeric = [k for k in self.keys if k != SEED and all(_number(g.point.get(k)) for g, _ in groups)]
        along = next((k for k in numeric if len({g.point[k] for g, _ in groups}) > 1), "")
        lines: dict[str, list[tuple[Any, float, float]]] = {}
        for group, summary in groups:
            rest = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in group.point.items() if k != along)
            place = group.point[along] if along else rest or "all"
            name = "" if self.optimized or not along else rest
            lines.setdefault(name, []).append((place, summary.mean or 0.0, summary.standard_error or 0.0))
        for name, found in lines.items():
            x, y, error = zip(*sorted(found, key=lambda p: p[0]) if along else found, strict=True)
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


def _number(value: Any) -> bool:
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
        raise BadInput("--parquet needs pyarrow: pip install 'plait-core[sweeps]'. runs.csv is there.") from error
    return pyarrow, parquet
