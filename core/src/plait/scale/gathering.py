"""Sharing work between the ranks of a run, and bringing the results together: every row once, on every rank."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from plait.devices import seed_noise

if TYPE_CHECKING:
    from plait.data import Stream
    from plait.trainer import Trainer


def parts(rows: int, rank: int, world: int, batch: int) -> list[Tensor]:
    """The row numbers of this rank, cut into batches: int64, together one contiguous share of ``range(rows)``.

    The shares differ by at most one row, and every rank has the same number of batches, none of them empty, so that
    forward passes that exchange tensors stay in step.

    Args:
        rows: of all ranks together, at least ``world``.
        batch: rows of a batch at most, but for one more where shares are uneven.
    """
    mine = torch.arange(rows).tensor_split(world)[rank]
    return list(mine.tensor_split(max(1, math.ceil(rows // world / batch))))


def all_true(trainer: Trainer, mine: bool) -> bool:
    """Whether something is true on every rank."""
    count = trainer.sum_over_ranks(torch.tensor([float(mine)], device=trainer.device))
    return bool(int(count) == trainer.world)


def joined(trainer: Trainer, mine: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks, on every rank, on the CPU.

    Args:
        mine: this rank's rows [E_r, ...]; the number may differ between ranks.
    """
    there = mine.to(trainer.device)
    flag = there.dtype == torch.bool
    there = there.to(torch.uint8) if flag else there
    counts = [torch.zeros(1, dtype=torch.int64, device=trainer.device) for _ in range(trainer.world)]
    torch.distributed.all_gather(counts, torch.tensor([len(there)], device=trainer.device))
    sizes = [int(count) for count in counts]
    padded = there.new_zeros(max(sizes), *there.shape[1:])
    padded[: len(there)] = there
    found = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(found, padded)
    whole = torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)]).cpu()
    return whole.bool() if flag else whole


def mean(trainer: Trainer, value: Tensor) -> float:
    """The mean of a scalar of the batch over the examples of all ranks."""
    if trainer.world == 1:
        return float(value.item())
    total = trainer.sum_over_ranks(value.detach().float() * trainer.share)
    found: float = float(total.item()) / trainer.world
    return found


def equal_buffers(trainer: Trainer, model: nn.Module) -> None:
    """Give every rank the running statistics of rank 0, which are what a checkpoint keeps.

    Each rank has gathered them on its part of the batches.
    """
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


def shareable(value: Any, rows: int) -> bool:
    """Whether a result has one row for each example, and so can be brought together."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def prepare_step(trainer: Trainer, stream: Stream) -> None:
    """Before each step: this rank's share of the batch, and its own dropout.

    Dropout is a function of (seed, rank, step), so a resumed run draws what the unbroken one did.
    """
    trainer.share = stream.share(stream.drawn)
    seed_noise(trainer.recipe.seed, trainer.rank, trainer.step)


def spread(trainer: Trainer) -> nn.Module:
    """`plait.scale.sharded.shard`, imported only where it is used."""
    from plait.scale import sharded

    return sharded.shard(trainer)


def release(trainer: Trainer) -> None:
    """Let go of the wrapper that averages gradients, before parameters change their shape.

    It holds on to what autograd knows of the parameters, shapes included. A new one is made by ``trainer.refresh``.
    """
    trainer.network = trainer.model
    gc.collect()  # the wrapper is part of reference cycles
