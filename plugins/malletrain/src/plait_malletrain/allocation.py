"""Who gets how many of the idle nodes: the exact optimum, by a dynamic programme over counts (card, sections 2 and 3).

Idle nodes are interchangeable and no job has to migrate, so only the numbers n_j matter::

    maximise sum_j f_j(n_j)     with sum_j n_j <= N and n_j = 0 or nmin_j <= n_j <= nmax_j
    f_j(k) = T_fwd O_j(k) - R_j t_up_j [k > C_j] - R_j t_dw_j [k < C_j],     R_j = O_j(C_j)

that is, what is expected in the next T_fwd seconds, less what is lost while the resized jobs stand still. Values are
rounded to integers, so that equal plans are equal: of these the one with fewer changed jobs is taken, then the one that
gives more to the jobs that came first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import MalletrainError

__all__ = ["Demand", "Plan", "allocate", "allocate_table"]

NEVER = -(2**62)
"""The value of a size that a job cannot have."""
DENSE = 300_000
"""Cells of the dense programme (jobs x nodes x sizes) above which windows over the curves' pieces are faster."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Demand:
    """A job as the allocator sees it.

    Attributes:
        sizes: breakpoints of its curve in nodes, int [K], rising.
        values: the objective there [K] (samples/s, speedup, ...), piecewise linear between; it need not rise.
        held: nodes that it has now (C_j).
        up, down: seconds that it stands still when it grows and when it shrinks.
        least, most: nmin and nmax; default the first and the last breakpoint.
        name: for messages.

    Raises:
        MalletrainError: naming the field and the value.
    """

    sizes: Any
    values: Any
    held: int = 0
    up: float = 0.0
    down: float = 0.0
    least: int = 0
    most: int = 0
    name: str = "job"

    def __post_init__(self) -> None:
        sizes, values = np.asarray(self.sizes), np.asarray(self.values, dtype=np.float64)
        if sizes.ndim != 1 or not len(sizes) or sizes.shape != values.shape:
            self._refuse("sizes, values", f"{sizes.size} and {values.size} entries", "give a value for every size")
        if not np.all(sizes == sizes.astype(np.int64)) or sizes[0] < 1 or np.any(np.diff(sizes) <= 0):
            self._refuse("sizes", sizes.tolist(), "give whole numbers of nodes that rise, from 1")
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            self._refuse("values", values.tolist(), "give finite numbers of at least 0")
        object.__setattr__(self, "sizes", sizes.astype(np.int64))
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "least", int(self.least or sizes[0]))
        object.__setattr__(self, "most", int(self.most or sizes[-1]))
        if self.least < 1 or self.least > self.most:
            self._refuse("nmin, nmax", (self.least, self.most), "give 1 <= nmin <= nmax")
        if self.least < sizes[0] or self.most > sizes[-1]:
            self._refuse("sizes", sizes.tolist(), f"the curve must cover nmin..nmax = {self.least}..{self.most}")
        for field in ("up", "down"):
            seconds = getattr(self, field)
            if not (math.isfinite(seconds) and seconds >= 0):
                self._refuse(f"t_{field}", seconds, "give seconds of at least 0")
        if self.held < 0:
            self._refuse("held", self.held, "give a number of nodes")

    def _refuse(self, field: str, value: Any, mend: str) -> None:
        raise MalletrainError(f"{self.name}: {field} = {value}: {mend}.")

    def value(self, count: int) -> float:
        """O(count); 0 below nmin."""
        return float(np.interp(count, self.sizes, self.values)) if count >= self.least else 0.0

    def gain(self, count: int, horizon: float) -> float:
        """f(count): expected in the horizon, less what standing still costs."""
        rate = self.value(self.held)
        loss = self.up if count > self.held else self.down if count < self.held else 0.0
        return horizon * self.value(count) - rate * loss


@dataclass(frozen=True)
class Plan:
    """What the allocator decided: nodes of each job, and the objective's value."""

    counts: tuple[int, ...]
    value: float


def allocate(
    demands: Sequence[Demand],
    nodes: int,
    horizon: float,
    method: Literal["auto", "dense", "windows"] = "auto",
) -> Plan:
    """The best numbers of nodes.

    Args:
        demands: the jobs, in the order of the queue.
        nodes: idle nodes there are (N).
        horizon: T_fwd, seconds.
        method: try every size (``dense``), or one sliding window for each piece of a curve (``windows``, time
            O(J N pieces log nmax)); both give the same counts.

    Raises:
        MalletrainError: a number of nodes or a horizon that makes no sense.
    """
    _check(nodes, horizon)
    jobs = len(demands)
    if not jobs or not nodes:
        return Plan((0,) * jobs, sum(d.gain(0, horizon) for d in demands))
    widest = max(d.most for d in demands)
    top = min(nodes, sum(d.most for d in demands))
    highest = max(float(np.abs(d.values).max()) * (horizon + d.up + d.down) for d in demands)
    scale = _scale(highest, jobs, max(nodes, widest))
    pieces = [_pieces(d, horizon, scale, jobs + 1) for d in demands]
    table = np.full((jobs, widest + 1), NEVER, dtype=np.int64)
    for row, parts in zip(table, pieces, strict=True):
        for first, last, start, slope in parts:
            row[first : last + 1] = start + slope * np.arange(last - first + 1)
    if method == "dense" or (method == "auto" and jobs * (top + 1) * (widest + 1) <= DENSE):
        best = _dense(table, top)
    else:
        best = _windows(pieces, top)
    counts = _read_back(table, best, top)
    return Plan(counts, sum(d.gain(k, horizon) for d, k in zip(demands, counts, strict=True)))


def allocate_table(
    values: Floats, held: Integers, up: Floats, down: Floats, nodes: int, horizon: float, least: Integers | None = None
) -> tuple[int, ...]:
    """`allocate` for curves that are known at every size, without checks: the simulator's way.

    Args:
        values: O_j(k) [J, nmax + 1], the first column 0; NEGATIVE where a job cannot have the size.
        held, up, down: C_j, t_up_j, t_dw_j [J].
        nodes, horizon: as of `allocate`.
        least: nmin_j [J]; default 1.
    """
    jobs, width = len(values), values.shape[1]
    if not jobs or nodes <= 0:
        return (0,) * jobs
    size: Integers = np.arange(width)
    rate: Floats = np.where(held >= (1 if least is None else least), values[np.arange(jobs), held], 0.0)
    gain = horizon * values - (rate * up)[:, None] * (size > held[:, None])
    gain -= (rate * down)[:, None] * (size < held[:, None])
    scale = _scale(float(np.abs(gain).max()), jobs, max(nodes, width))
    table = np.rint(gain * scale).astype(np.int64) * (jobs + 1) - (size != held[:, None])
    table[values < 0] = NEVER
    if least is not None:
        table[(size > 0) & (size < least[:, None])] = NEVER
    top = min(nodes, jobs * (width - 1))
    return _read_back(table, _dense(table, top), top)


def equal_split(least: Sequence[int], most: Sequence[int], nodes: int) -> tuple[int, ...]:
    """N // J nodes each, what is left one by one in the order of the queue; jobs below their nmin get none."""
    counts, left, waiting = [0] * len(most), nodes, list(range(len(most)))
    while waiting and left:
        share = max(1, left // len(waiting))
        for job in list(waiting):
            more = min(share, most[job] - counts[job], left)
            counts[job] += more
            left -= more
            if counts[job] == most[job] or not left:
                waiting.remove(job)
    return tuple(count if count >= low else 0 for count, low in zip(counts, least, strict=True))


def _check(nodes: int, horizon: float) -> None:
    if nodes < 0:
        raise MalletrainError(f"nodes = {nodes}: give a number of nodes of at least 0.")
    if not (math.isfinite(horizon) and horizon >= 0):
        raise MalletrainError(f"T_fwd = {horizon}: give seconds of at least 0.")


def _scale(highest: float, jobs: int, nodes: int) -> float:
    """A power of two by which values become integers that no sum in the programme overflows."""
    bits = 58 - math.ceil(math.log2(jobs + 1)) - math.ceil(math.log2(max(nodes, jobs) + 1))
    return 2.0 ** (bits - math.frexp(highest)[1]) if highest > 0 else 1.0


def _pieces(demand: Demand, horizon: float, scale: float, factor: int) -> list[tuple[int, int, int, int]]:
    """(first size, last size, value at the first, slope) of every straight piece, split at the present size.

    The values are integers, ``factor`` times the rounded gain less one where the size changes.
    """
    held, low, high = demand.held, demand.least, demand.most
    rate = demand.value(held)
    losses = {-1: rate * demand.down, 0: 0.0, 1: rate * demand.up}
    side = -1 if held else 0
    pieces = [(0, 0, round(-losses[side] * scale) * factor - (held != 0), 0)]
    inner = [int(s) for s in demand.sizes if low < s < high]
    cuts = sorted({low, *inner, high + 1} | ({held, held + 1} & set(range(low, high + 1))))
    worth = np.interp(cuts, demand.sizes, demand.values)
    for first, after in itertools.pairwise(cuts):
        at = int(np.searchsorted(demand.sizes, first, side="right")) - 1
        at = min(at, len(demand.sizes) - 2)
        slope = 0.0
        if at >= 0 and after - first > 1:
            slope = (demand.values[at + 1] - demand.values[at]) / (demand.sizes[at + 1] - demand.sizes[at])
        side = (first > held) - (first < held)
        start = horizon * worth[cuts.index(first)] - losses[side]
        pieces.append(
            (first, after - 1, round(start * scale) * factor - (first != held), round(horizon * slope * scale) * factor)
        )
    return pieces


def _dense(table: Integers, top: int) -> Integers:
    """best[j, m]: of the jobs j, j + 1, ... with at most m nodes, int64 [J + 1, top + 1]; tries every size.

    Only where the optimum can pass: nobody gets more than its best size, which bounds what earlier jobs leave for job j
    from below, and what is of use to it and later ones from above. The rest is NEVER.
    """
    jobs, width = table.shape
    reach = np.minimum(width - 1 - table[:, ::-1].argmax(axis=1), top)
    high = np.minimum(reach[::-1].cumsum()[::-1], top)
    low = np.minimum(np.maximum(top - reach.cumsum() + reach, 0), high)
    spans = list(zip(low.tolist(), (high + 1).tolist(), (reach + 1).tolist(), strict=True))
    padded = np.full((jobs + 1, width - 1 + top + 1), NEVER, dtype=np.int64)
    best = padded[:, width - 1 :]
    best[jobs] = 0
    later = np.lib.stride_tricks.sliding_window_view(padded, top + 1, axis=1)[1:, ::-1]  # [j, k, m]: best[j + 1, m - k]
    room = np.empty(width * (top + 1), dtype=np.int64)  # in one piece: faster than rows of another length
    for job in range(jobs - 1, -1, -1):
        first, after, sizes = spans[job]
        sums = room[: sizes * (after - first)].reshape(sizes, after - first)
        np.add(later[job, :sizes, first:after], table[job, :sizes, None], out=sums)
        np.maximum.reduce(sums, axis=0, out=best[job, first:after])
        best[job, after:] = best[job, after - 1]
    return best


def _windows(pieces: Sequence[Sequence[tuple[int, int, int, int]]], top: int) -> Integers:
    """As `_dense`, by the largest element in a sliding window for each piece."""
    best = np.zeros((len(pieces) + 1, top + 1), dtype=np.int64)
    place = np.arange(top + 1, dtype=np.int64)
    for job in range(len(pieces) - 1, -1, -1):
        after, out = best[job + 1], best[job]
        out[:] = after + pieces[job][0][2]
        for first, last, start, slope in pieces[job][1:]:
            if first > top:
                break
            tilted = after[: top + 1 - first] - slope * place[: top + 1 - first]
            width = last - first + 1
            if width > 1:
                tilted = _largest(np.concatenate((np.full(width - 1, NEVER, dtype=np.int64), tilted)), width)
            tilted += start + slope * place[: top + 1 - first]
            np.maximum(out[first:], tilted, out=out[first:])
    return best


def _largest(values: Integers, width: int) -> Integers:
    """The largest element of every ``width`` neighbours."""
    span = 1
    while 2 * span <= width:
        values = np.maximum(values[:-span], values[span:])
        span *= 2
    return np.maximum(values[: span - width], values[width - span :]) if span < width else values


def _read_back(table: Integers, best: Integers, top: int) -> tuple[int, ...]:
    """The counts behind the best value; of equal ones the largest count of the first job."""
    counts, left = [], top
    for job in range(len(table)):
        most = min(table.shape[1] - 1, left)
        worth = table[job, most::-1] + best[job + 1, left - most : left + 1]  # of `most` nodes, of one less, ...
        counts.append(most - int((worth == best[job, left]).argmax()))
        left -= counts[-1]
    return tuple(counts)
