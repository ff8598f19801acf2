"""The engine: which units live, after which step. It decides and changes masks and weights; it runs no network.

Card sections 2.3 to 2.6. One engine, two drivers: `plait_fairprune.bifp` in anybody's loop, `plait_fairprune.weave` in
a plait run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import FairpruneError
from .hypergradient import hypergradient
from .options import FairpruneOptions
from .schedule import Schedule
from .selection import keep_per_layer, keep_with_floors, layer_floors, layer_shares
from .units import Units

__all__ = ["BiFPEngine", "MaskGradients", "Update"]


@dataclass(frozen=True)
class MaskGradients:
    """What the mask's problem gives at the present weights, aligned with `Units.names`.

    Attributes:
        upper: gu, dense.
        lower: gl, for ``hypergradient = ig``; else None.
    """

    upper: Sequence[Tensor]
    lower: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Update:
    """What a mask step did: how many units stay, how many changed, how many of these came back, and remarks."""

    step: int
    kept: int
    changed: int
    revived: int
    notes: tuple[str, ...] = ()


class BiFPEngine:
    """Exact-k masks by scores that the hypergradient moves.

    The weights of pruned units are kept beside the network: a unit that comes back has the weight that it left with,
    and theta * gu, by which it may come back, is that of its own weight.

    Args:
        options: as of `FairpruneOptions`.
        total_steps: T.
        units: what is pruned.
        weights: tensor name -> parameter, at least those of the units; changed in place at a mask step.
        masks: tensor name -> 0/1 tensor of its shape and type; changed in place.
        generator: on the CPU; of the scores ``random`` and of the control.

    Raises:
        FairpruneError: the sparsity leaves a layer without units, or the training is too short.
    """

    def __init__(
        self,
        options: FairpruneOptions,
        total_steps: int,
        units: Units,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self.options, self.units, self.generator = options, units, generator
        self._parameters = [weights[name] for name in units.names]
        self.masks = [masks[name] for name in units.names]
        sizes = list(units.layers.values())
        self.schedule = Schedule.of(options, sum(sizes), total_steps)
        self.floors = layer_floors(sizes, min(options.layer_floor, (1 - options.sparsity) / 2))
        if sum(self.floors) > self.schedule.target:
            raise FairpruneError(
                f"sparsity = {options.sparsity} leaves {self.schedule.target} of {sum(sizes)} units, fewer than the"
                f" {sum(self.floors)} that layer_floor = {options.layer_floor} keeps in {len(sizes)} layers"
            )
        device = self.weights[0].device
        self.kept = torch.ones(sum(sizes), dtype=torch.bool, device=device)
        self.moved = torch.zeros(sum(sizes), device=device)
        self.base: Tensor | None = None
        self.unit = 0.0
        self.hidden = [torch.zeros_like(weight) for weight in self.weights]
        self.first = [weight.clone() for weight in self.weights] if options.rewind else []
        self.history: list[list[int]] = []

    @property
    def weights(self) -> list[Tensor]:
        """The present weights of the units' tensors, masked ones zero; writing to them writes to the network."""
        return [parameter.detach() for parameter in self._parameters]

    @property
    def learns(self) -> bool:
        """Whether mask steps need the gradients of the mask's problem."""
        return self.options.learn_mask and self.options.hypergradient != "random" and self.options.mask_rate > 0

    def due(self, step: int) -> bool:
        """Whether a mask step follows weight step ``step`` (0: comes before the first)."""
        return self.schedule.due(step)

    def final(self, step: int) -> bool:
        """Whether the mask stays as it is after ``step``."""
        return not self.schedule.events or step >= self.schedule.events[-1]

    @torch.no_grad()
    def dense(self) -> list[Tensor]:
        """The weights without the mask, aligned with the units' tensors."""
        return list(torch._foreach_add(self.weights, self.hidden))

    @torch.no_grad()
    def update(
        self, step: int, gradients: MaskGradients | None = None, importance: Callable[[], Tensor] | None = None
    ) -> Update:
        """One mask step: move the scores, keep the k best, put back the weights of what returns.

        Args:
            step: the weight step just made.
            gradients: needed where `learns`.
            importance: the score [d] of ``snip``, ``fpgm`` and ``fairgrape``.

        Raises:
            FairpruneError: weights or gradients that are not finite; nothing has changed then.
        """
        theta = self.dense()
        given = None
        if self.options.scores in ("snip", "fpgm", "fairgrape"):
            assert importance is not None
            with torch.enable_grad():
                given = importance()
        scores = given if given is not None else self._scores(theta, gradients)
        if not bool(torch.isfinite(scores).all()):
            raise FairpruneError(f"mask step after step {step}: scores are not finite; lower the learning rate")
        k = self.schedule.kept(step)
        sizes = list(self.units.layers.values())
        if self.options.scope == "layer":
            kept = keep_per_layer(scores, layer_shares(sizes, k, self.floors), sizes)
        else:
            kept = keep_with_floors(scores, k, sizes, self.floors)
        changed, revived = int((kept != self.kept).sum()), int((kept & ~self.kept).sum())
        self.kept = kept
        self.units.write(kept, self.masks, last=self.final(step))
        if self.options.rewind:
            theta = [weight.clone() for weight in self.first]
        torch._foreach_copy_(self.weights, list(torch._foreach_mul(theta, self.masks)))
        self.hidden = list(torch._foreach_sub(theta, self.weights))
        self.history.append([step, k, changed, revived])
        return Update(step, k, changed, revived, self._remarks())

    def _scores(self, theta: list[Tensor], gradients: MaskGradients | None) -> Tensor:
        options = self.options
        if self.base is None:
            self._begin(theta)
        sizes = self.units.sizes(theta) if options.scores == "anchored" else self.base
        assert sizes is not None
        if options.learn_mask:
            self.moved -= options.mask_rate * self.unit * self._direction(theta, gradients)
        return sizes + self.moved

    def _begin(self, theta: list[Tensor]) -> None:
        """The scores at the start of pruning, and the unit in which they move: their mean size."""
        self.base = self.units.sizes(theta)
        if self.options.scores == "random":
            self.base = torch.rand(len(self.base), generator=self.generator).to(self.base)
        self.unit = float(self.base.mean())

    def _direction(self, theta: list[Tensor], gradients: MaskGradients | None) -> Tensor:
        """G over its root mean square, [d]."""
        if self.options.hypergradient == "random":
            total = torch.randn(len(self.moved), generator=self.generator).to(self.moved)
        else:
            assert gradients is not None
            ridge = self.options.ridge if self.options.hypergradient == "ig" else None
            products = hypergradient(theta, gradients.upper, self.masks, gradients.lower, ridge)
            total = self.units.sums(products).to(self.moved)
        return total / (total.square().mean().sqrt() + 1e-12)

    def _remarks(self) -> tuple[str, ...]:
        """Layers that would have lost everything but their floor."""
        if not self.options.layer_floor or self.options.scope == "layer":
            return ()
        counts = [int(part.sum()) for part in torch.split(self.kept, list(self.units.layers.values()))]
        low = [n for n, count, floor in zip(self.units.layers, counts, self.floors, strict=True) if count == floor]
        return (f"layers at their floor: {', '.join(low)}",) if low and self.final(self.history[-1][0]) else ()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Layer -> (units that stay, units)."""
        parts = torch.split(self.kept, list(self.units.layers.values()))
        return {name: (int(part.sum()), len(part)) for name, part in zip(self.units.layers, parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Scores, hidden weights and history; the masks and the generator are the driver's to keep."""
        return {
            "moved": self.moved,
            "base": self.base,
            "unit": self.unit,
            "kept": self.kept,
            "hidden": self.hidden,
            "first": self.first,
            "history": [list(entry) for entry in self.history],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, on a freshly built engine."""
        self.moved.copy_(state["moved"])
        self.base = None if state["base"] is None else state["base"].to(self.moved)
        self.unit = float(state["unit"])
        self.kept.copy_(state["kept"])
        for kept, saved in ((self.hidden, state["hidden"]), (self.first, state["first"])):
            for tensor, value in zip(kept, saved, strict=True):
                tensor.copy_(value)
        self.history = [[int(number) for number in entry] for entry in state["history"]]
