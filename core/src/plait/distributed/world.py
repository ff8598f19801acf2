"""The processes of a run as the training code sees them: sums, means and rows brought together, every row once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

NOTHING = contextlib.nullcontext()


class World:
    """This process among those that train together, on its device.

    Args:
        device: where this process computes.
        accelerator: what has brought several processes together, None for one process alone.

    Attributes:
        rank, size: this process of how many.
    """

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.device = device
        self._accelerator = accelerator
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.size = accelerator.num_processes if accelerator is not None else 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks (itself on one process)."""
        if self._accelerator is None or self.size == 1:
            return value
        total: Tensor = self._accelerator.reduce(value.to(self.device), "sum")
        return total.to(value.device)

    def mean(self, value: Tensor, share: float) -> float:
        """The mean of a scalar over the batch's examples on all ranks; ``share``: own rows over a rank's mean rows."""
        if self.size == 1:
            return float(value.item())
        return float(self.sum(value.detach().float() * share).item()) / self.size

    def all_true(self, mine: bool) -> bool:
        """Whether something is true on every rank."""
        return int(self.sum(torch.tensor([float(mine)], device=self.device))) == self.size

    def any_true(self, mine: bool) -> bool:
        """Whether something is true on some rank."""
        return bool(self.sum(torch.tensor([float(mine)], device=self.device)) > 0)

    def all_equal(self, mine: int) -> bool:
        """Whether a number is the same on every rank."""
        own = torch.tensor([mine], dtype=torch.int64, device=self.device)
        return int(self.sum(own.clone())) == self.size * mine

    def joined(self, mine: Tensor) -> Tensor:
        """The rows of all ranks in the order of the ranks, on every rank, on the CPU.

        Args:
            mine: this rank's rows [E_r, ...]; the number may differ between ranks.
        """
        there = mine.to(self.device)
        flag = there.dtype == torch.bool
        there = there.to(torch.uint8) if flag else there
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        torch.distributed.all_gather(counts, torch.tensor([len(there)], device=self.device))
        sizes = [int(count) for count in counts]
        padded = there.new_zeros(max(sizes), *there.shape[1:])
        padded[: len(there)] = there
        gathered = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(gathered, padded)
        whole = torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]).cpu()
        return whole.bool() if flag else whole

    def equal_buffers(self, model: nn.Module) -> None:
        """Give every rank the running statistics of rank 0, which are what a checkpoint keeps.

        Each rank has gathered them on its part of the batches.
        """
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)

    def parts(self, rows: int, batch: int) -> list[Tensor]:
        """The row numbers of this rank, cut into batches: int64, together one contiguous share of ``range(rows)``.

        The shares differ by at most one row, and every rank has the same number of batches, none of them empty, so that
        forward passes that exchange tensors stay in step.

        Args:
            rows: of all ranks together, at least ``size``.
            batch: rows of a batch at most, but for one more where shares are uneven.
        """
        mine = torch.arange(rows).tensor_split(self.size)[self.rank]
        return list(mine.tensor_split(max(1, math.ceil(rows // self.size / batch))))

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the ranks; where a rank has none it counts as zero, where none has it stays so."""
        ours = list(parameters)
        used = self.sum(torch.tensor([float(p.grad is not None) for p in ours], device=self.device))
        for parameter, ranks in zip(ours, used.tolist(), strict=True):
            if ranks:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.sum(own) / self.size

    def averaging(self, model: nn.Module) -> nn.Module:
        """The model in the wrapper that averages gradients over the ranks (itself on one process)."""
        if self._accelerator is None or self.size == 1:
            return model
        # not moved: a move from "cpu" to "cpu:0" copies, and masks would hold what no longer is the weights
        network: nn.Module = self._accelerator.prepare_model(model, device_placement=False)
        # its precision wrapper would stay on the plain module and in exports; `Forward` does its work
        for patched in ("forward", "_original_forward"):
            model.__dict__.pop(patched, None)
        return network

    def separate(self, network: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Passes of a network of `averaging` inside do not average gradients over the ranks."""
        if self._accelerator is None or self.size == 1:
            return NOTHING
        passes: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(network)
        return passes
