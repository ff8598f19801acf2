"""The loss of each example, by the task, where no plugin replaces it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plait.data import DataInfo
from plait.errors import BadInput


def default_objective(info: DataInfo, outputs: Any, batch: Any) -> Tensor:
    """The loss of each example [B], by the task.

    Cross-entropy for classification (for N stacked replicas [N, B]), the mean over the labels of binary cross-entropies
    for multilabel (``label`` [B, C] of zeros and ones), squared error for regression, the mean over the tokens of each
    text for causal-lm (`token_losses`).

    Raises:
        BadInput: another task, or outputs that do not fit the labels.
    """
    if info.task == "causal-lm":
        summed, tokens = token_losses(outputs, batch).unbind(1)
        return summed / tokens.clamp(min=1)
    if info.task == "regression":
        target = fitting(outputs, batch["target"])
        return functional.mse_loss(outputs, target, reduction="none").reshape(len(target), -1).mean(1)
    if info.task == "multilabel":
        label = batch["label"]
        if not isinstance(outputs, Tensor) or outputs.shape != label.shape:
            raise _misfit(f"multilabel needs a logit for each label {tuple(label.shape)}", outputs)
        each = functional.binary_cross_entropy_with_logits(outputs, label.to(outputs.dtype), reduction="none")
        return each.mean(1)
    if info.task == "classification":
        label = batch["label"]
        if isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[:2] == label.shape:
            return functional.cross_entropy(outputs.movedim(2, 1), label, reduction="none")
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] != info.num_classes:
            raise _misfit(f"classification needs logits [B, {info.num_classes}] from the model", outputs)
        return functional.cross_entropy(outputs, label, reduction="none")
    raise BadInput(f"the task {info.task!r} has no default objective; a plugin must provide one.")


def token_losses(outputs: Any, batch: Any) -> Tensor:
    """What a language model's predictions of the next token cost, for each text.

    Args:
        outputs: logits [B, T, V]; those of token t predict token t + 1.
        batch: ``input`` int64 [B, T], and perhaps ``attention_mask`` [B, T], 0 at padding, which is neither predicted
            nor predicts, and ``label`` [B, T] instead of the input as what is to be predicted, where -100 does not
            count.

    Returns:
        [B, 2] float32: the summed cross-entropy in nats, and the number of tokens that it is a sum over.

    Raises:
        BadInput: outputs that are no logits for each token.
    """
    target = batch["label"] if "label" in batch else batch["input"]
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or outputs.shape[:2] != target.shape:
        raise _misfit(f"causal-lm needs logits [{', '.join(map(str, target.shape))}, V] from the model", outputs)
    target = target[:, 1:]
    if "attention_mask" in batch:
        real = batch["attention_mask"].bool()
        target = target.masked_fill(~(real[:, 1:] & real[:, :-1]), -100)
    each = functional.cross_entropy(
        outputs[:, :-1].flatten(0, 1).float(), target.flatten(), ignore_index=-100, reduction="none"
    )
    return torch.stack([each.view(target.shape).sum(1), (target != -100).sum(1).float()], 1)


def fitting(outputs: Any, target: Tensor) -> Tensor:
    """The targets of a regression as the outputs are: whole numbers as fractions, [B] and [B, 1] in the same shape.

    Raises:
        BadInput: another shape, or targets of more digits than the outputs have.
    """
    same = isinstance(outputs, Tensor) and outputs.shape == target.shape
    if not isinstance(outputs, Tensor) or not (same or {outputs.shape, target.shape} == _one_number(len(target))):
        raise _misfit(f"regression needs outputs of the target's shape {tuple(target.shape)}", outputs)
    if target.dtype == torch.float64 and outputs.dtype != torch.float64:
        given = f"float64 and the outputs {outputs.dtype}".replace("torch.", "")
        raise BadInput(f"the targets are {given}: give targets of that type (target.float(), say).")
    return (target if target.is_floating_point() else target.to(outputs.dtype)).reshape(outputs.shape)


def _one_number(size: int) -> set[torch.Size]:
    return {torch.Size([size]), torch.Size([size, 1])}


def _misfit(need: str, outputs: Any) -> BadInput:
    given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    return BadInput(f"{need}, got {given}.")
