"""When the mask changes, and how many units stay: pure arithmetic on step numbers. Card sections 2.5 and 2.6."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from .errors import FairpruneError
from .options import FairpruneOptions

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The steps of one training, counted from 1; the mask changes after a step.

    Attributes:
        size: d, prunable units.
        target: k, units that stay at the end.
        total: steps of the whole training.
        start: steps before pruning; the first change is after this step (before the first step where it is 0).
        reached: step after which a cubic density is at the target.
        freeze: step after which the mask stays.
        events: steps after which the mask changes, rising; empty where nothing is pruned.
        density: `FairpruneOptions.density`.
    """

    size: int
    target: int
    total: int
    start: int
    reached: int
    freeze: int
    events: tuple[int, ...]
    density: str

    @classmethod
    def of(cls, options: FairpruneOptions, size: int, total: int) -> Schedule:
        """The schedule of a training of ``total`` steps over ``size`` units.

        Raises:
            FairpruneError: no unit would stay, or the training is too short for the phases.
        """
        target = round((1 - options.sparsity) * size)
        if not target:
            raise FairpruneError(f"sparsity = {options.sparsity} leaves none of {size} prunable units")
        start = round(options.dense_share * total)
        left = total - start
        if left < 1:
            raise FairpruneError(f"dense_share = {options.dense_share} leaves no step of {total} for pruning")
        reached = start + max(1, round(options.target_share * left))
        freeze = max(reached, start + round(options.freeze_share * left))
        if target == size:
            return cls(size, target, total, start, start, start, (), options.density)
        if options.density == "once":
            events: tuple[int, ...] = (start,)
        elif options.density == "rounds":
            if options.rounds > left:
                raise FairpruneError(f"rounds = {options.rounds} do not fit into the {left} steps after the dense ones")
            events = tuple(start + number * left // options.rounds for number in range(options.rounds))
        else:
            freeze = min(freeze, total)
            events = (*range(start, freeze, options.mask_every), freeze)
        if options.density in ("once", "rounds"):
            reached = freeze = events[-1]
        return cls(size, target, total, start, reached, freeze, events, options.density)

    def due(self, step: int) -> bool:
        """Whether the mask changes after ``step``."""
        place = bisect_left(self.events, step)
        return place < len(self.events) and self.events[place] == step

    def kept(self, step: int) -> int:
        """Units that stay after the change of ``step`` (all of them before ``start``)."""
        if not self.events or step < self.start:
            return self.size
        if step >= self.freeze or self.density in ("constant", "once"):
            return self.target
        share = self.target / self.size
        if self.density == "rounds":
            done = bisect_right(self.events, step) / len(self.events)
            return round(self.size * float(share**done))
        if step >= self.reached:
            return self.target
        rest = 1 - (step - self.start) / (self.reached - self.start)
        return round(self.size * (share + (1 - share) * rest**3))
