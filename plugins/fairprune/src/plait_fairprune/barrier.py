"""The loss on the straight line between two networks: whether a barrier lies between them (the paper's figure 8)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import FairpruneError

__all__ = ["Interpolation", "interpolate"]


@dataclass(frozen=True)
class Interpolation:
    """Losses on the line: ``at[i]`` is the share of the second network, 0 to 1."""

    at: Sequence[float]
    losses: Sequence[float]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends; 0 where it never does."""
        first, last = self.losses[0], self.losses[-1]
        rises = (loss - (1 - t) * first - t * last for t, loss in zip(self.at, self.losses, strict=True))
        return max(0.0, *rises)


@torch.no_grad()
def interpolate(
    first: nn.Module, second: nn.Module, loss: Callable[[nn.Module], float], points: int = 21
) -> Interpolation:
    """The loss of (1 - t) first + t second, parameters and running statistics alike.

    Args:
        first, second: two networks of one architecture; not changed.
        loss: of a network in eval mode.
        points: places on the line, both ends included; at least 2.

    Raises:
        FairpruneError: fewer points, or networks that differ in the name or shape of a tensor.
    """
    if points < 2:
        raise FairpruneError(f"points = {points}: the line has two ends, so at least 2")
    states = [model.state_dict() for model in (first, second)]
    for name in sorted(states[0].keys() ^ states[1].keys()):
        raise FairpruneError(f"{name!r} is in one of the two networks only: there is no line between them")
    for name, tensor in states[0].items():
        if tensor.shape != states[1][name].shape:
            shapes = f"{list(tensor.shape)} and {list(states[1][name].shape)}"
            raise FairpruneError(f"{name!r} is {shapes} in the two networks: there is no line between them")
    between = copy.deepcopy(first).eval()
    at = [number / (points - 1) for number in range(points)]
    losses = []
    for t in at:
        mixed: dict[str, Tensor] = {
            name: torch.lerp(tensor, states[1][name].to(tensor), t) if tensor.is_floating_point() else tensor
            for name, tensor in states[0].items()
        }
        between.load_state_dict(mixed)
        losses.append(float(loss(between)))
    return Interpolation(at, losses)
