"""How a batch goes through a model: what the data prepares, calls and reads out, in the run's precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plait.distributed.world import NOTHING, World


@dataclass(frozen=True)
class Forward:
    """A data set's way through a model, without the data.

    Attributes:
        world: whose device and precision count.
        precision: ``fp32`` or ``bf16``.
        prepare, forward, readout: as in `plait.data.Data`.
    """

    world: World
    precision: str = "fp32"
    prepare: Callable[[Any], Any] | None = None
    forward: Callable[[Callable[..., Any], Any], Any] | None = None
    readout: Callable[[Any, Any], Any] | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of a forward pass."""
        return NOTHING if self.precision == "fp32" else torch.autocast(self.world.device.type, dtype=torch.bfloat16)

    def raw(self, model: Callable[..., Any], batch: Any) -> Any:
        """All that a model computes for a batch."""
        if self.prepare is not None:
            batch = self.prepare(batch)
        return self.forward(model, batch) if self.forward is not None else model(batch["input"])

    def outputs(self, raw: Any, batch: Any) -> Any:
        """The outputs of the batch's examples [B, ...] out of all that was computed."""
        return raw if self.readout is None else self.readout(raw, batch)

    def __call__(self, model: Callable[..., Any], batch: Any) -> Any:
        """A model's outputs on the examples of a batch."""
        return self.outputs(self.raw(model, batch), batch)
