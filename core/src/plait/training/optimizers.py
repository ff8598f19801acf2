"""The base optimizer, its schedule, default losses, and the state that goes with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plait.declare import recipe
from plait.errors import BadCheckpoint, BadInput


def make_optimizer(table: recipe.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer that the recipe names, over the parameters that require gradients."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise BadInput("the model has no trainable parameter.")
    common: dict[str, Any] = {"lr": table.lr, "weight_decay": table.weight_decay, "foreach": True}
    optimizer: torch.optim.Optimizer
    if table.name == "sgd":
        if table.nesterov and table.momentum == 0:
            raise BadInput("optimizer.nesterov needs optimizer.momentum > 0.")
        optimizer = torch.optim.SGD(trained, momentum=table.momentum, nesterov=table.nesterov, **common)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[table.name]
        optimizer = kind(trained, betas=table.betas, **common)
    for group in optimizer.param_groups:
        group["initial_lr"] = table.lr
    return optimizer


def regroup(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Iterable[str], settings: Mapping[str, Any]
) -> None:
    """Move parameters of the model into a group of the optimizer with settings of their own.

    Raises:
        BadInput: a name that is no trained parameter of the model.
    """
    parameters, moved = dict(model.named_parameters()), []
    for name in names:
        parameter = parameters.get(name)
        groups = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
        if parameter is None or not groups:
            raise BadInput(f"group_parameters: the optimizer trains no parameter {name!r}.")
        groups[0]["params"] = [p for p in groups[0]["params"] if p is not parameter]
        moved.append(parameter)
    if moved:
        group = {**optimizer.defaults, **settings, "params": moved}
        optimizer.add_param_group({**group, "initial_lr": group["lr"]})


def lr_factor(table: recipe.Scheduler, done: int, total: int) -> float:
    """The factor on the learning rate after ``done`` of ``total`` steps: linear warm-up, then the named shape."""
    if done < table.warmup_steps:
        return (done + 1) / table.warmup_steps
    if table.name == "constant":
        return 1.0
    progress = (done - table.warmup_steps) / max(1, total - table.warmup_steps)
    if table.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return float(table.gamma ** sum(progress >= milestone for milestone in table.milestones))


def set_lr(optimizer: torch.optim.Optimizer, table: recipe.Scheduler, done: int, total: int) -> None:
    """Set the learning rate of every group: a function of the step alone, so there is no scheduler state to lose."""
    factor = lr_factor(table, done, total)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def state_to_tree(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` with string keys, for a checkpoint."""
    state = optimizer.state_dict()
    return {"state": {str(k): v for k, v in state["state"].items()}, "param_groups": state["param_groups"]}


def tree_to_state(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> None:
    """The inverse of `state_to_tree`.

    Raises:
        BadCheckpoint: state of other parameters.
    """
    try:
        state = {int(key): value for key, value in tree["state"].items()}
        optimizer.load_state_dict({"state": state, "param_groups": tree["param_groups"]})
    except (ValueError, KeyError) as error:
        raise BadCheckpoint(f"the checkpoint's optimizer does not fit this model: {error}.") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` with an error for people.

    Raises:
        BadCheckpoint: another model (the first tensors that differ are named).
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise BadCheckpoint(f"the checkpoint is of another model: {' '.join(lines)}") from error
