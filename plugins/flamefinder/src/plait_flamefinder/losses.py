"""The three metric losses on class centres, per example: CL, TCL and TCCL. Card section 5.

All take latent vectors z [B, d], labels y int64 [B], centres c [K, d] with K >= 2, and weights w of the features, [d],
[B, d] or None for ones. With D(z, c) = 1/2 sum_j w_j (z_j - c_j)^2 and S(z, c) = 1 - cos(sqrt(w) z, sqrt(w) c)::

    CL    D(z, c_y)                                      Wen et al. 2016, whose sum over the batch is a mean here
    TCL   max(0, D(z, c_y) + m - min_{j != y} D(z, c_j))     He et al. 2018
    TCCL  max(0, S(z, c_y) + m - min_{j != y} S(z, c_j))     after Li et al. 2019; the form agrees with two public codes

Every centre counts, also those of classes that the batch lacks, and no square root is taken where it has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from .errors import FlamefinderError

__all__ = [
    "CentreLoss",
    "Distance",
    "MetricLosses",
    "TripletCentreLoss",
    "TripletCosineCentreLoss",
    "cosine_distances",
    "half_squared_distances",
]

Distance = Callable[[Tensor, Tensor], Tensor]
"""Another distance, (z [B, d], c [K, d]) -> [B, K]; those of pytorch-metric-learning are such, inverted ones too."""

EPS = 1e-8
"""Floor of the norms in the cosine; the cosine with a zero vector is 0, its distance 1."""


def half_squared_distances(z: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """D of every vector to every centre, [B, K]."""
    squares = (z.unsqueeze(1) - centres).square()
    if weights is not None:
        squares = squares * (weights if weights.ndim == 1 else weights.unsqueeze(1))
    return squares.sum(-1) / 2


def cosine_distances(z: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """S of every vector to every centre, [B, K], 0 to 2."""
    if weights is None:
        return 1 - normalize(z, eps=EPS) @ normalize(centres, eps=EPS).T
    weighted, scale = z * weights, weights.expand_as(z)
    of_z = (weighted * z).sum(-1, keepdim=True).clamp_min(EPS**2).sqrt()
    of_centres = (scale @ centres.square().T).clamp_min(EPS**2).sqrt()
    return 1 - weighted @ centres.T / (of_z * of_centres)


class _MetricLoss(nn.Module):
    """What the three share; ``margin`` >= 0 in units of the distance, another ``distance`` takes no weights."""

    def __init__(self, margin: float = 0.0, distance: Distance | None = None) -> None:
        super().__init__()
        if margin < 0:
            raise FlamefinderError(f"margin = {margin} must be >= 0.")
        self.margin, self.distance = margin, distance

    def distances(self, z: Tensor, centres: Tensor, weights: Tensor | None) -> Tensor:
        """[B, K] of the loss's own distance."""
        return half_squared_distances(z, centres, weights)

    def all_distances(self, z: Tensor, labels: Tensor, centres: Tensor, weights: Tensor | None) -> Tensor:
        """[B, K] of the chosen distance.

        Raises:
            FlamefinderError: fewer than two centres, shapes that do not fit, or weights for another distance.
        """
        if centres.ndim != 2 or len(centres) < 2:
            raise FlamefinderError(f"centres are [K, d] with K >= 2, not {list(centres.shape)}.")
        if z.ndim != 2 or z.shape[1] != centres.shape[1] or labels.shape != z.shape[:1]:
            shapes = f"{list(z.shape)}, {list(labels.shape)} and {list(centres.shape)}"
            raise FlamefinderError(f"latent vectors [B, d], labels [B] and centres [K, d] do not fit: {shapes}.")
        if self.distance is None:
            return self.distances(z, centres, weights)
        if weights is not None:
            raise FlamefinderError("another distance takes no weights of the features: leave out one of the two.")
        other = self.distance(z, centres)
        return -other if getattr(self.distance, "is_inverted", False) else other

    def of_distances(self, distances: Tensor, labels: Tensor) -> Tensor:
        """max(0, own + margin - nearest other), [B], of the distances to every centre [B, K]."""
        own = distances.gather(1, labels.unsqueeze(1))
        others = distances.scatter(1, labels.unsqueeze(1), torch.inf)
        return (own.squeeze(1) + self.margin - others.amin(1)).clamp_min(0)

    def forward(self, z: Tensor, labels: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of each example, [B]."""
        return self.of_distances(self.all_distances(z, labels, centres, weights), labels)


class CentreLoss(_MetricLoss):
    """CL: half the squared distance to the own centre."""

    def __init__(self, distance: Distance | None = None) -> None:
        super().__init__(0.0, distance)

    def of_distances(self, distances: Tensor, labels: Tensor) -> Tensor:
        """The distance to the own centre, [B], of those to every centre [B, K]."""
        return distances.gather(1, labels.unsqueeze(1)).squeeze(1)


class TripletCentreLoss(_MetricLoss):
    """TCL: the own centre nearer than the nearest other one, by a margin of half a squared distance."""

    def __init__(self, margin: float = 5.0, distance: Distance | None = None) -> None:
        super().__init__(margin, distance)


class TripletCosineCentreLoss(TripletCentreLoss):
    """TCCL: the same with the cosine distance 1 - cos."""

    def __init__(self, margin: float = 0.5, distance: Distance | None = None) -> None:
        super().__init__(margin, distance)

    def distances(self, z: Tensor, centres: Tensor, weights: Tensor | None) -> Tensor:
        """[B, K], 0 to 2."""
        return cosine_distances(z, centres, weights)


class MetricLosses(torch.autograd.Function):
    """The three losses of each example in one function, [3, B]: CL, TCL, TCCL, without weights of the features.

    They share differences, dot products and norms, and their gradients are two matrix products; as three modules the
    same small operations take four times as long. ``apply(z, labels, centres, margins)``, the margins of TCL and TCCL
    as a tensor [2, 1]. Differentiable once; the modules are what it is tested against.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, centres: Tensor, margins: Tensor) -> Tensor:
        """[3, B]."""
        own = labels.expand(2, -1).unsqueeze(2)
        norm_z = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(EPS)
        norm_c = torch.linalg.vector_norm(centres, dim=1).clamp_min_(EPS)
        cosine = (z @ centres.T).div_(norm_z).div_(norm_c)
        distances = torch.stack([half_squared_distances(z, centres), 1 - cosine])
        to_own = distances.gather(2, own)
        to_other, other = distances.scatter_(2, own, torch.inf).min(2, keepdim=True)
        hinge = (to_own - to_other).squeeze(2).add_(margins).clamp_min_(0)
        ctx.save_for_backward(z, centres, own, other, hinge, cosine, norm_z, norm_c)
        return torch.cat([to_own[0].T, hinge])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """By D and by S first, [2, B, K], then by what they are made of."""
        z, centres, own, other, hinge, cosine, norm_z, norm_c = ctx.saved_tensors
        active = (upstream[1:] * (hinge > 0)).unsqueeze(2)
        by_d, by_s = by = torch.zeros_like(cosine).expand(2, -1, -1).scatter(2, other, -active)
        active[0] += upstream[0].unsqueeze(1)
        by.scatter_(2, own, active)
        turning = by_s * cosine
        products = (by_s / norm_z).div_(norm_c).add_(by_d)
        of_z = (turning.sum(1, keepdim=True) / norm_z.square()).add_(by_d.sum(1, keepdim=True))
        of_c = (turning.sum(0) / norm_c.square()).add_(by_d.sum(0))
        grad_z = torch.addmm(z * of_z, products, centres, alpha=-1)
        grad_c = torch.addmm(centres * of_c.unsqueeze(1), products.T, z, alpha=-1)
        return grad_z, None, grad_c, None
