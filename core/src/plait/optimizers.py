"""The base optimizer, its schedule, default losses, and the state that goes with them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import recipe
from plait.data import DataInfo
from plait.errors import BadCheckpoint, BadInput
from plait.masks import MaskSet


def make_optimizer(table: recipe.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer that the recipe names, over the parameters that require gradients."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise BadInput("the model has no trainable parameter.")
    common: dict[str, Any] = {"lr": table.lr, "weight_decay": table.weight_decay, "foreach": True}
    made: torch.optim.Optimizer
    if table.name == "sgd":
        if table.nesterov and table.momentum == 0:
            raise BadInput("optimizer.nesterov needs optimizer.momentum > 0.")
        made = torch.optim.SGD(trained, momentum=table.momentum, nesterov=table.nesterov, **common)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[table.name]
        made = kind(trained, betas=table.betas, **common)
    for group in made.param_groups:
        group["initial_lr"] = table.lr
    return made


def regroup(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Iterable[str], settings: Mapping[str, Any]
) -> None:
    """Move parameters of the model into a group of the optimizer with settings of their own.

    Raises:
        BadInput: a name that is no trained parameter of the model.
    """
    parameters, moved = dict(model.named_parameters()), []
    for name in names:
        found = parameters.get(name)
        groups = [g for g in optimizer.param_groups if any(p is found for p in g["params"])]
        if found is None or not groups:
            raise BadInput(f"group_parameters: the optimizer trains no parameter {name!r}.")
        groups[0]["params"] = [p for p in groups[0]["params"] if p is not found]
        moved.append(found)
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


def default_objective(info: DataInfo, outputs: Any, batch: Any) -> Tensor:
    """The loss of each example [B], by the task.

    Cross-entropy for classification (for N stacked replicas [N, B]), the mean over the labels of binary cross-entropies
    for multilabel (``label`` [B, C] of zeros and ones), squared error for regression.

    Raises:
        BadInput: another task, or outputs that do not fit the labels.
    """
    if info.task == "classification":
        if isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[:2] == batch["label"].shape:
            return functional.cross_entropy(outputs.movedim(2, 1), batch["label"], reduction="none")
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] != info.num_classes:
            raise BadInput(
                f"classification needs logits [B, {info.num_classes}] from the model, got {_shape(outputs)}."
            )
        return functional.cross_entropy(outputs, batch["label"], reduction="none")
    if info.task == "multilabel":
        if not isinstance(outputs, Tensor) or outputs.shape != batch["label"].shape:
            raise BadInput(
                f"multilabel needs a logit for each label {tuple(batch['label'].shape)}, got {_shape(outputs)}."
            )
        label = batch["label"].to(outputs.dtype)
        return functional.binary_cross_entropy_with_logits(outputs, label, reduction="none").mean(1)
    if info.task == "regression":
        target = batch["target"]
        if not isinstance(outputs, Tensor) or outputs.shape != target.shape:
            raise BadInput(
                f"regression needs outputs of the target's shape {tuple(target.shape)}, got {_shape(outputs)}."
            )
        return functional.mse_loss(outputs, target, reduction="none").flatten(1).mean(1)
    raise BadInput(f"the task {info.task!r} has no default objective; a plugin must provide one.")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


# ---- state -------------------------------------------------------------------------------------------------------
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
        optimizer.load_state_dict(
            {"state": {int(k): v for k, v in tree["state"].items()}, "param_groups": tree["param_groups"]}
        )
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


def global_random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators of torch, numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(gauss)],
        },
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "next": gauss_next},
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators back."""
    torch.set_rng_state(state["torch"])
    saved = state["numpy"]
    position, has_gauss, gauss = saved["rest"]
    np.random.set_state((saved["name"], saved["keys"].numpy().astype(np.uint32), position, has_gauss, gauss))
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["next"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@torch.no_grad()
def slice_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: MaskSet, plan: Mapping[str, Sequence[tuple[int, Tensor]]]
) -> None:
    """Keep only the named positions of parameters, buffers, masks and optimizer state.

    Parameters keep their identity (their data is replaced), so optimizer groups and references stay valid.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, cuts in plan.items():
        if name in parameters:
            parameter = parameters[name]
            before = parameter.shape
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == before:
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
