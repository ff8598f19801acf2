"""The gap between groups as something to differentiate: surrogates, bounds, penalties. Card section 2.2, Corrections.

A gap is a difference of two rates, each the share of examples with u > 0 within a group, where u is a signal: the
margin of the right class (accuracy), or the logit difference (dp, eo, eodds). With P(u > 0 | s=0) = 1 - P(u <= 0 | s=0)

    R = mean[ 1(s=1)/p1 1(u > 0) + 1(s=0)/p0 1(u <= 0) ] - 1,    p_g the share of group g,

and with a convex kappa(u) >= 1(u > 0) and delta(u) = 1 - kappa(-u) <= 1(u > 0) in the indicator's place

    R_delta <= R <= R_kappa.

Source: Wu, Zhang, Wu, "On Convexity and Bounds of Fairness-aware Classification" (WWW 2019); BiFP's equations 6 to 8
are its accuracy case. Their equation 8 writes u(y f) for both groups; the sign for the other group follows from
equation 7, and that form is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from .errors import FairpruneError
from .options import FairpruneOptions

__all__ = ["GapPenalty", "kappa", "membership", "penalised", "signals"]

LOG2 = 0.6931471805599453


def kappa(u: Tensor, surrogate: str) -> Tensor:
    """The convex upper bound of 1(u > 0): ``hinge`` max(0, 1+u), ``exponential`` e^u, ``logistic`` log2(1 + e^u)."""
    if surrogate == "hinge":
        return (1 + u).clamp(min=0)
    if surrogate == "exponential":
        return u.exp()
    if surrogate == "logistic":
        return functional.softplus(u) / LOG2
    raise FairpruneError(f"surrogate = {surrogate!r} is no bound: choose hinge, exponential or logistic")


@cache
def _ends(device: torch.device, dtype: torch.dtype) -> Tensor:
    """-1 and 1, made once: a small tensor costs as much as what is done with it."""
    with torch.inference_mode(False):
        return torch.tensor([-1.0, 1.0], device=device, dtype=dtype)


def signals(outputs: Tensor, labels: Tensor, measure: str) -> list[tuple[Tensor, Tensor | None]]:
    """The signal u of each gap that the measure sums, and which examples take part in it (None: all).

    Args:
        outputs: logits [B, K]; all measures but accuracy and degradation need K = 2.
        labels: [B] int64.
        measure: `FairpruneOptions.measure`.

    Returns:
        (u [B], member bool [B] or None) for each event: one, or two for ``eodds``.
    """
    if outputs.shape[1] == 2:
        ends = _ends(outputs.device, outputs.dtype)
        difference = outputs.mv(ends)
        margin = difference * ends.index_select(0, labels)
    else:
        right = outputs.gather(1, labels[:, None])[:, 0]
        margin = difference = right - outputs.scatter(1, labels[:, None], -torch.inf).amax(1)
    if measure in ("accuracy", "degradation"):
        return [(margin, None)]
    if measure == "dp":
        return [(difference, None)]
    if measure == "eo":
        return [(difference, labels == 1)]
    return [(difference, labels == 1), (difference, labels == 0)]


def membership(groups: Tensor, num_groups: int, member: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Ones where an example [B] is in a group and takes part, [G, B]."""
    inside = groups == torch.arange(num_groups, device=groups.device)[:, None]
    return (inside if member is None else inside & member).to(dtype)


def penalised(upper: Tensor, lower: Tensor, penalty: str, tolerance: float = 0.0) -> Tensor:
    """The penalty on a relaxed gap between ``lower`` and ``upper``.

    ``signed``: R_kappa itself. ``absolute``: the larger of R_kappa and -R_delta above the tolerance, which bounds |R|.
    ``hinge``: the sum of both above the tolerance.
    """
    if penalty == "signed":
        return upper
    if penalty == "absolute" and upper is lower:
        return upper.abs() if not tolerance else (upper.abs() - tolerance).clamp(min=0)
    if penalty == "absolute":
        return (torch.maximum(upper, -lower) - tolerance).clamp(min=0)
    return (upper - tolerance).clamp(min=0) + (-lower - tolerance).clamp(min=0)


@dataclass
class GapPenalty:
    """The penalty on the gap of a batch.

    Attributes:
        options: measure, surrogate, temperature, penalty, tolerance.
        num_groups: G; more than two need surrogate sigmoid and penalty absolute (or hinge), and give max - min.
        shares: for each event p_g [G] in the training data, for the surrogates that are bounds.
        reference: rates [G] of the dense network (measure degradation), subtracted; default none.
        total: the sum over all processes of a detached tensor; default none (one process).
        world: how many processes.
    """

    options: FairpruneOptions
    num_groups: int
    shares: list[Tensor]
    reference: Tensor | None = None
    total: Callable[[Tensor], Tensor] | None = None
    world: int = 1

    @classmethod
    def of(
        cls,
        options: FairpruneOptions,
        labels: Tensor,
        groups: Tensor,
        num_classes: int,
        num_groups: int,
        total: Callable[[Tensor], Tensor] | None = None,
        world: int = 1,
    ) -> GapPenalty:
        """Count groups and labels of the training data, int64 [n] each.

        Raises:
            FairpruneError: a group without examples, or without those that the measure looks at; a measure, surrogate
                or penalty that these classes or groups do not allow.
        """
        if options.measure in ("dp", "eo", "eodds") and num_classes != 2:
            raise FairpruneError(
                f"measure = '{options.measure}' needs two classes, not {num_classes}: take measure = 'accuracy'"
            )
        if num_groups < 2:
            raise FairpruneError(f"the training data have {num_groups} group: a gap needs two")
        if num_groups > 2 and (options.surrogate != "sigmoid" or options.penalty == "signed"):
            raise FairpruneError(
                f"surrogate = '{options.surrogate}' with penalty = '{options.penalty}' compares two groups, the data"
                f" have {num_groups}: surrogate = 'sigmoid' with penalty = 'absolute' takes largest minus smallest"
            )
        shares = []
        events = signals(torch.zeros(len(labels), num_classes), labels, options.measure)
        for _, member in events:
            counts = membership(groups, num_groups, member, torch.float64).sum(1)
            if not bool((counts > 0).all()):
                empty = int((counts == 0).nonzero()[0])
                what = "" if member is None else f" with label {int(labels[member][0])}" if bool(member.any()) else ""
                raise FairpruneError(
                    f"group {empty} has no training example{what}, so measure = '{options.measure}' is undefined: leave"
                    " the group out of the data, or take another measure"
                )
            shares.append((counts / counts.sum()).float())
        return cls(options, num_groups, shares, total=total, world=world)

    def remember(self, outputs: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Take the rates of the dense network as the reference of ``degradation``: relaxed as the gap is, else counted.

        Args:
            outputs: [n, K] of the dense network in eval mode.
            labels, groups: [n] int64.
        """
        (margin, _), *_ = signals(outputs.float(), labels, "accuracy")
        relaxed = self.options.surrogate == "sigmoid"
        value = torch.sigmoid(margin / self.options.temperature) if relaxed else (margin > 0).float()
        inside = membership(groups, self.num_groups, None, value.dtype)
        self.reference = inside.mv(value) / inside.sum(1)

    def __call__(
        self, outputs: Tensor, labels: Tensor, groups: Tensor, share: float = 1.0, *, below: bool = False
    ) -> Tensor:
        """The penalty, a scalar; 0 where the batch lacks a group.

        Args:
            outputs: [B, K].
            labels, groups: [B] int64.
            share: over several processes this one's rows over the mean rows (the caller's loss is scaled by it).
            below: go below 0 where the gap is smaller than the tolerance, as a constraint of a Lagrangian does.
        """
        events = signals(outputs.float(), labels, self.options.measure)
        penalty, tolerance = self.options.penalty, self.options.tolerance
        terms = []
        for (u, member), shares in zip(events, self.shares, strict=True):
            upper, lower = self._of_event(u, member, groups, shares, share)
            terms.append(
                penalised(upper, lower, penalty) - tolerance if below else penalised(upper, lower, penalty, tolerance)
            )
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum()

    def _of_event(
        self, u: Tensor, member: Tensor | None, groups: Tensor, shares: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """The relaxed gap from above and from below; one tensor where it is no bound."""
        options = self.options
        if options.surrogate == "sigmoid":
            value = torch.sigmoid(u if options.temperature == 1 else u / options.temperature)
            if self._plain and member is None and u.device.type == "cpu":  # elsewhere counting waits for the device
                gap = _contrast(groups, u.dtype).dot(value)
                return gap, gap
        with torch.no_grad():
            inside = membership(groups, self.num_groups, member, u.dtype)
            counts = self._summed(inside.sum(1) if share else torch.zeros_like(inside[:, 0]))
            present = (counts > 0).all().to(u.dtype)
            means = inside * (present / counts.clamp(min=1))[:, None]
            reference = None if self.reference is None else present * self.reference.to(u.device)
        if options.surrogate == "sigmoid":
            if self.num_groups == 2:
                gap = self._everywhere((means[1] - means[0]).dot(value), share)
                upper = gap if reference is None else gap - (reference[1] - reference[0])
            else:
                rates = self._everywhere(means.mv(value), share)
                rates = rates if reference is None else rates - reference
                upper = rates.amax() - rates.amin()
            return upper, upper
        signed = torch.where(groups == 1, u, -u)
        weights = (means * (counts / (counts.sum().clamp(min=1) * shares.to(u.device)))[:, None]).sum(0)
        dense = present if reference is None else present + reference[1] - reference[0]
        upper = self._everywhere(weights.dot(kappa(signed, options.surrogate)), share) - dense
        lower = self._everywhere(weights.dot(1 - kappa(-signed, options.surrogate)), share) - dense
        return upper, lower

    @property
    def _plain(self) -> bool:
        """Whether the gap is a difference of two means over this batch, and no more."""
        return self.num_groups == 2 and self.world == 1 and self.reference is None

    def _summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value if self.total is None or self.world == 1 else self.total(value)

    def _everywhere(self, value: Tensor, share: float) -> Tensor:
        """A sum over this process's examples, of all processes, with a gradient whose average is the whole's."""
        if self.total is None or self.world == 1:
            return value
        if not share:  # the rows of a process without any are another's, repeated
            return self.total(torch.zeros_like(value.detach()))
        return self.total(value.detach()) + (value - value.detach()) * (self.world / share)


@torch.no_grad()
def _contrast(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """One over its count in the second group, minus one over its count in the first, [B]; zeros where one is empty.

    Its dot product with a value is the difference of the groups' means, in three operations.
    """
    second = int(groups.sum())
    first = len(groups) - second
    if not first or not second:
        return torch.zeros(len(groups), dtype=dtype)
    return torch.where(groups == 1, 1 / second, -1 / first).to(dtype)
