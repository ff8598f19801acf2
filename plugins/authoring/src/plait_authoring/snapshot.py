"""What a hook could change of the model, before and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


@dataclass(frozen=True)
class Snapshot:
    """Everything of the model that a hook could change."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    masks: dict[str, Tensor]
    modes: dict[str, bool]
    trained: dict[str, bool]

    @classmethod
    def of(cls, trainer: Trainer) -> Snapshot:
        """Copies of parameters, buffers and masks; modes and ``requires_grad``."""
        model = trainer.model
        return cls(
            {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
            {name: buffer.detach().clone() for name, buffer in model.named_buffers()},
            {name: mask.clone() for name, mask in trainer.masks.mask.items()},
            {name: module.training for name, module in model.named_modules()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        )

    def changes(self, after: Snapshot, *, weights_only: bool = False) -> Iterator[str]:
        """What differs in ``after``, in words."""
        for kind, left, right in (("weights", self.parameters, after.parameters), ("mask", self.masks, after.masks)):
            for name in changed(left, right):
                yield f"the {kind} of {name!r}"
        if weights_only:
            return
        for name in changed(self.buffers, after.buffers):
            yield f"the buffer {name!r}"
        if self.modes != after.modes:
            now = {
                after.modes[name] for name in self.modes if after.modes.get(name, self.modes[name]) != self.modes[name]
            }
            yield f"the training mode of the model (it is left in {'training' if True in now else 'eval'} mode)"
        for name, flag in self.trained.items():
            if after.trained.get(name, flag) != flag:
                yield f"requires_grad of {name!r}"


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors whose values differ; NaN equals NaN. Other shapes differ."""
    return [name for name, value in before.items() if name not in after or not _same(value, after[name])]


def _same(left: Tensor, right: Tensor) -> bool:
    """Equal shape and values, NaN equal to NaN."""
    if left.shape != right.shape:
        return False
    equal = left == right
    if left.is_floating_point():
        equal |= left.isnan() & right.isnan()
    return bool(equal.all())
