"""Who decides, and by what it believes of the jobs' curves: MalleTrain and what it is compared with.

`decide` is the one engine: the simulator and the manager of real runs both ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .allocation import allocate_table, equal_split

__all__ = ["POLICY", "Policy", "Standing", "decide"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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
    knows: Literal["equal", "linear", "mean", "wrong", "table", "true"]
    exponent: float | None = None
    profiles: bool = False
    ascending: bool = False


POLICY = {
    p.name: p
    for p in (
        Policy("equal", "equal"),
        Policy("freetrain-linear", "linear"),
        Policy("freetrain-mean", "mean"),
        Policy("freetrain-wrong", "wrong"),
        Policy("passive", "table", exponent=1.0),
        Policy("malletrain", "table", profiles=True),
        Policy("malletrain-ascending", "table", profiles=True, ascending=True),
        Policy("oracle", "true"),
    )
}


@dataclass(frozen=True, eq=False)
class Standing:
    """The J jobs that run, in the order of the queue, as `decide` sees them.

    Attributes:
        values: what each is believed to be worth on 0, 1, ..., nmax nodes [J, nmax + 1].
        held: nodes that it has [J].
        up, down: seconds that it stands still when it grows and when it shrinks [J].
        fixed: nodes that it must have, such as the size at which it is measured now; -1: it may be resized [J].
        nmin: fewest nodes of a job.
    """

    values: Floats
    held: Integers
    up: Floats
    down: Floats
    fixed: Integers
    nmin: int = 1


def decide(policy: Policy, jobs: Standing, nodes: int, horizon: float) -> list[int]:
    """How many of the idle nodes each running job gets.

    Args:
        policy: by whom.
        jobs: what is known of them.
        nodes: idle nodes there are.
        horizon: T_fwd, seconds.
    """
    free, counts = jobs.fixed < 0, jobs.fixed.copy()
    left = max(0, nodes - int(counts[~free].sum()))
    least = np.full(int(free.sum()), jobs.nmin)
    if policy.knows == "equal":
        counts[free] = equal_split(least.tolist(), [jobs.values.shape[1] - 1] * len(least), left)
    else:
        up, down = jobs.up[free], jobs.down[free]
        counts[free] = allocate_table(jobs.values[free], jobs.held[free], up, down, left, horizon, least)
    shares: list[int] = counts.tolist()
    return shares
