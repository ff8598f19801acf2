"""What is pruned: single weights of chosen layers. Whole channels are in `plait_fairprune.channels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import FairpruneError

__all__ = ["Units", "Weights", "prunable_weights"]


class Units(Protocol):
    """Prunable units, in layers one after another, and their place in the tensors that a mask covers.

    Attributes:
        names: the masked tensors, as in ``model.named_parameters()``; lists below are aligned with it.
        layers: name -> units of each layer, in order; they sum to d.
    """

    names: tuple[str, ...]
    layers: dict[str, int]

    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """How large each unit's weights are, [d]."""
        ...

    def sums(self, products: Sequence[Tensor]) -> Tensor:
        """A hypergradient at every weight, summed over each unit, [d]."""
        ...

    def write(self, kept: Tensor, masks: Sequence[Tensor], *, last: bool) -> None:
        """Masks for the units that stay, boolean [d], in place; ``last``: none of the others comes back."""
        ...


class Weights:
    """Single weights: unit i is one entry of one tensor.

    Args:
        shapes: tensor name -> shape.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.names = tuple(shapes)
        self.shapes = [tuple(shape) for shape in shapes.values()]
        self.layers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}

    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """|w|, [d]."""
        return torch.cat([weight.detach().flatten() for weight in weights]).abs_()

    def sums(self, products: Sequence[Tensor]) -> Tensor:
        """The products themselves, [d]."""
        return torch.cat([product.flatten() for product in products])

    def write(self, kept: Tensor, masks: Sequence[Tensor], *, last: bool) -> None:
        """As of `Units`."""
        parts = torch.split(kept, list(self.layers.values()))
        torch._foreach_copy_(list(masks), [p.view(m.shape).to(m.dtype) for p, m in zip(parts, masks, strict=True)])


def prunable_weights(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> list[str]:
    """Names of the trained weights of convolutions and linear layers; no bias, no norm, nothing that is computed.

    Args:
        model: the network.
        include, exclude: name patterns, as in a shell.

    Raises:
        FairpruneError: there is none, or a pattern names no parameter.
    """
    parameters = dict(model.named_parameters())
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise FairpruneError(f"{option} = {pattern!r} matches no parameter of {type(model).__name__}")
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    weighted = {f"{name}.weight" if name else "weight" for name, m in model.named_modules() if isinstance(m, layers)}
    chosen = [
        name
        for name, parameter in parameters.items()
        if name in weighted and parameter.requires_grad and _matches(name, include) and not _matches(name, exclude)
    ]
    if not chosen:
        what = "no convolution or linear layer whose weight is trained"
        raise FairpruneError(f"{type(model).__name__} has {what} and is included: there is nothing to prune")
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
