"""Initial masks: how many weights each layer starts with, and where.

Erdos-Renyi-kernel (ERK) densities give small layers a larger share than large ones. Card section 3 [code].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import floor, prod

import torch
from torch import Tensor

from plait_chase.errors import ChaseError

__all__ = ["budget", "erk_densities", "random_masks"]

DISTRIBUTIONS = ("erk", "uniform")


def check_density(density: float) -> None:
    """Raise :class:`ChaseError` unless ``0 < density <= 1``."""
    if not 0.0 < density <= 1.0:
        raise ChaseError(f"density={density} is outside (0, 1]")


def budget(density: float, total: int) -> int:
    """Non-zero budget ``K = floor(density * total)``, in weights [code].

    The product is taken in decimals: 0.29 * 100 must give 29, not the 28 of binary floating point.

    Raises:
        ChaseError: density outside (0, 1].
    """
    check_density(density)
    return int(Decimal(repr(float(density))) * total)


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """ERK density of each layer; their mean weighted by layer size is ``density``.

    Args:
        shapes: layer name -> shape of its weight, e.g. ``(C_out, C_in, k, k)`` or ``(C_out, C_in)``.
        density: overall share of non-zero weights, in (0, 1].

    Returns:
        Layer name -> density in (0, 1], in the order of ``shapes``. Layers whose share would exceed 1 are dense.

    Raises:
        ChaseError: density outside (0, 1], or no layers.

    Source: card section 3 [code]; RigL (Evci et al. 2020) appendix.
    """
    check_density(density)
    if not shapes:
        raise ChaseError("no maskable layer: a model needs at least one weight with two or more dimensions")
    numel = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / numel[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    scale = 0.0
    while len(dense) < len(shapes):
        rest = [name for name in shapes if name not in dense]
        wanted = density * sum(numel[name] for name in rest) - (1.0 - density) * sum(numel[name] for name in dense)
        scale = wanted / sum(raw[name] * numel[name] for name in rest)
        highest = max(raw[name] for name in rest)
        if scale * highest <= 1.0:
            break
        dense.update(name for name in rest if raw[name] == highest)
    return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}


def layer_counts(shapes: Mapping[str, Sequence[int]], total: int, distribution: str = "erk") -> dict[str, int]:
    """Number of non-zeros per layer, summing to exactly ``total``.

    Each layer gets ``round(density_l * numel_l)``; the rounding error is absorbed by the last layer and, where that one
    is full or empty, by the layers before it, last first.

    Args:
        shapes: layer name -> weight shape.
        total: number of non-zeros over all layers, 1 to the number of weights.
        distribution: ``"erk"`` (default) or ``"uniform"`` (the same density everywhere).

    Raises:
        ChaseError: unknown distribution, no layers, or a total that does not fit.
    """
    if distribution not in DISTRIBUTIONS:
        raise ChaseError(f"distribution={distribution!r} is unknown; choose one of {', '.join(DISTRIBUTIONS)}")
    numel = {name: prod(shape) for name, shape in shapes.items()}
    size = sum(numel.values())
    if not 0 < total <= size:
        raise ChaseError(f"total={total} non-zeros do not fit {size} weights; the density is too small or too large")
    density = total / size
    shares = erk_densities(shapes, density) if distribution == "erk" else dict.fromkeys(shapes, density)
    counts = {name: min(numel[name], floor(shares[name] * numel[name] + 0.5)) for name in shapes}
    missing = total - sum(counts.values())
    for name in reversed(list(counts)):
        fixed = min(max(counts[name] + missing, 0), numel[name])
        missing -= fixed - counts[name]
        counts[name] = fixed
    return counts


def fill_random(mask: Tensor, ones: int, generator: torch.Generator) -> None:
    """Overwrite ``mask`` (any shape) in place with exactly ``ones`` ones at random places, zeros elsewhere."""
    order = torch.randperm(mask.numel(), generator=generator, device=generator.device)[:ones]
    flat = torch.zeros(mask.numel(), dtype=mask.dtype, device=mask.device)
    flat[order.to(mask.device)] = 1
    mask.copy_(flat.view(mask.shape))


def random_masks(
    shapes: Mapping[str, Sequence[int]],
    density: float,
    generator: torch.Generator,
    distribution: str = "erk",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Seeded random 0/1 masks with exactly ``floor(density * N)`` ones in total, N the number of weights.

    Args:
        shapes: layer name -> weight shape.
        density: share of ones in (0, 1].
        generator: the source of randomness; nothing else is read.
        distribution: ``"erk"`` (default) or ``"uniform"``.
        dtype: dtype of the masks, default float32.

    Returns:
        Layer name -> mask of the layer's shape, on the CPU.

    Raises:
        ChaseError: as :func:`layer_counts`.
    """
    counts = layer_counts(shapes, budget(density, sum(prod(s) for s in shapes.values())), distribution)
    masks = {name: torch.empty(tuple(shape), dtype=dtype) for name, shape in shapes.items()}
    for name, mask in masks.items():
        fill_random(mask, counts[name], generator)
    return masks
