"""How a batch goes through a model: what the data prepares, calls and reads out, in the run's precision."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plait.distributed.world import NOTHING, World
from plait.training.objectives import token_losses

KEPT: dict[str, Callable[[Any, Any], Any]] = {"causal-lm": token_losses}
"""By task: what an evaluation keeps of a batch's outputs, where all of them would be too much."""


@dataclass(frozen=True)
class Forward:
    """A data set's way through a model, without the data.

    Attributes:
        world: whose device and precision count.
        precision: ``fp32`` or ``bf16``.
        prepare, forward, readout: as in `plait.data.Data`.
        keep: ``keep(outputs, batch)`` [B, ...], what an evaluation keeps of a batch's outputs; default: all of them.
    """

    world: World
    precision: str = "fp32"
    prepare: Callable[[Any], Any] | None = None
    forward: Callable[[Callable[..., Any], Any], Any] | None = None
    readout: Callable[[Any, Any], Any] | None = None
    keep: Callable[[Any, Any], Any] | None = None

    @classmethod
    def of(
        cls,
        world: World,
        precision: str,
        task: str,
        model: nn.Module,
        prepare: Any,
        forward: Any,
        readout: Any,
        keep: Any = None,
    ) -> Forward:
        """The way of a task's batches through a model, with what a model of transformers needs where none is given."""
        if forward is None and hasattr(model, "main_input_name"):
            forward, readout = KeywordForward.of(model), readout or logits
        return cls(world, precision, prepare, forward, readout, keep or KEPT.get(task))

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


# ---- transformers models ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class KeywordForward:
    """Calls a transformers model with the fields of a batch that it takes by name, labels left out.

    Attributes:
        main_input: what the model calls plait's ``input`` (``input_ids``, ``pixel_values``).
        taken: the names of the model's other arguments.
    """

    main_input: str
    taken: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> KeywordForward:
        """For a model that says its ``main_input_name``."""
        names = set(inspect.signature(model.forward).parameters) - {"labels", "label"}
        return cls(str(model.main_input_name), frozenset(names))

    def __call__(self, model: Callable[..., Any], batch: Any) -> Any:
        others = {name: value for name, value in batch.items() if name in self.taken and name != "input"}
        if "use_cache" in self.taken:
            others.setdefault("use_cache", False)  # keys and values for tokens to come, of which there are none
        return model(**{self.main_input: batch["input"], **others})


def logits(raw: Any, batch: Any) -> Any:
    """The ``logits`` of a transformers model's output, and any other output as it is."""
    return getattr(raw, "logits", raw)
