"""Channel scores: one number per filter; the channels with the smallest are removed. Card section 6 [paper, code].

Every function takes the weight and its mask, both ``[C_out, C_in, ...]``, and returns ``[C_out]`` in double precision
(float32 on MPS). ``filter_numel`` and ``filter_kernels`` are the sizes of one filter in the ORIGINAL network: pass them
when the tensor was physically sliced meanwhile, so that a sliced network is scored exactly like the masked one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def umm(weight: Tensor, mask: Tensor, filter_numel: int | None = None, filter_kernels: int | None = None) -> Tensor:
    """Unmasked mean magnitude: mean of ``|weight * mask|`` over ALL entries of the filter, zeros included.

    Example: filter (2, 0, 0, 2) scores 1.
    """
    return _wide(weight * mask).abs().flatten(1).sum(1) / (filter_numel or weight[0].numel())


def masked_mean(
    weight: Tensor, mask: Tensor, filter_numel: int | None = None, filter_kernels: int | None = None
) -> Tensor:
    """Mean magnitude over the active entries only; 0 for a filter without any. Example: (2, 0, 0, 2) scores 2."""
    return _wide(weight * mask).abs().flatten(1).sum(1) / _wide(mask).flatten(1).sum(1).clamp(min=1)


def connection_density(
    weight: Tensor, mask: Tensor, filter_numel: int | None = None, filter_kernels: int | None = None
) -> Tensor:
    """Share of active entries of the filter. Example: a filter with mask (1, 0, 0, 1) scores 0.5."""
    return _wide(mask).flatten(1).sum(1) / (filter_numel or weight[0].numel())


def kernel_density(
    weight: Tensor, mask: Tensor, filter_numel: int | None = None, filter_kernels: int | None = None
) -> Tensor:
    """Share of the filter's input kernels (one per input channel) with any active entry."""
    kernels = mask.reshape(mask.shape[0], mask.shape[1], -1).amax(2)
    return _wide(kernels).sum(1) / (filter_kernels or mask.shape[1])


Score = Callable[[Tensor, Tensor, int | None, int | None], Tensor]

#: Scores that read one filter at a time.
FILTER_SCORES: dict[str, Score] = {
    "umm": umm,
    "umm-layer": umm,
    "masked-mean": masked_mean,
    "connection-density": connection_density,
    "kernel-density": kernel_density,
}

#: All score names. ``umm-layer`` is UMM over the mean UMM of the layer's living channels (card trap 9); ``random`` is a
#: seeded uniform number per living channel.
SCORE_NAMES = (*FILTER_SCORES, "random")


def group_scores(
    score: str,
    producers: Sequence[Sequence[str]],
    alive: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    generator: torch.Generator,
) -> list[Tensor]:
    """Score of every channel of every group; a coupled group scores the mean over its producers [inferred].

    Args:
        score: one of ``SCORE_NAMES``.
        producers: per group, the names of the weights whose filters are its channels.
        alive: per group, boolean ``[C]``.
        weights: tensor name -> weight ``[C, ...]``.
        masks: tensor name -> mask ``[C, ...]``.
        shapes: tensor name -> shape in the original network.
        generator: read by ``"random"`` only, one number per living channel.

    Returns:
        ``[C]`` per group on the CPU; entries of dead channels mean nothing.
    """
    if score == "random":
        counts = [int(living.sum()) for living in alive]
        drawn = torch.rand(sum(counts), dtype=torch.float64, generator=generator, device=generator.device).cpu()
        return [
            torch.zeros(living.numel(), dtype=torch.float64).masked_scatter(living, part)
            for living, part in zip(alive, torch.split(drawn, counts), strict=True)
        ]
    function = FILTER_SCORES[score]
    result: list[Tensor] = []
    for names, living in zip(producers, alive, strict=True):
        parts = [
            function(weights[name].detach(), masks[name], prod(shapes[name][1:]), int(shapes[name][1]))
            for name in names
        ]
        values = torch.stack(parts).mean(0).cpu()
        if score == "umm-layer" and (mean := values[living].mean()) > 0:
            values = values / mean
        result.append(values)
    return result
