"""The Job Profiling Advisor: which job is measured when, at which sizes (card, section 4).

Inverse order: one job at a time grows once to the largest size and then only shrinks, since leaving is cheaper than
joining. It trains all the while; only the stalls are a cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Profile", "ceiling", "profile_sizes", "worthwhile"]

WORTH = 20.0
"""A profile pays if the job will run so many times as long as it stands still for it."""


def profile_sizes(most: int, nmin: int = 1, ascending: bool = False) -> list[int]:
    """The sizes of a profile: powers of two up to ``most``, from the largest, and nmin where it is above 1."""
    powers = {2**i for i in range(most.bit_length()) if nmin <= 2**i <= most}
    sizes = sorted(powers | ({nmin} if 1 < nmin <= most else set()), reverse=True)
    return sizes[::-1] if ascending else sizes


def ceiling(nodes: int, nmax: int, profile_max: int, others_nmin: Sequence[int], shares: float = math.inf) -> int:
    """The largest size that leaves every other running job its nmin nodes; below 2 it is no time to profile.

    With ``shares`` also at most so many fair shares N / J: a profile that takes more makes many others shrink.
    """
    fair = max(2, math.ceil(min(1e9, shares * nodes / (len(others_nmin) + 1))))
    return min(nmax, profile_max, nodes - sum(others_nmin), fair)


def worthwhile(remaining_seconds: float, sizes: int, up: float, down: float) -> bool:
    """Whether a profile of so many sizes pays: its stalls are up + (sizes - 1) down seconds."""
    return remaining_seconds >= WORTH * (up + (sizes - 1) * down)


class Profile:
    """A profile under way.

    Attributes:
        job: whose.
        sizes: what is still to be measured; the first now.
        measured: sizes that are done.
        began: seconds.
        due: when the present measurement ends, None while it waits for its nodes.
    """

    def __init__(self, job: int, sizes: Sequence[int], began: float) -> None:
        self.job, self.sizes, self.began = job, list(sizes), began
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

    def step_done(self) -> bool:
        """The measurement is made; whether the profile has ended."""
        self.measured.append(self.sizes.pop(0))
        self.due = None
        return not self.sizes
