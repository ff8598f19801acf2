"""FSDP: parameters, gradients and optimizer state spread over the ranks (torch's ``fully_shard``, known as FSDP2).

Each parameter is a ``DTensor`` whose rows lie on different ranks. Elementwise work and norms go on as before; what
needs a whole parameter by name does not, and is refused in the plan. Checkpoints hold whole tensors, so a run goes on
with any number of processes and with either strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device, size: int) -> nn.Module:
    """Spread the model's parameters over ``size`` processes; returns a whole copy on the CPU, for the end of the run.

    The elements of ``nn.Sequential`` and ``nn.ModuleList`` are gathered one after the other in a pass, the rest at
    once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = copy.deepcopy(model).cpu()
    mesh = init_device_mesh(device.type, (size,))
    for module in list(model.modules()):
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for block in module:
                if any(p.requires_grad for p in block.parameters()):
                    fully_shard(block, mesh=mesh)
    # given for the root, too: after an evaluation, which has no backward pass, it would stay gathered
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return plain


def whole(tree: Any) -> Any:
    """A tree with every spread tensor gathered; all ranks must call it."""
    if isinstance(tree, DTensor):
        gathered: Tensor = tree.full_tensor()
        return gathered.detach().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole(value) for value in tree]
    return tree


def like(value: Any, other: Any) -> Any:
    """``value`` spread as ``other`` is, if that is spread and they have one shape; else as it is."""
    fits = isinstance(other, DTensor) and isinstance(value, Tensor) and value.shape == other.shape
    if not fits or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def weights_like(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights, spread as the model's are."""
    present = model.state_dict()
    return {name: like(value, present.get(name)) for name, value in weights.items()}


def state_like(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Whole optimizer state (`plait.training.optimizers.state_to_tree`), spread as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        key: {name: like(value, parameters[int(key)]) for name, value in entry.items()}
        for key, entry in tree["state"].items()
    }
    return {**tree, "state": state}
