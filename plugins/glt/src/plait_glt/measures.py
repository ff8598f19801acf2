"""Figures of rankings: area under the ROC curve, one label or many, and Hits@K. Card, "Metrics"."""

from __future__ import annotations

import torch
from torch import Tensor

from plait_glt.errors import GLTError


def roc_auc(scores: Tensor, label: Tensor) -> Tensor:
    """Area under the ROC curve of each column: how often a positive is above a negative, equal scores counted half.

    From the mean ranks (Mann and Whitney), for all columns in one sort.

    Args:
        scores: [n] or [n, K], any order-preserving score.
        label: of the same shape, not 0 for positives.

    Returns:
        In [0, 1], float64, a scalar or [K]; nan for a column of positives only or of negatives only.

    Raises:
        GLTError: shapes that differ, or scores that are not finite.
    """
    if scores.shape != label.shape or scores.ndim not in (1, 2):
        raise GLTError(f"ROC-AUC: scores {tuple(scores.shape)} and labels {tuple(label.shape)} must be [n] or [n, K].")
    if not bool(scores.isfinite().all()):
        raise GLTError("ROC-AUC: a score is not finite; lower the learning rate.")
    if scores.ndim == 1:
        return roc_auc(scores.unsqueeze(1), label.unsqueeze(1))[0]
    ordered, order = scores.sort(0)
    positive = (label != 0).gather(0, order).double()
    n, columns = scores.shape
    # equal scores are one group, whose members all have its mean rank
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    group = starts.long().cumsum(0) - 1
    size = torch.zeros(n, columns, dtype=torch.float64, device=scores.device)
    size.scatter_add_(0, group, torch.ones_like(positive))
    rank = (size.cumsum(0) - (size - 1) / 2).gather(0, group)
    positives = positive.sum(0)
    above = (rank * positive).sum(0) - positives * (positives + 1) / 2
    return above / (positives * (n - positives))


def mean_roc_auc(scores: Tensor, label: Tensor) -> float:
    """The mean of `roc_auc` over the labels [n, K] that have both kinds of rows, as OGB defines it for ogbn-proteins.

    Raises:
        GLTError: no such label, and what `roc_auc` refuses.
    """
    areas = roc_auc(scores, label)
    usable = areas[~areas.isnan()]
    if not len(usable):
        raise GLTError("ROC-AUC: no label has both positive and negative rows.")
    return float(usable.mean())


def hits_at(positive: Tensor, negative: Tensor, k: int = 50) -> float:
    """Share of the positive pairs that score above the K-th best negative one, as OGB defines it for ogbl-collab.

    Args:
        positive, negative: scores [P] and [N].
        k: K; with fewer negatives than that every positive is a hit.

    Raises:
        GLTError: no positive pair.
    """
    if not len(positive):
        raise GLTError(f"Hits@{k}: there is no positive pair.")
    if len(negative) < k:
        return 1.0
    return float((positive > negative.topk(k).values[-1]).double().mean())
