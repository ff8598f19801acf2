"""Fairness of predictions, in percent and percentage points. Card section 4."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from .errors import FairpruneError

__all__ = ["CONSTANT", "GroupFigures", "group_figures"]

CONSTANT = 98.0
"""Percent of the predictions in one class above which a predictor is called constant."""


@dataclass(frozen=True)
class GroupFigures:
    """What predictions give each group, and the gaps between groups (largest minus smallest; NaN where undefined).

    Attributes:
        counts: examples of each group, int64 [G].
        accuracy: percent, float64 [G]; NaN for a group without examples.
        positive_rate, true_positive_rate, false_positive_rate: percent of two-class predictions, [G]; NaN where a group
            has no example of that label, and for more than two classes.
        overall: accuracy over all examples, percent.
        largest_class: percent of the predictions in the most frequent predicted class.
    """

    counts: Tensor
    accuracy: Tensor
    positive_rate: Tensor
    true_positive_rate: Tensor
    false_positive_rate: Tensor
    overall: float
    largest_class: float

    @property
    def worst(self) -> float:
        """Accuracy of the group with the lowest, percent."""
        return float(self.accuracy.amin())

    @property
    def balanced(self) -> float:
        """Accuracy averaged over the groups with equal weight, percent."""
        return float(self.accuracy.mean())

    @property
    def accuracy_gap(self) -> float:
        """|Acc_0 - Acc_1|, points: the paper's performance fairness."""
        return _spread(self.accuracy)

    @property
    def dp(self) -> float:
        """Demographic parity: gap of the rates of positive predictions, points."""
        return _spread(self.positive_rate)

    @property
    def eo(self) -> float:
        """Equal opportunity: gap of the true-positive rates, points."""
        return _spread(self.true_positive_rate)

    @property
    def fpr_gap(self) -> float:
        """Gap of the false-positive rates, points."""
        return _spread(self.false_positive_rate)

    @property
    def eodds(self) -> float:
        """Equalised odds: the larger of ``eo`` and ``fpr_gap``, points; NaN if one of them is."""
        gaps = torch.tensor([self.eo, self.fpr_gap], dtype=torch.float64)
        return float(gaps.amax())

    def degradation_gap(self, dense: Tensor) -> float:
        """Gap of the accuracy that each group lost since the dense network, points.

        Args:
            dense: its accuracy by group on the same examples, percent [G].
        """
        return _spread(dense.to(self.accuracy) - self.accuracy)

    @property
    def constant(self) -> bool:
        """Whether nearly all predictions are one class, with which parity gaps are 0 and worthless."""
        return self.largest_class > CONSTANT


def group_figures(predicted: Tensor, labels: Tensor, groups: Tensor, num_groups: int, num_classes: int) -> GroupFigures:
    """The figures of predicted classes.

    Args:
        predicted, labels, groups: int64 [n] each, on the CPU.
        num_groups, num_classes: G and K.

    Raises:
        FairpruneError: no example, or columns of different length.
    """
    if not len(labels) or predicted.shape != labels.shape or groups.shape != labels.shape:
        shapes = [tuple(part.shape) for part in (predicted, labels, groups)]
        raise FairpruneError(f"predictions, labels and groups must be vectors of one length above 0, got {shapes}")
    right, positive = predicted == labels, predicted == 1
    counts = torch.bincount(groups, minlength=num_groups)
    none = torch.full((num_groups,), nan, dtype=torch.float64)
    rates = [none, none, none]
    if num_classes == 2:
        everything = torch.ones_like(right)
        rates = [_rate(positive, groups, num_groups, part) for part in (everything, labels == 1, labels == 0)]
    positives, true_positives, false_positives = rates
    return GroupFigures(
        counts,
        _rate(right, groups, num_groups, torch.ones_like(right)),
        positives,
        true_positives,
        false_positives,
        overall=100 * float(right.double().mean()),
        largest_class=100 * int(torch.bincount(predicted).amax()) / len(predicted),
    )


def _rate(hits: Tensor, groups: Tensor, num_groups: int, member: Tensor) -> Tensor:
    """Percent of hits among the members of each group, float64 [G], NaN without members."""
    counted = torch.bincount(groups[member], minlength=num_groups).double()
    hit = torch.bincount(groups[member & hits], minlength=num_groups).double()
    return 100 * hit / counted


def _spread(rates: Tensor) -> float:
    """Largest minus smallest; NaN where one is."""
    return float(rates.amax() - rates.amin())
