"""Throughput of two networks, timed in turns so that a busy machine slows both alike. Card "Metrics"."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from plait_chase.errors import ChaseError

__all__ = ["compare_throughput"]


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one network's forward pass, in seconds per batch."""

    median: float
    quartile_low: float
    quartile_high: float


@dataclass(frozen=True)
class Comparison:
    """Two networks timed on the same batch.

    Args:
        dense, shrunk: times of the two.
        speedup: median time of dense over that of shrunk.
        batch: samples per batch.
        repeats, warmups, threads: how it was measured.
        machine: processor or accelerator.
    """

    dense: Timing
    shrunk: Timing
    speedup: float
    batch: int
    repeats: int
    warmups: int
    threads: int
    machine: str

    @property
    def throughput(self) -> tuple[float, float]:
        """Samples per second of dense and shrunk, at the median."""
        return self.batch / self.dense.median, self.batch / self.shrunk.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data for reports."""
        return {**asdict(self), "throughput": list(self.throughput)}


def _summary(seconds: Sequence[float]) -> Timing:
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return Timing(median(seconds), low, high)


@torch.inference_mode()
def compare_throughput(
    dense: nn.Module,
    shrunk: nn.Module,
    batch: Tensor,
    repeats: int = 30,
    warmups: int = 5,
    threads: int | None = None,
) -> Comparison:
    """Time two networks in eval mode, a batch of one and a batch of the other in turn.

    Args:
        dense, shrunk: networks on the device of ``batch``; their training mode is restored.
        batch: input ``[B, ...]``.
        repeats: timed batches each, at least 2; default 30.
        warmups: untimed batches each first; default 5.
        threads: intra-op CPU threads while timing; default as they are. Restored afterwards.

    Raises:
        ChaseError: repeats below 2 or warmups below 0.
    """
    if repeats < 2 or warmups < 0:
        raise ChaseError(f"repeats={repeats} must be at least 2 and warmups={warmups} at least 0")
    device = batch.device
    before = torch.get_num_threads()
    modes = [(module, module.training) for net in (dense, shrunk) for module in net.modules()]
    times: tuple[list[float], list[float]] = ([], [])
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        used = torch.get_num_threads()
        dense.eval()
        shrunk.eval()
        for turn in range(warmups + repeats):
            for net, seconds in zip((dense, shrunk), times, strict=True):
                _wait(device)
                start = perf_counter()
                net(batch)
                _wait(device)
                if turn >= warmups:
                    seconds.append(perf_counter() - start)
    finally:
        torch.set_num_threads(before)
        for module, mode in modes:
            module.training = mode
    first, second = _summary(times[0]), _summary(times[1])
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return Comparison(first, second, first.median / second.median, batch.shape[0], repeats, warmups, used, machine)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
