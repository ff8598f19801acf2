"""The loss of each example, by the task, where no plugin replaces it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from plait.data import DataInfo
from plait.errors import BadInput


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
