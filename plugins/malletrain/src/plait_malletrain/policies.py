"""Who decides, and by what it believes of the jobs' curves: MalleTrain and what it is compared with.

`decide` is the one engine: the simulator and the manager of real runs both ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .allocation import allocate_table, equal_split

__all__ = ["POLICY", "Policy", "Standing", "decide"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """How an allocation is made.

    Attributes:
        knows: what it believes of a curve: ``linear``; the ``mean`` of all jobs; another job's (``wrong``); what was
            measured (``table``); the ``true`` one; or nothing, where nodes are shared equally.
        exponent: of the speedup that is expected before any measurement; None: the option's.
        profiles: whether jobs are profiled; ``ascending``: from the smallest size.
    """

    name: str
    about: str
    knows: Literal["equal", "linear", "mean", "wrong", "table", "true"]
    exponent: float | None = None
    profiles: bool = False
    ascending: bool = False


POLICY = {
    p.name: p
    for p in (
        Policy("equal", "N // J nodes each", "equal"),
        Policy("freetrain-linear", "right one-node rate, linear scaling", "linear"),
        Policy("freetrain-mean", "one average curve for all jobs", "mean"),
        Policy("freetrain-wrong", "the curve of another job", "wrong"),
        Policy("passive", "linear until measured in passing", "table", exponent=1.0),
        Policy("malletrain", "profiled in inverse order, and in passing", "table", profiles=True),
        Policy("malletrain-ascending", "profiled from the smallest size", "table", profiles=True, ascending=True),
        Policy("oracle", "the true curves", "true"),
    )
}


@dataclass(frozen=True, eq=False)
class Standing:
    """A running job as `decide` sees it.

    Attributes:
        values: what it is believed to be worth on 0, 1, ..., nmax nodes.
        held: nodes that it has.
        nmin, nmax: what it can have.
        up, down: seconds that it stands still when it grows and shrinks.
        fixed: the size at which it is measured now; None: it may be resized.
    """

    values: Floats
    held: int
    nmin: int
    nmax: int
    up: float
    down: float
    fixed: int | None = None


def decide(policy: Policy, jobs: Sequence[Standing], nodes: int, horizon: float) -> tuple[int, ...]:
    """How many of the idle nodes each running job gets.

    Args:
        policy: by whom.
        jobs: in the order of the queue.
        nodes: idle nodes there are.
        horizon: T_fwd, seconds.
    """
    left = max(0, nodes - sum(job.fixed or 0 for job in jobs))
    free = [job for job in jobs if job.fixed is None]
    if policy.knows == "equal":
        counts = equal_split([j.nmin for j in free], [j.nmax for j in free], left)
    elif free:
        width = max(job.nmax for job in free) + 1
        values = np.full((len(free), width), -1.0)
        for row, job in zip(values, free, strict=True):
            row[: job.nmax + 1] = job.values[: job.nmax + 1]
        held = np.array([job.held for job in free])
        up, down = np.array([job.up for job in free]), np.array([job.down for job in free])
        least = np.array([job.nmin for job in free])
        counts = allocate_table(values, held, up, down, left, horizon, least)
    else:
        counts = ()
    shares = iter(counts)
    return tuple(next(shares) if job.fixed is None else job.fixed for job in jobs)
