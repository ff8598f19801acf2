"""Rules that judge whole models by their distances: Krum, multi-Krum, RFA. Card, baselines and defences."""

from __future__ import annotations

import torch
from torch import Tensor

from plait_dbadfl.defences.base import Block, Defence, lengths, require

__all__ = ["RFA", "Krum", "MultiKrum"]

EXACT_UP_TO = 64
"""Models up to which squared distances are summed coordinate by coordinate instead of from inner products."""


class Krum(Defence):
    """The model with the smallest sum of squared distances to its n-f-2 nearest others [known] (Blanchard et al. 2017).

    Args:
        f: attackers assumed among the n models that a node looks at. n >= f+3 is needed; the guarantee needs n >= 2f+3.
    """

    name = "krum"
    selects = True

    def __init__(self, f: int = 0) -> None:
        require(self.name, f >= 0, f"f={f} is negative")
        self.f = f

    def legal(self, count: int) -> str | None:
        if count >= self.f + 3:
            return None
        return f"has {count} models, and f={self.f} needs {self.f + 3}; f can be at most {count - 3} there"

    def chosen(self, block: Block) -> Tensor:
        """Selected places, bool [n, m]."""
        best = krum_scores(block.members, block.mask, self.f).argmin(1, keepdim=True)
        return torch.zeros_like(block.mask).scatter_(1, best, True)

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        chosen = self.chosen(block)
        return equal_mean(block.members, chosen), chosen


class MultiKrum(Krum):
    """The mean of the m models with the smallest Krum scores.

    Args:
        f: as for `Krum`.
        m: models taken; default n - f at every node. Not more than n.
    """

    name = "multi-krum"

    def __init__(self, f: int = 0, m: int | None = None) -> None:
        super().__init__(f)
        require(self.name, m is None or m >= 1, f"m={m} must be at least 1")
        self.m = m

    def legal(self, count: int) -> str | None:
        if self.m is not None and self.m > count:
            return f"has {count} models, and m={self.m} would be taken"
        return super().legal(count)

    def chosen(self, block: Block) -> Tensor:
        scores = krum_scores(block.members, block.mask, self.f)
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        take = block.counts - self.f if self.m is None else torch.full_like(block.counts, self.m)
        chosen: Tensor = rank < take[:, None]
        return chosen


class RFA(Defence):
    """Geometric median by the smoothed Weiszfeld iteration, from the mean (Pillutla et al. 2022).

    Args:
        nu: smallest distance that counts, default 1e-6 [code].
        iterations: default 10 [code].
    """

    name = "rfa"

    def __init__(self, nu: float = 1e-6, iterations: int = 10) -> None:
        require(self.name, nu > 0, f"nu={nu} must be positive")
        require(self.name, iterations >= 1, f"iterations={iterations} must be at least 1")
        self.nu, self.iterations = nu, iterations

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        return geometric_median(block.members, block.mask, self.nu, self.iterations), None


def equal_mean(members: Tensor, chosen: Tensor) -> Tensor:
    """Mean [n, P] of the chosen [n, m] of members [n, m, P]; zero where none is."""
    share = chosen.to(members) / chosen.sum(1, keepdim=True).clamp(min=1)
    return weighted_sum(share, members)


def weighted_sum(weights: Tensor, members: Tensor) -> Tensor:
    """[n, P] of weights [n, m] and members [n, m, P]."""
    return torch.bmm(weights.unsqueeze(1), members).squeeze(1)


def squared_distances(members: Tensor) -> Tensor:
    """Between the models of a row: [n, m, m] of members [n, m, P]."""
    if members.shape[1] <= EXACT_UP_TO:
        return torch.cdist(members, members, compute_mode="donot_use_mm_for_euclid_dist").square()
    # Inner products lose the difference of near models far from the origin; hence double precision and a nearer origin.
    near = (members - members[:, :1]).double()
    products = torch.bmm(near, near.transpose(1, 2))
    squares = products.diagonal(dim1=1, dim2=2)
    return (squares[:, :, None] + squares[:, None, :] - 2 * products).clamp(min=0).to(members)


def krum_scores(members: Tensor, mask: Tensor, f: int) -> Tensor:
    """Sum of squared distances to the n-f-2 nearest others, [n, m]; infinite at padding."""
    distances = squared_distances(members)
    m = members.shape[1]
    itself = torch.eye(m, dtype=torch.bool, device=members.device)
    ranked = distances.masked_fill(itself | ~mask[:, None, :], float("inf")).sort(-1).values
    nearest = torch.arange(m, device=members.device) < (mask.sum(1) - f - 2)[:, None]
    return ranked.masked_fill(~nearest[:, None, :], 0.0).sum(-1).masked_fill(~mask, float("inf"))


def geometric_median(members: Tensor, mask: Tensor, nu: float, iterations: int) -> Tensor:
    """[n, P] of members [n, m, P] where mask [n, m]: ``iterations`` of Weiszfeld, weights 1 / max(nu, distance)."""
    centre = equal_mean(members, mask)
    for _ in range(iterations):
        weights = mask / lengths(members - centre[:, None]).clamp(min=nu)
        centre = weighted_sum(weights / weights.sum(1, keepdim=True), members)
    return centre
