"""Gradients of an ordinary ``nn.Module`` on one batch, for anybody's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from plait.training.frozen import frozen_buffers

from .baselines import group_gap_penalty
from .errors import FairsamError, check_number
from .sam import Losses

__all__ = ["BatchGradients", "ModelGradients", "frozen_statistics"]


frozen_statistics = frozen_buffers
"""Keep running statistics, and all other state of layers, as they were before; the backward pass belongs inside."""


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    if device.type == "cpu":
        return torch.get_rng_state(), None
    module = torch.get_device_module(device)
    return torch.get_rng_state(), module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        module = torch.get_device_module(device)
        _ = module.set_rng_state(state[1]) if device.type == "mps" else module.set_rng_state(state[1], device)


@contextmanager
def _replayed(device: torch.device, state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Draw from ``state`` on; afterwards the stream goes on as if nothing had been drawn."""
    before = _random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, before)


class ModelGradients:
    """Make `Gradients` for batches of a model: ``FairSAM.step(ModelGradients(model, loss_fn).on(x, y, weights=v))``.

    Args:
        model: called as ``model(inputs)``. A DistributedDataParallel model does not synchronise in probes (m-SAM).
        loss_fn: ``loss_fn(outputs, targets) -> [B]``, unreduced, e.g. ``nn.CrossEntropyLoss(reduction="none")``.
        parameters: what `Losses.gradients` is aligned with; default: the model's parameters that require gradients.
            Pass the list that FairSAM has if you perturb only some of them.
        penalty: coefficient >= 0 of `group_gap_penalty` on the unweighted losses, added to every pass's objective;
            needs ``groups`` in `on`. Per group every pass sees one group and the penalty is 0. Default 0.

    Raises:
        FairsamError: penalty < 0 or NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        parameters: Iterable[Tensor] | None = None,
        *,
        penalty: float = 0.0,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self._parameters = None if parameters is None else [p for p in parameters if p.requires_grad]
        self.penalty = check_number("penalty", penalty)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the gradients are aligned with."""
        if self._parameters is not None:
            return self._parameters
        return [p for p in self.model.parameters() if p.requires_grad]

    def on(
        self, inputs: Any, targets: Any, *, groups: Tensor | None = None, weights: Tensor | None = None
    ) -> BatchGradients:
        """Bind one batch.

        Args:
            inputs: a tensor with leading axis B, or tuples, lists and mappings of such.
            targets: the same, passed to the loss.
            groups: ``[B]`` int64; needed for a penalty only.
            weights: ``[B]`` instance weights v; None means 1.

        Raises:
            FairsamError: a penalty without groups.
        """
        if self.penalty and groups is None:
            raise FairsamError(f"penalty={self.penalty!r} needs on(..., groups=...), got groups=None")
        return BatchGradients(self, inputs, targets, groups, weights)


class BatchGradients:
    """The `Gradients` of one batch; made by `ModelGradients.on`."""

    def __init__(
        self, owner: ModelGradients, inputs: Any, targets: Any, groups: Tensor | None, weights: Tensor | None
    ) -> None:
        self._owner = owner
        self._inputs, self._targets = inputs, targets
        self._groups = groups
        self._weights = None if weights is None else weights.detach()
        self._noise: tuple[Tensor, Tensor | None] | None = None  # random state at the start of the latest first pass

    def __call__(
        self,
        *,
        weighted: bool = True,
        rows: Tensor | None = None,
        probe: bool = False,
        accumulate: bool = False,
        scale: float = 1.0,
        replay: bool = False,
        freeze_statistics: bool = False,
        focus: Tensor | None = None,
    ) -> Losses:
        """One pass; see `sam.Gradients` for the arguments."""
        model, parameters = self._owner.model, self._owner.parameters
        device = parameters[0].device
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if freeze_statistics:
                stack.enter_context(frozen_statistics(model))
            if not replay:
                self._noise = _random_state(device)
            elif self._noise is None:
                raise FairsamError("replay=True needs an earlier pass with replay=False on this batch")
            else:
                stack.enter_context(_replayed(device, self._noise))
            if probe:
                stack.enter_context(_unsynchronised(model))
            loss, per_example = self._forward(weighted, rows, focus)
            gradients: list[Tensor | None] | None = None
            if probe:
                gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
            else:
                if not accumulate:
                    model.zero_grad(set_to_none=True)
                    for p in parameters:
                        p.grad = None
                (loss if scale == 1.0 else loss * scale).backward()  # type: ignore[no-untyped-call]
        return Losses(loss.detach(), per_example.detach(), gradients)

    def _forward(self, weighted: bool, rows: Tensor | None, focus: Tensor | None) -> tuple[Tensor, Tensor]:
        owner = self._owner
        per_example = owner.loss_fn(owner.model(_select(self._inputs, rows)), _select(self._targets, rows))
        if per_example.ndim != 1:
            raise FairsamError(
                f"loss_fn returned shape {tuple(per_example.shape)}; fairsam needs one loss per example [B]"
                " (reduction='none', and a mean over everything but the batch axis)"
            )
        if focus is not None:
            return _select(per_example, focus).mean(), per_example
        weights = _select(self._weights, rows) if weighted else None
        if weights is not None and weights.shape != per_example.shape:
            raise FairsamError(f"weights of shape {tuple(weights.shape)} do not fit losses {tuple(per_example.shape)}")
        loss = per_example.mean() if weights is None else (weights.to(per_example.device) * per_example).mean()
        if owner.penalty:
            assert self._groups is not None
            loss = loss + owner.penalty * group_gap_penalty(per_example, _select(self._groups, rows))
        return loss, per_example


def _select(values: Any, rows: Tensor | None) -> Any:
    """Take these rows of every tensor in a nest of tuples, lists and mappings."""
    if rows is None or values is None:
        return values
    if isinstance(values, Tensor):
        return values.index_select(0, rows.to(values.device))
    if isinstance(values, Mapping):
        return {key: _select(value, rows) for key, value in values.items()}
    if isinstance(values, tuple | list):
        taken = [_select(value, rows) for value in values]
        return type(values)(*taken) if hasattr(values, "_fields") else type(values)(taken)
    raise FairsamError(f"cannot take rows of {type(values).__name__}; give tensors, tuples, lists or mappings")


def _unsynchronised(model: nn.Module) -> AbstractContextManager[Any]:
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if callable(no_sync) else nullcontext()
