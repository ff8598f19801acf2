"""The FairSAM step: sharpness-aware minimization whose ascent and descent both see the instance weights.

Source: card sections 2.3 and 2.4. The objective (weights inside the min-max) is [inferred] from the paper's summary,
    arXiv
2503.22934; the two-pass step is Foret et al. 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from plait.training.replicas import HALVES

from .errors import FairsamError, FairsamWarning, check_choice, check_integer, check_number
from .groups import check_index
from .perturbation import SavedWeights, asam_perturbation, sam_perturbation

__all__ = ["PERTURBATIONS", "FairSAM", "Gradients", "Losses", "StepLosses"]

PERTURBATIONS = ("weighted", "plain", "ascent_only", "per_group", "per_group_whole")
"""Every value of the option ``perturbation``."""
PER_GROUP = ("per_group", "per_group_whole")
"""Those in which every group has a perturbation of its own."""


@dataclass(slots=True)
class Losses:
    """What one evaluation of the gradients reports.

    Attributes:
        loss: 0-dim detached objective of this evaluation (not multiplied by ``scale``).
        per_example: ``[B]`` detached unweighted losses; ``[R]`` when only R rows were asked for.
        gradients: with ``probe``, one entry per parameter (None where the loss does not reach it); otherwise None.
    """

    loss: Tensor
    per_example: Tensor
    gradients: list[Tensor | None] | None = None


class Gradients(Protocol):
    """Evaluates loss and gradients on one batch, as often as the step asks. `ModelGradients` is one; write your own
    freely."""

    def __call__(
        self,
        *,
        weighted: bool,
        rows: Tensor | None,
        probe: bool,
        accumulate: bool,
        scale: float,
        replay: bool,
        freeze_statistics: bool,
        focus: Tensor | None = None,
    ) -> Losses:
        """Run one forward and backward pass at the parameters as they are now.

        Args:
            weighted: multiply the example losses by ``v_i`` (and divide by the number of rows, not by the sum of v).
            rows: ``[R]`` int64 indices into the batch, or None for all of it.
            probe: leave every ``p.grad`` as it was and return the gradients in `Losses.gradients`.
            accumulate: without ``probe``: add to ``p.grad`` (True) or replace it (False).
            scale: without ``probe``: factor on the gradient that is written.
            replay: use the dropout noise of the latest pass that had ``replay=False``.
            freeze_statistics: leave running statistics (BatchNorm) as they were.
            focus: with ``per_group_whole``: ``[R]`` int64; the whole batch runs forward, and the objective is the mean
                of these rows' unweighted losses.
        """
        ...


@dataclass(slots=True)
class StepLosses:
    """What one step reports.

    Attributes:
        loss: 0-dim objective whose gradient the optimizer uses: at ``w + e`` on a SAM step, at w on a plain one.
        per_example: ``[B]`` unweighted losses at the same point; feed them to `AdaptiveWeights.update`.
        ascent_loss: 0-dim objective at w of the ascent pass (``per_group``: its mean over groups); None on a plain
            step.
        gradient_norm: 0-dim norm of the ascent gradient (of ``T g`` with asam); None on a plain step or per group.
        evaluations: how many forward and backward passes the step took (2 on a SAM step, 2 per group with
            ``per_group`` and ``per_group_whole``).
    """

    loss: Tensor
    per_example: Tensor
    ascent_loss: Tensor | None
    gradient_norm: Tensor | None
    evaluations: int


class FairSAM:
    """Sharpness-aware minimization of the instance-weighted loss, around any optimizer.

    One step (card section 2.4): ``g1 = grad L_v(w)``; ``e = rho g1 / (||g1|| + 1e-12)`` with one global norm;
    ``g2 = grad L_v(w + e)`` on the same batch with the same dropout noise and frozen running statistics; back to the
    saved w; the optimizer applies g2. With weights 1 this is SAM; with ``rho=0`` it is the optimizer on the weighted
    loss.

    Modes of ``perturbation`` (card section 2.4 [inferred]):

    - ``weighted`` (default): the weights act in the ascent and in the descent.
    - ``plain``: ascent with v = 1, descent with v.
    - ``ascent_only``: ascent with v, descent with v = 1 (so ``rho=0`` means unweighted training here).
    - ``per_group``: every group a present in the batch gets its own ``e_a`` from its own unweighted mean loss, and the
      gradient is the mean over those groups of ``grad L_a(w + e_a)``. Passes run on the groups' sub-batches: BatchNorm
      normalises within each and updates its running statistics once per group, so every example enters them once (a
      sub-batch of one example without spatial extent is an error in BatchNorm). Under DDP each rank averages over the
      groups it holds.
    - ``per_group_whole`` (ours): the same, but every pass runs the whole batch forward and only the loss is the
      group's, so that BatchNorm normalises over all groups together, as it does at test time. As many passes, each on
      the whole batch.

    Nothing is kept in the optimizer's state, so the optimizer's checkpoints stay its own. Learning-rate schedules act
    on the optimizer; gradient clipping, if any, belongs between ``step(..., apply=False)`` and ``optimizer.step()``.

    Args:
        parameters: the tensors to perturb; those that do not require gradients are dropped. ``Losses.gradients`` must
            be aligned with `parameters`.
        optimizer: the base optimizer; None if the caller applies the gradients (``apply=False``).
        rho: radius, >= 0, in the parameters' unit. Default 0.05. ``per_group`` also takes one value per group.
        perturbation: one of `PERTURBATIONS`.
        asam: scale-invariant perturbation (Kwon et al. 2021); use rho 0.5 to 1.
        eta: floor of ASAM's scale, >= 0. Default 0.01.
        interval: perturb on steps k, 2k, 3k, ... and do a plain step otherwise. Cost 1 + 1/k instead of 2. Default 1.
        sync: maps the list of ascent gradients to the list to use, e.g. their all-reduced mean (synchronised
            perturbation). Default None: every rank perturbs by its own gradient (m-SAM, Foret et al. 2021).
        reduce_norm: maps this shard's squared norm to the whole's; see `perturbation.global_norm`.
        replicas: N where every parameter is ``[N, ...]`` and holds N networks, each perturbed by its own norm.

    Raises:
        FairsamError: no trainable parameter, rho negative or NaN, an unknown mode, several rho without ``per_group``,
            eta < 0, interval < 1.

    Warns:
        FairsamWarning: parameters in half precision, in which w + e is rounded.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizer: torch.optim.Optimizer | None,
        *,
        rho: float | Sequence[float] = 0.05,
        perturbation: str = "weighted",
        asam: bool = False,
        eta: float = 0.01,
        interval: int = 1,
        sync: Callable[[list[Tensor]], list[Tensor]] | None = None,
        reduce_norm: Callable[[Tensor], Tensor] | None = None,
        replicas: int | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.perturbation = check_choice("perturbation", perturbation, PERTURBATIONS)
        self.rho: float | tuple[float, ...]
        if isinstance(rho, Sequence) and not isinstance(rho, str):
            if self.perturbation not in PER_GROUP or not rho:
                raise FairsamError(
                    f"rho={rho!r}: one value per group needs perturbation='per_group', not {perturbation!r}"
                )
            self.rho = tuple(check_number(f"rho[{a}]", value) for a, value in enumerate(rho))
        else:
            self.rho = check_number("rho", rho)
        self.asam = bool(asam)
        self.eta = check_number("eta", eta)
        self.interval = check_integer("interval", interval, 1)
        self.sync = sync
        self.reduce_norm = reduce_norm
        self.replicas = replicas
        self.steps = 0
        self._saved = SavedWeights()
        self._inside = False
        self.rebind(parameters)

    def rebind(self, parameters: Iterable[Tensor]) -> None:
        """Use these parameters from now on (a network that shrank mid-run has new tensors)."""
        self._refuse_inside("rebind")
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise FairsamError("parameters is empty: no tensor requires gradients")
        low = next((p.dtype for p in self.parameters if p.dtype in HALVES), None)
        if low is not None:
            warnings.warn(
                f"parameters of {low}: w + e is rounded to it, so that small perturbations are lost; keep the weights"
                " in float32 and compute in half precision by autocast",
                FairsamWarning,
                stacklevel=3,
            )

    def step(self, gradients: Gradients, *, groups: Tensor | None = None, apply: bool = True) -> StepLosses:
        """Take one step; the parameters end at w (``apply=False``) or where the optimizer moves them.

        Args:
            gradients: the batch, as a `Gradients` callable.
            groups: ``[B]`` int64; needed by ``per_group`` only.
            apply: call ``optimizer.step()``; with False only ``p.grad`` is written, for clipping or a GradScaler.

        Raises:
            FairsamError: ``per_group`` without groups or with a group that has no rho; ``apply`` without an optimizer.
            Exception: whatever the passes raise; the parameters are back at w then.
        """
        self._refuse_inside("step")
        if apply and self.optimizer is None:
            raise FairsamError("apply=True needs an optimizer; FairSAM was built with optimizer=None")
        perturb = (self.steps + 1) % self.interval == 0
        self._inside = True
        try:
            if self.perturbation in PER_GROUP:
                report = self._per_group(gradients, groups, perturb)
            else:
                report = self._whole_batch(gradients, perturb)
        finally:
            self._inside = False
        if apply and self.optimizer is not None:
            self.optimizer.step()
        self.steps += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between steps: the step counter. In the middle of a step it raises `RuntimeError`."""
        self._refuse_inside("state_dict")
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. In the middle of a step it raises `RuntimeError`."""
        self._refuse_inside("load_state_dict")
        self.steps = check_integer("steps", state["steps"], 0)

    def _whole_batch(self, gradients: Gradients, perturb: bool) -> StepLosses:
        assert isinstance(self.rho, float)
        weighted = self.perturbation != "ascent_only"
        if not perturb or self.rho == 0:
            end = self._descend(gradients, weighted)
            return StepLosses(end.loss, end.per_example, None, None, 1)
        start, norm, end = self._climb(gradients, self.perturbation != "plain", weighted, self.rho)
        return StepLosses(end.loss, end.per_example, start.loss, norm, 2)

    def _per_group(self, gradients: Gradients, groups: Tensor | None, perturb: bool) -> StepLosses:
        if groups is None:
            raise FairsamError(f"perturbation={self.perturbation!r} needs step(..., groups=...), got groups=None")
        check_index("groups", groups)
        present = torch.unique(groups).tolist()
        if isinstance(self.rho, tuple) and present[-1] >= len(self.rho):
            raise FairsamError(f"rho={self.rho!r} has {len(self.rho)} values but the batch holds group {present[-1]}")
        scale, whole = 1.0 / len(present), self.perturbation == "per_group_whole"
        ends, starts, order, evaluations = [], [], [], 0
        for turn, group in enumerate(present):
            rows = (groups == group).nonzero().flatten()
            rho = self.rho if isinstance(self.rho, float) else self.rho[group]
            # the whole batch enters the running statistics and draws its dropout noise once, in the first turn
            again = whole and turn > 0
            chosen = {"rows": None, "focus": rows} if whole else {"rows": rows, "focus": None}
            if perturb and rho > 0:
                climbed = self._climb(gradients, False, False, rho, scale, accumulate=turn > 0, again=again, **chosen)
                start, _, end = climbed
                starts.append(start.loss)
            else:
                end = self._descend(gradients, False, scale, accumulate=turn > 0, frozen=again, **chosen)
            evaluations += 2 if perturb and rho > 0 else 1
            order.append(rows)
            ends.append(end)
        per_example = torch.cat(
            [
                e.per_example[r.to(e.per_example.device)] if whole else e.per_example
                for e, r in zip(ends, order, strict=True)
            ]
        )
        per_example[torch.cat(order).to(per_example.device)] = per_example.clone()
        loss = torch.stack([end.loss for end in ends]).mean()
        return StepLosses(loss, per_example, torch.stack(starts).mean() if starts else None, None, evaluations)

    def _climb(
        self,
        gradients: Gradients,
        ascent_weighted: bool,
        descent_weighted: bool,
        rho: float,
        scale: float = 1.0,
        *,
        rows: Tensor | None = None,
        focus: Tensor | None = None,
        accumulate: bool = False,
        again: bool = False,
    ) -> tuple[Losses, Tensor, Losses]:
        """Ascent probe, then the descent gradient at w + e; ``again`` if the step has run this batch before."""
        start = gradients(
            weighted=ascent_weighted,
            rows=rows,
            probe=True,
            accumulate=False,
            scale=1.0,
            replay=again,
            freeze_statistics=again,
            **_focused(focus),
        )
        if start.gradients is None or len(start.gradients) != len(self.parameters):
            count = None if start.gradients is None else len(start.gradients)
            raise FairsamError(f"a probe must return one gradient per parameter ({len(self.parameters)}), got {count}")
        pairs = [(p, g) for p, g in zip(self.parameters, start.gradients, strict=True) if g is not None]
        parameters, ascent = [p for p, _ in pairs], [g for _, g in pairs]
        if self.sync is not None:
            ascent = self.sync(ascent)
        norms: dict[str, Any] = {"reduce": self.reduce_norm, "replicas": self.replicas}
        if self.asam:
            perturbation, norm = asam_perturbation(parameters, ascent, rho, self.eta, **norms)
        else:
            perturbation, norm = sam_perturbation(ascent, rho, **norms)
        start.gradients = None
        displaced = self._saved.displaced(parameters, perturbation)
        with displaced:
            del pairs, ascent, perturbation  # freed before the descent pass, which is the memory peak
            end = self._descend(
                gradients,
                descent_weighted,
                scale,
                rows=rows,
                focus=focus,
                accumulate=accumulate,
                frozen=True,
            )
        return start, norm, end

    def _descend(
        self,
        gradients: Gradients,
        weighted: bool,
        scale: float = 1.0,
        *,
        rows: Tensor | None = None,
        focus: Tensor | None = None,
        accumulate: bool = False,
        frozen: bool = False,
    ) -> Losses:
        return gradients(
            weighted=weighted,
            rows=rows,
            probe=False,
            accumulate=accumulate,
            scale=scale,
            replay=frozen,
            freeze_statistics=frozen,
            **_focused(focus),
        )

    def _refuse_inside(self, what: str) -> None:
        if self._inside:
            raise RuntimeError(f"FairSAM.{what} was called in the middle of a step, where the weights are perturbed")


def _focused(focus: Tensor | None) -> dict[str, Any]:
    """Callables written before ``per_group_whole`` do not know the argument."""
    return {} if focus is None else {"focus": focus}
