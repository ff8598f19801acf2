"""Accuracy by group, and how unequally groups degrade under corruption (card section 4).

Everything is in percent (0..100) or percentage points, in float64. The name CDD is the paper's (arXiv 2503.22934); its
formula for two groups is the direct reading of the name, max - min for more groups is an extension [inferred].

**CDD alone is gameable**: a model at chance level has CDD 0. Read it beside the mean and worst-group corrupted accuracy
and the clean accuracy, which `FairnessReport` therefore always carries.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FairsamError, FairsamWarning
from .groups import check_index

__all__ = [
    "LOW_SUPPORT",
    "FairnessReport",
    "cdd",
    "cdd_signed",
    "collapse_warnings",
    "degradation",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "fairness_report",
    "gap",
    "group_accuracy",
    "group_rate",
    "relative_degradation",
]

LOW_SUPPORT = 30
"""Fewer test samples than this in a group and its figures are flagged."""


def group_rate(events: Tensor, groups: Tensor, num_groups: int, where: Tensor | None = None) -> Tensor:
    """Share of samples with an event, by group.

    Args:
        events: ``[..., N]`` bool.
        groups: ``[N]`` int64.
        num_groups: G.
        where: ``[N]`` bool, the samples that count; default all.

    Returns:
        ``[..., G]`` float64 in percent; nan where a group has no sample that counts.
    """
    member = groups.to(events.device)[:, None] == torch.arange(num_groups, device=events.device)
    if where is not None:
        member = member & where.to(events.device)[:, None]
    member = member.double()
    return 100 * (events.double() @ member) / member.sum(0)


def group_accuracy(predictions: Tensor, labels: Tensor, groups: Tensor, num_groups: int | None = None) -> Tensor:
    """Accuracy of each group, ``Acc_a``.

    Args:
        predictions: ``[..., N]`` int64 predicted classes; leading axes (such as the corruption grid) are kept.
        labels: ``[N]`` int64.
        groups: ``[N]`` int64 in ``0..G-1``.
        num_groups: G; default: largest group + 1.

    Returns:
        ``[..., G]`` float64 in percent; nan for a group without test samples.

    Raises:
        FairsamError: shapes that do not fit, groups out of range.

    Warns:
        FairsamWarning: names the groups without test samples.
    """
    size = _check(predictions, labels, groups, num_groups)
    rates = group_rate(predictions == labels.to(predictions.device), groups, size)
    missing = torch.bincount(groups, minlength=size).eq(0).nonzero().flatten().tolist()
    if missing:
        warnings.warn(f"no test sample in group {missing}: its metrics are nan", FairsamWarning, stacklevel=2)
    return rates


def degradation(clean: Tensor, corrupted: Tensor) -> Tensor:
    """``D_a(c, t) = Acc_a - Acc_a(c, t)`` in points, ``[..., G]``; negative where corruption helped."""
    return clean - corrupted


def relative_degradation(clean: Tensor, corrupted: Tensor) -> Tensor:
    """``D_a / Acc_a`` as a fraction, ``[..., G]``; nan where the clean accuracy is 0."""
    return torch.where(clean == 0, torch.nan, degradation(clean, corrupted) / clean)


def gap(rates: Tensor) -> Tensor:
    """``max_a - min_a`` over the last axis, ``[..., G] -> [...]``; nan if any group is nan."""
    return rates.amax(-1) - rates.amin(-1)


def cdd(clean: Tensor, corrupted: Tensor) -> Tensor:
    """Corrupted Degradation Disparity, ``max_a D_a - min_a D_a`` in points; for two groups ``|D_0 - D_1|``.

    Args:
        clean: ``[G]`` clean accuracies in percent.
        corrupted: ``[..., G]`` corrupted accuracies in percent.

    Returns:
        ``[...]``; its mean over the grid is mCDD. nan if a group is missing.
    """
    return gap(degradation(clean, corrupted))


def cdd_signed(clean: Tensor, corrupted: Tensor) -> Tensor:
    """``D_1 - D_0`` in points for two groups, ``[..., 2] -> [...]``: positive when group 1 degrades more."""
    if clean.shape[-1] != 2:
        raise FairsamError(f"cdd_signed is defined for 2 groups, got {clean.shape[-1]}")
    drop = degradation(clean, corrupted)
    return drop[..., 1] - drop[..., 0]


def demographic_parity_difference(
    predictions: Tensor, groups: Tensor, num_groups: int | None = None, *, positive: int = 1
) -> Tensor:
    """Largest minus smallest rate of predicting ``positive`` over the groups, in points, ``[..., N] -> [...]``."""
    size = _check(predictions, groups, groups, num_groups)
    return gap(group_rate(predictions == positive, groups, size))


def equal_opportunity_difference(
    predictions: Tensor, labels: Tensor, groups: Tensor, num_groups: int | None = None, *, positive: int = 1
) -> Tensor:
    """Largest minus smallest true-positive rate over the groups, in points, ``[..., N] -> [...]``.

    nan if a group has no positive test sample.
    """
    size = _check(predictions, labels, groups, num_groups)
    return gap(group_rate(predictions == positive, groups, size, labels == positive))


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """Every figure of card section 4 for one model. C cells of the grid, G groups; percent and points, float64, CPU.

    Attributes:
        cells: the C (corruption, severity) pairs.
        clean: ``[G]`` clean accuracy.
        corrupted: ``[C, G]`` corrupted accuracy.
        counts: ``[G]`` int64 test samples.
        low_support: ``[G]`` bool, fewer than 30 test samples.
        cdd: ``[C]``.
        signed: ``[C]`` D_1 - D_0 for two groups, else None.
        relative: ``[C, G]`` D_a / Acc_a, a fraction.
        equal_opportunity: ``[C]`` points, for binary labels, else None.
        demographic_parity: ``[C]`` points, for binary labels, else None.
    """

    cells: tuple[tuple[str, int], ...]
    clean: Tensor
    corrupted: Tensor
    counts: Tensor
    low_support: Tensor
    cdd: Tensor
    signed: Tensor | None
    relative: Tensor
    equal_opportunity: Tensor | None
    demographic_parity: Tensor | None

    @property
    def mcdd(self) -> float:
        """Mean CDD over the grid, points."""
        return float(self.cdd.mean())

    @property
    def clean_gap(self) -> float:
        """Largest minus smallest clean group accuracy, points."""
        return float(gap(self.clean))

    @property
    def corrupted_gap(self) -> float:
        """Mean over the grid of the corrupted accuracy gap, points."""
        return float(gap(self.corrupted).mean())

    @property
    def mean_corrupted(self) -> float:
        """Corrupted accuracy averaged over the grid and over groups with equal weight, percent."""
        return float(self.corrupted.mean())

    @property
    def worst_group_corrupted(self) -> float:
        """Mean over the grid of the worst group's corrupted accuracy, percent."""
        return float(self.corrupted.amin(-1).mean())

    def summary(self) -> dict[str, float]:
        """The figures that belong in one table row, CDD never without the accuracies it can be traded for."""
        row = {
            "clean_accuracy": float(self.clean.mean()),
            "clean_accuracy_worst_group": float(self.clean.amin()),
            "clean_gap": self.clean_gap,
            "corrupted_accuracy": self.mean_corrupted,
            "corrupted_accuracy_worst_group": self.worst_group_corrupted,
            "corrupted_gap": self.corrupted_gap,
            "mcdd": self.mcdd,
            "relative_degradation": float(self.relative.mean()),
        }
        row |= {f"clean_accuracy_group_{a}": float(value) for a, value in enumerate(self.clean)}
        if self.signed is not None:
            row["cdd_signed"] = float(self.signed.mean())
        if self.equal_opportunity is not None and self.demographic_parity is not None:
            row["equal_opportunity_difference"] = float(self.equal_opportunity.mean())
            row["demographic_parity_difference"] = float(self.demographic_parity.mean())
        return row


def fairness_report(
    clean: Tensor,
    corrupted: Mapping[tuple[str, int], Tensor],
    labels: Tensor,
    groups: Tensor,
    *,
    num_groups: int | None = None,
    num_classes: int | None = None,
    positive: int = 1,
) -> FairnessReport:
    """Compute every metric from predicted classes.

    Args:
        clean: ``[N]`` predictions on the clean test set.
        corrupted: predictions ``[N]`` by (corruption, severity), at least one cell.
        labels: ``[N]`` int64.
        groups: ``[N]`` int64.
        num_groups: G; default: largest group + 1. Give it, so that a missing group becomes nan instead of vanishing.
        num_classes: K; with K = 2 the parity differences are computed. Default: largest label + 1.
        positive: the class that counts as positive. Default 1.

    Raises:
        FairsamError: no cell, shapes that do not fit, labels or groups out of range.

    Warns:
        FairsamWarning: a group without test samples (metrics nan) or with fewer than 30 (flag ``low_support``).
    """
    if not corrupted:
        raise FairsamError("corrupted={} holds no (corruption, severity) cell")
    labels, groups, clean = labels.cpu(), groups.cpu(), clean.cpu()
    classes = check_index("labels", labels, num_classes)
    size = _check(clean, labels, groups, num_groups)
    for cell, predictions in corrupted.items():
        if predictions.shape != clean.shape:
            raise FairsamError(f"corrupted[{cell}] has shape {tuple(predictions.shape)}, expected {tuple(clean.shape)}")
    grid = torch.stack([predictions.cpu() for predictions in corrupted.values()])
    counts = torch.bincount(groups, minlength=size)
    low = counts < LOW_SUPPORT
    thin = [a for a in low.nonzero().flatten().tolist() if counts[a]]
    if thin:
        warnings.warn(f"fewer than {LOW_SUPPORT} test samples in group {thin}", FairsamWarning, stacklevel=2)
    accuracy = group_accuracy(torch.cat([clean[None], grid]), labels, groups, size)
    clean_accuracy, corrupted_accuracy = accuracy[0], accuracy[1:]
    opportunity = parity = None
    if classes == 2:
        opportunity = equal_opportunity_difference(grid, labels, groups, size, positive=positive)
        parity = demographic_parity_difference(grid, groups, size, positive=positive)
    return FairnessReport(
        cells=tuple(corrupted),
        clean=clean_accuracy,
        corrupted=corrupted_accuracy,
        counts=counts,
        low_support=low,
        cdd=cdd(clean_accuracy, corrupted_accuracy),
        signed=cdd_signed(clean_accuracy, corrupted_accuracy) if size == 2 else None,
        relative=relative_degradation(clean_accuracy, corrupted_accuracy),
        equal_opportunity=opportunity,
        demographic_parity=parity,
    )


def collapse_warnings(clean: Tensor, num_classes: int, reference: Tensor | None = None) -> list[str]:
    """Say where a good CDD is worthless because a group collapsed (card section 8).

    Args:
        clean: ``[G]`` clean accuracies in percent.
        num_classes: K; chance is 100 / K.
        reference: ``[G]`` clean accuracies of unweighted SGD, if known.

    Returns:
        One line per group below 1.2 x chance or more than 5 points below the reference; empty if all is well.
    """
    lines = []
    for group, accuracy in enumerate(clean.tolist()):
        if accuracy < 120 / num_classes:
            lines.append(
                f"group {group}: clean accuracy {accuracy:.1f} % is near chance ({100 / num_classes:.1f} %);"
                " its CDD means nothing, lower rho or train longer"
            )
        elif reference is not None and accuracy < float(reference[group]) - 5:
            lines.append(
                f"group {group}: clean accuracy {accuracy:.1f} % is more than 5 points below SGD's"
                f" {float(reference[group]):.1f} %; lower rho or train longer"
            )
    return lines


def _check(predictions: Tensor, labels: Tensor, groups: Tensor, num_groups: int | None) -> int:
    if labels.shape != groups.shape or predictions.shape[-1:] != groups.shape:
        raise FairsamError(
            f"predictions {tuple(predictions.shape)}, labels {tuple(labels.shape)} and groups {tuple(groups.shape)}"
            " must share their last axis [N]"
        )
    return check_index("groups", groups, num_groups)
