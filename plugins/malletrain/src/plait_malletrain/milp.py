"""The allocation problem as mixed-integer programmes for HiGHS (scipy.optimize.milp): cross-checks of `allocation`.

HiGHS has no SOS2 sets: each straight piece of a curve gets a binary of its own. `solve_counts` has one integer per job,
`solve_nodes` is the paper's literal model with a binary for every job and node, and is meant for a few nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .allocation import Demand, Plan
from .errors import MalletrainError

__all__ = ["solve_counts", "solve_nodes"]


class _Model:
    """Columns (gain, upper bound, whole number) and rows (terms, bounds) of a programme that maximises."""

    def __init__(self) -> None:
        self.columns: list[tuple[float, float, bool]] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def column(self, gain: float = 0.0, high: float = 1.0, whole: bool = True) -> int:
        self.columns.append((gain, high, whole))
        return len(self.columns) - 1

    def row(self, terms: dict[int, float], low: float, high: float) -> None:
        self.rows.append((terms, low, high))

    def solve(self, seconds: float) -> NDArray[np.float64]:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        gain, high, whole = (np.array(column) for column in zip(*self.columns, strict=True))
        entries = [(i, j, factor) for i, (terms, _, _) in enumerate(self.rows) for j, factor in terms.items()]
        row, column, factors = zip(*entries, strict=True)
        matrix = coo_array((factors, (row, column)), shape=(len(self.rows), len(self.columns))).tocsr()
        answer: Any = milp(
            -gain,
            constraints=LinearConstraint(matrix, [low for _, low, _ in self.rows], [top for _, _, top in self.rows]),
            integrality=whole,
            bounds=Bounds(0, high),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
        if answer.x is None or answer.status != 0:
            raise MalletrainError(f"HiGHS found no proven optimum in {seconds:g} s: {answer.message}")
        return np.asarray(answer.x)


def _job(model: _Model, demand: Demand, horizon: float) -> tuple[int, int, int]:
    """The columns n (nodes), u (grows) and d (shrinks) of a job, and its rows."""
    low, high = demand.least, demand.most
    rate = demand.value(demand.held)
    count = model.column(0.0, high)
    grows, shrinks = model.column(-rate * demand.up), model.column(-rate * demand.down)
    breaks = sorted({low, high, *(int(s) for s in demand.sizes if low < s < high)})
    pieces = itertools.pairwise(breaks) if low < high else [(low, high)]
    size: dict[int, float] = {count: -1.0}
    chosen: dict[int, float] = {}
    for first, last in pieces:
        start, end = np.interp((first, last), demand.sizes, demand.values)
        slope = (end - start) / (last - first) if last > first else 0.0
        inside = model.column(horizon * start)
        beyond = model.column(horizon * slope, last - first, whole=False)
        model.row({beyond: 1.0, inside: float(first - last)}, -np.inf, 0.0)
        size |= {inside: float(first), beyond: 1.0}
        chosen[inside] = 1.0
    model.row(size, 0.0, 0.0)
    model.row(chosen, 0.0, 1.0)
    model.row({count: 1.0, grows: -float(high)}, -np.inf, demand.held)
    model.row({count: -1.0, shrinks: -float(max(demand.held, 1))}, -np.inf, -demand.held)
    return count, grows, shrinks


def _plan(demands: Sequence[Demand], counts: Sequence[float], horizon: float) -> Plan:
    whole = tuple(round(count) for count in counts)
    return Plan(whole, sum(d.gain(k, horizon) for d, k in zip(demands, whole, strict=True)))


def solve_counts(demands: Sequence[Demand], nodes: int, horizon: float, seconds: float = 60.0) -> Plan:
    """The best numbers of nodes, with one integer per job; arguments as of `plait_malletrain.allocation.allocate`.

    Raises:
        MalletrainError: no proven optimum within ``seconds``.
    """
    if not demands:
        return Plan((), 0.0)
    model = _Model()
    columns = [_job(model, demand, horizon) for demand in demands]
    model.row({count: 1.0 for count, _, _ in columns}, -np.inf, nodes)
    answer = model.solve(seconds)
    return _plan(demands, [answer[count] for count, _, _ in columns], horizon)


def solve_nodes(
    demands: Sequence[Demand], held: Sequence[Sequence[int]], nodes: int, horizon: float, seconds: float = 60.0
) -> tuple[Plan, list[list[int]]]:
    """The literal model: which job gets which node; a growing job keeps all its nodes, a shrinking one gets no new one.

    Args:
        demands: the jobs.
        held: the nodes 0..nodes-1 that each job has now.
        nodes, horizon, seconds: as of `solve_counts`.

    Returns:
        The plan, and the nodes of each job.

    Raises:
        MalletrainError: a node of two jobs, or one that there is not; or no proven optimum.
    """
    flat = [node for own in held for node in own]
    if twice := sorted({node for node in flat if flat.count(node) > 1}):
        raise MalletrainError(f"map: node {twice[0]} belongs to two jobs.")
    if unknown := [node for node in flat if not 0 <= node < nodes]:
        raise MalletrainError(f"map: there is no node {unknown[0]}; the pool has {nodes}.")
    model = _Model()
    columns = [_job(model, demand, horizon) for demand in demands]
    places = [[model.column() for _ in range(nodes)] for _ in demands]
    for (count, grows, shrinks), row, own in zip(columns, places, held, strict=True):
        model.row({count: -1.0} | dict.fromkeys(row, 1.0), 0.0, 0.0)
        model.row({grows: 1.0, shrinks: 1.0}, 0.0, 1.0)
        for node, x in enumerate(row):
            if node in own:
                model.row({x: 1.0, shrinks: 1.0}, 1.0, np.inf)
            else:
                model.row({x: 1.0, grows: -1.0}, -np.inf, 0.0)
    for node in range(nodes):
        model.row({row[node]: 1.0 for row in places}, -np.inf, 1.0)
    answer = model.solve(seconds)
    plan = _plan(demands, [answer[count] for count, _, _ in columns], horizon)
    return plan, [[node for node, x in enumerate(row) if answer[x] > 0.5] for row in places]
