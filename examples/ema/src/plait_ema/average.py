"""Exponential moving average of weights, with the decay's warm-up of TensorFlow's ``ExponentialMovingAverage``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

HALVES = (torch.float16, torch.bfloat16, torch.complex32)


def decay_after(steps: int, decay: float, warmup: bool) -> float:
    """Share of the average that is kept when ``steps`` states were averaged before: 0 at first, then ``decay``.

    Args:
        steps: t, >= 0.
        decay: 0 <= decay < 1.
        warmup: at most ``(1 + t) / (10 + t)``, so that a short run is not an average of its first steps.
    """
    kept = min(decay, (1 + steps) / (10 + steps)) if warmup else decay
    return kept if steps else 0.0


def ema(decay: float = 0.999, warmup: bool = True) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """A ``multi_avg_fn`` for `torch.optim.swa_utils.AveragedModel`: ``average <- d * average + (1 - d) * weights``.

    Returns:
        A function of the averages (changed in place), the present weights, and how many states were averaged before. It
        raises ValueError for averages in half precision.
    """

    def update(averages: list[Tensor], weights: list[Tensor], steps: Tensor | int) -> None:
        check_precision({f"weight {number}": weight for number, weight in enumerate(averages)})
        average = get_ema_multi_avg_fn(decay_after(int(steps), decay, warmup))  # type: ignore[no-untyped-call]
        average(averages, weights, steps)

    return update


def check_precision(weights: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` that names a weight in half precision: a step of ``1 - decay`` would be rounded away in it."""
    for name, weight in weights.items():
        if weight.dtype in HALVES:
            raise ValueError(
                f"{name!r} is {weight.dtype}, in which an average does not move: its steps are rounded away. Keep the "
                "weights in float32 (precision = 'bf16' computes in bfloat16 all the same)"
            )


@torch.no_grad()
def put(average: Mapping[str, Tensor], model: nn.Module, trained: nn.Module) -> nn.Module:
    """Replace the weights of a copy of the trained model by their averages; buffers stay the trained model's.

    Raises:
        ValueError: ``model`` is no copy of ``trained`` any more, so what changed it would be lost.
    """
    weights = dict(trained.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in weights or parameter.dtype != weights[name].dtype or not torch.equal(parameter, weights[name]):
            raise ValueError(f"{name!r} was changed in the export before the averages could go in; list ema earlier")
        parameter.copy_(average[name])
    return model
