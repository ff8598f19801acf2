"""Shadows: tensors beside the parameters, one for each, that follow the network through masks, slices and resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plait.errors import BadCheckpoint
from plait.training.masks import MaskSet
from plait.training.slicing import cut


class Shadows:
    """Named sets of tensors shaped like the parameters: running averages, slow weights, weights of an earlier step.

    A set is parameter name -> tensor and changes in place. It begins as a copy of the weights. Where a mask becomes
    zero it becomes zero with the optimizer state, so a weight that comes back starts from zero here too.
    """

    def __init__(self, model: nn.Module, masks: MaskSet) -> None:
        self.model, self.masks = model, masks
        self.sets: dict[str, dict[str, Tensor]] = {}

    def take(self, name: str) -> dict[str, Tensor]:
        """The set of that name, made at the first call."""
        if name not in self.sets:
            self.sets[name] = self._weights()
            self.masks.follow(self.sets[name])
        return self.sets[name]

    def begin(self) -> None:
        """Copy the present weights: when every plugin has set itself up, and when a phase starts from given weights."""
        for shadow in self.sets.values():
            shadow.clear()
            shadow.update(self._weights())

    def slice_tensors(self, plan: Mapping[str, Sequence[tuple[int, Tensor]]]) -> None:
        """Keep only the named positions, as `plait.training.slicing.slice_tensors` does with the parameters."""
        for shadow in self.sets.values():
            shadow.update({name: cut(shadow[name], cuts) for name, cuts in plan.items() if name in shadow})

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of every set."""
        return {name: {n: t.clone() for n, t in shadow.items()} for name, shadow in self.sets.items()}

    @torch.no_grad()
    def load(self, name: str, saved: Mapping[str, Tensor]) -> None:
        """Take one set back, in place.

        Raises:
            BadCheckpoint: other tensors or shapes than the model's parameters.
        """
        shadow = self.take(name)
        odd = sorted(set(saved) ^ set(shadow)) or [n for n, t in shadow.items() if t.shape != saved[n].shape]
        if odd:
            raise BadCheckpoint(f"the checkpoint's shadow {name!r} does not fit this model: {odd[0]!r} differs.")
        for key, tensor in shadow.items():
            tensor.copy_(saved[key])

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
