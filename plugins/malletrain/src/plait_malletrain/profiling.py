"""The Job Profiling Advisor: which job is measured when, at which sizes (card, section 4).

Inverse order: one job at a time grows once to the largest size and then only shrinks, since leaving is cheaper than
joining. It trains all the while; only the stalls are a cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["Profile", "begun", "ceiling", "profile_sizes", "worthwhile"]

K = TypeVar("K")
WORTH = 20.0
"""A profile pays if the job will run so many times as long as it stands still for it."""


def profile_sizes(most: int, nmin: int = 1, ascending: bool = False) -> list[int]:
    """The sizes of a profile: powers of two up to ``most``, from the largest, and nmin where it is above 1."""
    powers = {2**i for i in range(most.bit_length()) if nmin <= 2**i <= most}
    sizes = sorted(powers | ({nmin} if 1 < nmin <= most else set()), reverse=True)
    return sizes[::-1] if ascending else sizes


def ceiling(nodes: int, most: int, others_nmin: Sequence[int], shares: float = math.inf) -> int:
    """The largest size up to ``most`` that leaves every other running job its nmin nodes; below 2 nothing is profiled.

    With ``shares`` also at most so many fair shares N / J: a profile that takes more makes many others shrink.
    """
    fair = max(2, math.ceil(min(1e9, shares * nodes / (len(others_nmin) + 1))))
    return min(most, nodes - sum(others_nmin), fair)


def worthwhile(remaining_seconds: float, sizes: int, up: float, down: float) -> bool:
    """Whether a profile of so many sizes pays: its stalls are up + (sizes - 1) down seconds."""
    return remaining_seconds >= WORTH * (up + (sizes - 1) * down)


class Profile(Generic[K]):
    """A profile under way.

    Attributes:
        job: whose.
        sizes: what is still to be measured; the first now.
        measured: sizes that are done.
        due: when the present measurement ends, None while it waits for its nodes.
    """

    def __init__(self, job: K, sizes: Sequence[int]) -> None:
        self.job, self.sizes = job, list(sizes)
        self.measured: list[int] = []
        self.due: float | None = None

    @property
    def size(self) -> int:
        """The size that is measured now."""
        return self.sizes[0]

    def lost(self, remaining: int) -> None:
        """Nodes were taken away: that was a scale-down; what remains is measured, and larger sizes are dropped."""
        if remaining < self.size:
            self.sizes = [remaining, *(size for size in self.sizes if size < remaining)]
        self.due = None

    def fits(self, room: int) -> bool:
        """Whether a size is left where the job can have ``room`` nodes; the present one is given up if too large."""
        if self.size > room:
            self.sizes = [size for size in self.sizes if size <= room]
            self.due = None
        return bool(self.sizes)

    def step_done(self) -> bool:
        """The measurement is made; whether the profile has ended."""
        self.measured.append(self.sizes.pop(0))
        self.due = None
        return not self.sizes


def begun(
    job: K, nodes: int, most: int, nmin: int, others_nmin: Sequence[int], shares: float = 1.0, ascending: bool = False
) -> Profile[K] | None:
    """A profile of a job up to ``most`` nodes; None where it is no time to profile. Arguments as of `ceiling`."""
    largest = ceiling(nodes, most, others_nmin, shares)
    sizes = profile_sizes(largest, nmin, ascending)
    return Profile(job, sizes) if largest >= 2 and len(sizes) >= 2 else None
