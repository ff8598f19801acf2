"""Instance weights: how much each example counts in the loss.

The paper says only "instance-level reweighting" (arXiv 2503.22934). Every table below, and the default ``group``, is a
reconstruction: card section 2.2 [inferred].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import FairsamError, FairsamWarning, check_choice, check_integer, check_number
from .groups import check_index, group_sums

__all__ = ["WEIGHTS", "AdaptiveWeights", "TableWeights", "cell_counts", "weight_table"]

TABLES = ("none", "group", "subgroup", "kamiran")
"""The modes that are a fixed table V[s, y]."""

WEIGHTS = (*TABLES, "adaptive")
"""Every value of the option ``weights``."""


def cell_counts(
    groups: Tensor, labels: Tensor, *, num_groups: int | None = None, num_classes: int | None = None, least: int = 2
) -> Tensor:
    """Count the training split's examples by (group, label).

    Args:
        groups: ``[n]`` int64 in ``0..G-1``, training split only (using all the data leaks the test split).
        labels: ``[n]`` int64 in ``0..K-1``.
        num_groups: G; default: largest group + 1.
        num_classes: K; default: largest label + 1.
        least: groups that there must be.

    Returns:
        ``[G, K]`` int64 counts ``n_sy``, on the CPU.

    Raises:
        FairsamError: vectors of different length, values out of range, or fewer groups.
    """
    if groups.shape != labels.shape:
        raise FairsamError(
            f"groups {tuple(groups.shape)} and labels {tuple(labels.shape)} must have the same shape [n]"
        )
    groups, labels = groups.detach().cpu(), labels.detach().cpu()
    size_g, size_k = check_index("groups", groups, num_groups), check_index("labels", labels, num_classes)
    counts = torch.bincount(groups.long() * size_k + labels.long(), minlength=size_g * size_k).view(size_g, size_k)
    present = counts.sum(1).nonzero().flatten().tolist()
    if len(present) < least:
        raise FairsamError(f"groups={present} is the only group in the training split; fairsam needs at least two")
    return counts


def weight_table(counts: Tensor, mode: str = "group", *, power: float = 1.0) -> Tensor:
    """Weight of every (group, label) cell, normalised to mean 1 over the training split.

    Before normalisation, with ``n_s``, ``n_y``, ``n_sy`` the training counts (card section 2.2 [inferred]):
    ``none`` 1; ``group`` ``n / (G n_s)``; ``subgroup`` ``n / (G K n_sy)``; ``kamiran`` ``n_s n_y / (n n_sy)``
    (Kamiran and Calders 2012, which makes group and label independent). Then ``V := V**power``, empty cells get
    weight 0, and V is divided by ``sum(n_sy V) / n``, which keeps the learning rate comparable with unweighted
    training.

    Args:
        counts: ``[G, K]`` counts from `cell_counts`.
        mode: one of `TABLES`.
        power: exponent in ``[0, 1]``; 0 gives ``none`` on the non-empty cells. Default 1.

    Returns:
        ``[G, K]`` float32.

    Raises:
        FairsamError: unknown mode, power outside ``[0, 1]``, or counts that are not a ``[G, K]`` table with examples.

    Warns:
        FairsamWarning: one warning naming every (group, label) cell without training examples.
    """
    check_choice("weights", mode, TABLES)
    power = check_number("weights_power", power, 0.0, 1.0)
    if counts.ndim != 2 or bool((counts < 0).any()) or int(counts.sum()) == 0:
        raise FairsamError(f"counts must be a [G, K] table of counts with at least one example, got {counts.tolist()}")
    joint = counts.detach().to("cpu", torch.float64)
    n, by_group, by_label = joint.sum(), joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    size_g, size_k = joint.shape
    if mode == "none":
        table = torch.ones_like(joint)
    elif mode == "group":
        table = (n / (size_g * by_group)).expand(size_g, size_k)
    elif mode == "subgroup":
        table = n / (size_g * size_k * joint)
    else:
        table = (by_group * by_label) / (n * joint)
    empty = joint == 0
    if bool(empty.any()):
        names = ", ".join(f"(group {s}, label {y})" for s, y in empty.nonzero().tolist())
        warnings.warn(f"no training example in {names}: weight 0 there", FairsamWarning, stacklevel=2)
    table = torch.where(empty, 0.0, table**power)
    return (table / ((table * joint).sum() / n)).float()


class TableWeights:
    """Look instance weights up in a fixed table: ``v_i = V[s_i, y_i]``.

    Args:
        table: ``[G, K]`` floating point, e.g. from `weight_table`.

    Raises:
        FairsamError: a table that is not 2-D, or with negative or non-finite entries.
    """

    def __init__(self, table: Tensor) -> None:
        if table.ndim != 2 or not table.is_floating_point() or not bool((table.isfinite() & (table >= 0)).all()):
            raise FairsamError(f"table must be [G, K] finite and >= 0, got {table.tolist()}")
        self.table = table.detach().clone()

    @classmethod
    def from_data(
        cls,
        groups: Tensor,
        labels: Tensor,
        mode: str = "group",
        *,
        power: float = 1.0,
        num_groups: int | None = None,
        num_classes: int | None = None,
    ) -> TableWeights:
        """Build from the training split's groups and labels (both ``[n]``); see `cell_counts` and `weight_table`."""
        counts = cell_counts(groups, labels, num_groups=num_groups, num_classes=num_classes)
        return cls(weight_table(counts, mode, power=power))

    def __call__(self, groups: Tensor, labels: Tensor) -> Tensor:
        """Weights float of the examples with these groups and labels (all ``[B]``; int64; or ``[N, B]`` alike)."""
        if self.table.device != groups.device:
            self.table = self.table.to(groups.device)
        if not groups.is_cuda:  # a wrong index would wrap around silently; on CUDA the check would stall the stream
            check_index("groups", groups.reshape(-1), self.table.shape[0])
            check_index("labels", labels.reshape(-1), self.table.shape[1])
        return self.table[groups.long(), labels.long()]

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between steps: the table."""
        return {"table": self.table.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a table of another shape is a `FairsamError`."""
        table = state["table"]
        if table.shape != self.table.shape:
            raise FairsamError(f"table of shape {tuple(table.shape)} does not fit {tuple(self.table.shape)}")
        self.table = table.to(self.table).clone()


class AdaptiveWeights:
    """Group weights that follow the losses: groups with a larger loss gain weight (card section 2.5 [inferred]).

    State ``q [G]`` starts uniform. After the descent pass, with ``L_a`` the batch mean of ``l_i(w + e)`` over group a::

        q_a <- q_a exp(eta_q (L_a - mean_a L_a))      groups absent from the batch keep their q_a
        q   <- clip(q, clip[0] / G, clip[1] / G), then divided by its sum

    Weights, normalised to mean 1 over the training split (``n_a`` its group counts, ``n`` its size):

    - ``start="none"`` (default; formula of section 2.5): ``v_i = q_s / sum_a(q_a n_a / n)``. Uniform q means v = 1.
    - ``start="group"`` (the row of section 2.2): ``v_i = q_s / (n_s / n)``. Uniform q means the table ``group``; the
      expected loss is ``sum_a q_a L_a``, GroupDRO's objective (Sagawa et al. 2020).

    The two disagree on the card; both are here.

    Args:
        group_counts: ``[G]`` training counts, all > 0.
        eta_q: step size of q, >= 0. Default 0.05.
        clip: lowest and highest q in multiples of the uniform ``1 / G``. Default ``(0.05, 20)``; None: no clipping.
        start: ``"none"`` or ``"group"``.
        center: subtract the mean group loss in the exponent. Default True.
        reduce: optional all-reduce (sum) over ranks, applied to ``[2, G]`` sums and counts before the means are taken.

    Raises:
        FairsamError: bad counts, eta_q, clip or start.
    """

    def __init__(
        self,
        group_counts: Tensor | Sequence[int],
        *,
        eta_q: float = 0.05,
        clip: tuple[float, float] | None = (0.05, 20.0),
        start: str = "none",
        center: bool = True,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        counts = torch.as_tensor(group_counts).detach().float()
        if counts.ndim != 1 or counts.numel() < 2 or not bool((counts > 0).all()):
            raise FairsamError(
                f"group_counts={counts.tolist()} must be at least two groups, each with training examples"
            )
        self.eta_q = check_number("eta_q", eta_q)
        self.start = check_choice("start", start, ("none", "group"))
        self.clip = clip
        if clip is not None and not 0 < check_number("clip", clip[0]) <= 1 <= check_number("clip", clip[1]):
            raise FairsamError(f"clip={clip!r} must satisfy 0 < low <= 1 <= high")
        self.center = center
        self.reduce = reduce
        self.prior = counts / counts.sum()
        self.q = torch.full_like(self.prior, 1.0 / counts.numel())

    @property
    def num_groups(self) -> int:
        """Number of groups G."""
        return self.q.numel()

    @property
    def table(self) -> Tensor:
        """Current weight of each group, ``[G]`` float32, mean 1 over the training split."""
        return self.q / self.prior if self.start == "group" else self.q / (self.q * self.prior).sum()

    def __call__(self, groups: Tensor, labels: Tensor | None = None) -> Tensor:
        """Weights ``[B]`` of examples with these groups ``[B]``; labels are accepted and ignored, as in a table."""
        self._to(groups.device)
        if not groups.is_cuda:
            check_index("groups", groups, self.num_groups)
        return self.table[groups.long()]

    @torch.no_grad()
    def update(self, per_example: Tensor, groups: Tensor) -> None:
        """Move q by one batch; no host synchronisation.

        Args:
            per_example: ``[B]`` unweighted losses of the descent pass. A group whose mean is not finite is treated as
                absent, so that the state stays usable for a restart after a NaN loss.
            groups: ``[B]`` int64.
        """
        self._to(per_example.device)
        sums = torch.stack(group_sums(per_example.detach(), groups, self.num_groups))
        if self.reduce is not None:
            sums = self.reduce(sums)
        means = (sums[0] / sums[1].clamp(min=1)).to(self.q)
        present = (sums[1] > 0) & means.isfinite()
        if self.center:
            means = means - torch.where(present, means, 0.0).sum() / present.sum().clamp(min=1)
        self.q = self.q * torch.where(present, self.eta_q * means, 0.0).exp()
        if self.clip is not None:
            self.q = self.q.clamp(self.clip[0] / self.num_groups, self.clip[1] / self.num_groups)
        self.q = self.q / self.q.sum()

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between steps: q."""
        return {"q": self.q.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a q for another number of groups is a `FairsamError`."""
        check_integer("the checkpoint's number of groups", state["q"].numel(), self.num_groups, self.num_groups)
        self.q = state["q"].to(self.q).clone()

    def _to(self, device: torch.device) -> None:
        if self.q.device != device:
            self.q, self.prior = self.q.to(device), self.prior.to(device)
