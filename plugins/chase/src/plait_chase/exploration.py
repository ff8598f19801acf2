"""Drop and grow: exact global (or per-layer) selection of weights. Card section 5 [code].

All functions take lists of tensors, one per layer, in one fixed layer order. Ties are broken by (layer order, index),
and only positions that may be chosen are ever compared: a physically sliced network chooses like the masked one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plait_chase.errors import ChaseError

#: A number of weights: over all layers together, or one number per layer.
Counts = int | Sequence[int]


def require_finite(tensors: Mapping[str, Tensor], kind: str) -> None:
    """Raise :class:`ChaseError` naming the first tensor with NaN or infinite entries; ``kind`` is what it is called."""
    if not tensors:
        return
    # One device-to-host copy for all tensors.
    home = next(iter(tensors.values())).device
    finite = torch.stack([torch.isfinite(t).all().to(home) for t in tensors.values()]).tolist()
    for name, good in zip(tensors, finite, strict=True):
        if not good:
            raise ChaseError(f"{kind} {name!r} has non-finite entries: the mask update is refused")


def lowest(values: Tensor, count: int) -> Tensor:
    """Mark exactly the ``count`` smallest of ``values`` ``[n]`` (all if fewer), ties by index; boolean ``[n]``.

    ``values`` must not contain NaN.
    """
    n = values.numel()
    if count <= 0:
        return torch.zeros(n, dtype=torch.bool, device=values.device)
    if count >= n:
        return torch.ones(n, dtype=torch.bool, device=values.device)
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    threshold = torch.kthvalue(values, count).values
    below = values < threshold
    tied = values == threshold
    return below | (tied & (tied.cumsum(0) <= count - below.sum()))


def _select(values: Sequence[Tensor], counts: Counts) -> list[Tensor]:
    """Mark the smallest of the candidates' values, ``[n_l]`` per layer; boolean ``[n_l]`` per layer."""
    if not isinstance(counts, int):
        return [lowest(value, count) for value, count in zip(values, counts, strict=True)]
    if not values:
        return []
    home = values[0].device
    marked = lowest(torch.cat([value.to(home) for value in values]), counts)
    parts = torch.split(marked, [value.numel() for value in values])
    return [part.to(value.device) for part, value in zip(parts, values, strict=True)]


def prune(weights: Sequence[Tensor], masks: Sequence[Tensor], counts: Counts) -> None:
    """Zero, in place, the mask of the ``counts`` active weights of smallest magnitude.

    Args:
        weights: one tensor per layer, any shapes, finite.
        masks: 0/1 tensors of the same shapes and devices, changed in place.
        counts: how many to remove over all layers together, or per layer; more than there are removes all.
    """
    active = [mask != 0 for mask in masks]
    magnitudes = [weight.detach().abs()[where] for weight, where in zip(weights, active, strict=True)]
    for mask, where, drop in zip(masks, active, _select(magnitudes, counts), strict=True):
        mask[where] = (~drop).to(mask.dtype)


def grow(
    masks: Sequence[Tensor],
    allowed: Sequence[Tensor],
    counts: Counts,
    gradients: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Set, in place, the mask of ``counts`` inactive allowed positions: of largest ``|gradient|``, or random ones.

    Args:
        masks: 0/1 tensors, changed in place.
        allowed: boolean tensors of the same shapes: positions of living channels.
        counts: how many to add over all layers together, or per layer; more than there are free adds all.
        gradients: dense gradients of the same shapes, finite. None (default) grows at random (SET).
        generator: the source of randomness; required without gradients.
    """
    free = [allow & (mask == 0) for allow, mask in zip(allowed, masks, strict=True)]
    if gradients is not None:
        keys = [-gradient.detach().abs()[where] for gradient, where in zip(gradients, free, strict=True)]
    else:
        if generator is None:
            raise ChaseError("growth='random' needs a torch.Generator")
        sizes = [int(where.sum()) for where in free]
        drawn = torch.rand(sum(sizes), dtype=torch.float64, generator=generator, device=generator.device)
        keys = [part.to(where.device) for part, where in zip(torch.split(drawn, sizes), free, strict=True)]
    for mask, where, add in zip(masks, free, _select(keys, counts), strict=True):
        mask[where] = add.to(mask.dtype)
