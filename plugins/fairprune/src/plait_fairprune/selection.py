"""Exact selection: which k of d units stay, no layer falling below its floor. Card sections 2.5 and 8."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import torch
from torch import Tensor

from .errors import FairpruneError

__all__ = ["keep_largest", "keep_per_layer", "keep_with_floors", "layer_floors", "layer_shares"]


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """Exactly the k largest, ties by index: boolean [d].

    Args:
        scores: [d], finite (inf is allowed: it comes first).
        k: 0 <= k <= d.
    """
    size = scores.numel()
    if k >= size:
        return torch.ones(size, dtype=torch.bool, device=scores.device)
    if k <= 0:
        return torch.zeros(size, dtype=torch.bool, device=scores.device)
    threshold = scores.kthvalue(size - k + 1).values
    kept = scores > threshold
    # a threshold alone keeps too many or too few where scores are equal
    equal = (scores == threshold).nonzero().flatten()
    kept[equal[: k - int(kept.sum())]] = True
    return kept


def keep_with_floors(scores: Tensor, k: int, sizes: Sequence[int], floors: Sequence[int]) -> Tensor:
    """Exactly the k largest over all layers, but at least ``floors[l]`` of each layer: boolean [d].

    Args:
        scores: [d], the layers one after another.
        k: at least the sum of the floors.
        sizes: units of each layer, which sum to d.
        floors: smallest number that stays in each layer.
    """
    kept = keep_largest(scores, k)
    wanted = torch.tensor(list(floors))
    raised: set[int] = set()
    while True:
        counts = _counts(kept, sizes)
        low = [layer for layer in (counts < wanted).nonzero().flatten().tolist() if layer not in raised]
        if not low:
            return kept
        if not raised:
            scores = scores.clone()
        for layer in low:
            start = sum(sizes[:layer])
            part = scores[start : start + sizes[layer]]
            part[keep_largest(part, floors[layer])] = torch.inf
        raised.update(low)
        kept = keep_largest(scores, k)


def keep_per_layer(scores: Tensor, counts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The ``counts[l]`` largest of each layer: boolean [d]."""
    parts = torch.split(scores, list(sizes))
    return torch.cat([keep_largest(part, count) for part, count in zip(parts, counts, strict=True)])


def layer_floors(sizes: Sequence[int], share: float) -> list[int]:
    """Smallest number of units that stays in each layer: ``max(1, ceil(share * size))``."""
    # the tiny subtraction undoes binary rounding of an exact product
    return [min(size, max(1, ceil(share * size - 1e-9))) for size in sizes]


def layer_shares(sizes: Sequence[int], k: int, floors: Sequence[int]) -> list[int]:
    """Divide k over the layers by their size, by the largest remainders, none below its floor.

    Raises:
        FairpruneError: the floors take more than k.
    """
    if sum(floors) > k:
        raise FairpruneError(f"{k} units cannot be divided over layers that keep at least {sum(floors)}")
    total = sum(sizes)
    exact = [k * size / total for size in sizes]
    counts = [max(low, floor(share + 1e-9)) for low, share in zip(floors, exact, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda layer: (counts[layer] - exact[layer], layer))
    while sum(counts) < k:
        for layer in by_remainder:
            if sum(counts) < k and counts[layer] < sizes[layer]:
                counts[layer] += 1
    while sum(counts) > k:
        for layer in reversed(by_remainder):
            if sum(counts) > k and counts[layer] > floors[layer]:
                counts[layer] -= 1
    return counts


def _counts(kept: Tensor, sizes: Sequence[int]) -> Tensor:
    """Kept units of each layer, int64 [layers] on the CPU."""
    ends = torch.tensor(list(sizes)).cumsum(0) - 1
    running = kept.cumsum(0)[ends.to(kept.device)].cpu()
    return running.diff(prepend=running.new_zeros(1))
