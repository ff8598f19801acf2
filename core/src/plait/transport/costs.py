"""Pairwise costs between the rows of two point sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.transport.errors import TransportError

TINY = 1e-12
EXACT_WIDTH = 32
"""Up to this many coordinates distances are summed from differences; above, by the faster matrix product."""


def safe_sqrt(x: Tensor) -> Tensor:
    """``sqrt(x + 1e-12)``, whose gradient is finite at 0 and set to 0 there."""
    return torch.where(x > 0, (x + TINY).sqrt(), TINY**0.5)


class _SquaredEuclidean(torch.autograd.Function):
    """Squared distances without the [*, n, m, d] tensor of differences; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        mode = "donot_use_mm_for_euclid_dist" if x.shape[-1] <= EXACT_WIDTH else "use_mm_for_euclid_dist_if_necessary"
        return torch.cdist(x, y, compute_mode=mode).square_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        (g,) = gradients
        return 2 * (x * g.sum(-1, keepdim=True) - g @ y), 2 * (y * g.sum(-2).unsqueeze(-1) - g.mT @ x)


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances.

    Args:
        x: points [*, n, d].
        y: points [*, m, d], of the same leading shape and type.

    Returns:
        [*, n, m]. Above 32 coordinates and 25 points the distances come from a matrix product, whose rounding error
        is that of the squared norms, not of the distance.

    Raises:
        TransportError: shapes that do not fit.
    """
    _check(x, y)
    distances: Tensor = _SquaredEuclidean.apply(x, y)
    return distances


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, ``sqrt(squared + 1e-12)``; the gradient is 0 (not NaN) where two points are equal.

    Arguments, result and errors as `squared_euclidean`.
    """
    return safe_sqrt(squared_euclidean(x, y))


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """One minus the cosine of the angle, in [0, 2]; 1 for a zero vector.

    Arguments, result and errors as `squared_euclidean`.
    """
    _check(x, y)
    units = [p / (p.square().sum(-1, keepdim=True) + TINY).sqrt() for p in (x, y)]
    return 1 - units[0] @ units[1].mT


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
}


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim < 2 or y.ndim < 2 or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1] or x.dtype != y.dtype:
        raise TransportError(
            f"points x {tuple(x.shape)} {x.dtype} and y {tuple(y.shape)} {y.dtype}: give [*, n, d] and [*, m, d] with "
            "the same leading shape, width and type."
        )
