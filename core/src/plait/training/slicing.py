"""Slicing: fewer positions of parameters, buffers, masks and optimizer state, in the middle of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plait.errors import BadInput
from plait.training.masks import MaskSet


@torch.no_grad()
def slice_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: MaskSet, plan: Mapping[str, Sequence[tuple[int, Tensor]]]
) -> None:
    """Keep only the named positions of parameters, buffers, masks and optimizer state.

    Parameters keep their identity (their data is replaced), so optimizer groups and references stay valid.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, other in ((n, p) for n, p in model.named_parameters(remove_duplicate=False) if n not in parameters):
        if tied := [n for n in plan if parameters.get(n) is other]:
            raise BadInput(f"slice_tensors: {tied[0]!r} and {name!r} are one parameter; cutting it would change both.")
    for name, cuts in plan.items():
        if name in parameters:
            parameter = parameters[name]
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = cut(value, cuts)
            parameter.grad = None
            parameter.data = cut(parameter.data, cuts)
            if name in masks.mask:
                masks.mask[name] = cut(masks.mask[name], cuts)
        elif name in buffers:
            buffers[name].data = cut(buffers[name].data, cuts)
        else:
            raise BadInput(f"slice_tensors: the model has no tensor {name!r}.")
    masks.rebind()


def cut(value: Tensor, cuts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """``value`` with only the kept positions of each (dimension, positions int64) pair."""
    for dimension, kept in cuts:
        value = value.index_select(dimension, kept.to(value.device))
    return value.contiguous()
