"""BiFP around any model and optimizer, in anybody's training loop. Card section 2.6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.training.frozen import evaluating, frozen_buffers
from plait.training.masks import MaskSet

from . import importance
from .channels import Channels
from .engine import BiFPEngine, MaskGradients, Update
from .errors import FairpruneError
from .lagrangian import DualAscent
from .options import FairpruneOptions
from .relaxation import GapPenalty
from .units import Units, Weights, prunable_weights

__all__ = ["BiFP"]

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs [B, ...], labels [B] int64, groups [B] int64."""


class BiFP:
    """Fair mask and fair weights in one training.

    One step: a mask step on the batch of the mask where it is due, then one step of the optimizer on the batch of the
    weights, with the mask fixed. Pruned weights are exactly zero, and so are their gradients and the optimizer's state.

    Args:
        model: the network, logits [B, K].
        optimizer: over its parameters; its learning rate is the caller's to schedule.
        labels, groups: of the training data, int64 [n]; counted, for shares of groups and for what is missing.
        total_steps: T, weight steps of the whole training.
        example: an input, needed for ``structure = "channels"``.
        seed: of random scores.
        criterion: ``criterion(outputs, labels)`` -> [B]. Default cross-entropy.
        options: as of `FairpruneOptions`. The protocol ``paper`` and ``stratify`` are about batches: give `step` those
            that you mean.

    Raises:
        FairpruneError, pydantic.ValidationError: options or data that cannot be used, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        labels: Tensor,
        groups: Tensor,
        total_steps: int,
        example: Tensor | None = None,
        seed: int = 0,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        self.options = FairpruneOptions(**options)
        self.model, self.optimizer, self.example = model, optimizer, example
        self.criterion = criterion or partial(functional.cross_entropy, reduction="none")
        classes, num_groups = int(labels.max()) + 1, int(groups.max()) + 1
        self.penalty = GapPenalty.of(self.options, labels, groups, classes, num_groups)
        self.channels: Channels | None = None
        weights = dict(model.named_parameters())
        chosen = (self.options.include, self.options.exclude)
        if self.options.structure == "channels":
            if example is None:
                raise FairpruneError("structure = 'channels' needs example=, an input to follow the network with")
            self.channels = Channels.of(model, example, *chosen)
        units: Units = self.channels or Weights(
            {name: weights[name].shape for name in prunable_weights(model, *chosen)}
        )
        self.masks = MaskSet(model)
        owned = self.masks.own("fairprune", units.names)
        self.generator = torch.Generator().manual_seed(seed)
        self.engine = BiFPEngine(self.options, total_steps, units, weights, owned, self.generator)
        self.ascent: DualAscent | None = None
        if self.options.dual_rate:
            start, rate = self.options.of_weights, self.options.dual_rate
            self.ascent = DualAscent(start, rate, next(iter(weights.values())).device)
        self.steps = 0

    def step(self, batch: Batch, mask_batch: Batch | None = None) -> Tensor:
        """A mask step where it is due, and one weight step.

        Args:
            batch: of the weights' problem.
            mask_batch: of the mask's problem, another draw; looked at only where `needs_mask_batch`. Default: the same.

        Returns:
            the weights' loss, detached.
        """
        if self.engine.due(self.steps):
            self._select(batch, mask_batch if mask_batch is not None else batch)
        self.optimizer.zero_grad()
        pruning = self.steps >= self.engine.schedule.start or not self.engine.schedule.events
        ascent = self.ascent if pruning else None
        loss = self._loss(batch, self.options.of_weights if pruning else self.options.of_dense, ascent)
        loss.backward()  # type: ignore[no-untyped-call]
        self.masks.mask_gradients(keep=False, accumulate=False)
        self.optimizer.step()
        self.masks.hold()
        if ascent is not None:
            ascent.step()
        self.steps += 1
        return loss.detach()

    @torch.no_grad()
    def remember_dense(self, inputs: Tensor, labels: Tensor, groups: Tensor) -> None:
        """For ``measure = "degradation"``: what the dense network gives these examples, before pruning begins."""
        with evaluating(self.model):
            self.penalty.remember(self.model(inputs), labels, groups)

    @property
    def needs_mask_batch(self) -> bool:
        """Whether the next `step` has a mask step that looks at a batch."""
        wants = self.engine.learns or self.options.scores in ("snip", "fairgrape")
        return wants and self.engine.due(self.steps)

    def export(self) -> nn.Module:
        """A copy in eval mode: masked, or with whole channels physically narrower."""
        self.masks.hold()
        model = copy.deepcopy(self.model).eval()
        return model if self.channels is None else self.channels.narrowed(model, self.example, self.engine.kept)

    def state_dict(self) -> dict[str, Any]:
        """Masks, scores, hidden weights, counters; model and optimizer are the caller's to save."""
        return {
            "engine": self.engine.state_dict(),
            "masks": self.masks.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "multiplier": None if self.ascent is None else self.ascent.value,
            "reference": self.penalty.reference,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, on the same model and options."""
        self.engine.load_state_dict(state["engine"])
        self.masks.load_state_dict(state["masks"])
        self.generator.set_state(state["generator"])
        self.steps = int(state["steps"])
        if self.ascent is not None:
            self.ascent.load(float(state["multiplier"]))
        self.penalty.reference = state["reference"]
        self.masks.dirty = False

    def _loss(self, batch: Batch, strength: float, ascent: DualAscent | None = None) -> Tensor:
        inputs, labels, groups = batch
        outputs = self.model(inputs)
        loss: Tensor = self.criterion(outputs, labels).mean()
        if ascent is not None:
            return loss + ascent.term(self.penalty(outputs, labels, groups, below=True))
        if not strength:
            return loss
        penalty = self.penalty(outputs, labels, groups)
        return loss + (penalty if strength == 1 else strength * penalty)

    def _select(self, batch: Batch, mask_batch: Batch) -> Update:
        if self.options.measure == "degradation" and self.penalty.reference is None:
            raise FairpruneError(
                "measure = 'degradation' compares with the dense network: call remember_dense before pruning begins,"
                f" after step {self.engine.schedule.start}"
            )
        gradients = None
        if self.engine.learns:
            lower = None
            if self.options.hypergradient == "ig":
                lower = self._gradients(batch, self.ascent.value if self.ascent else self.options.of_weights)
            gradients = MaskGradients(self._gradients(mask_batch, self.options.of_mask), lower)
        update = self.engine.update(self.steps, gradients, partial(self._importance, mask_batch))
        self.masks.changed()
        self.masks.hold_state(self.optimizer)
        return update

    def _gradients(self, batch: Batch, strength: float) -> list[Tensor]:
        """The gradient of the loss at the masked weights, dense; statistics of layers stay as they are."""
        parameters = dict(self.model.named_parameters())
        wanted = [parameters[name] for name in self.engine.units.names]
        with frozen_buffers(self.model):
            loss = self._loss(batch, strength)
            trained = [parameter for parameter in wanted if parameter.requires_grad]
            given = iter(torch.autograd.grad(loss, trained, allow_unused=True))
        gradients = [next(given) if parameter.requires_grad else None for parameter in wanted]
        return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True)]

    def _importance(self, batch: Batch) -> Tensor:
        theta = self.engine.dense()
        if self.channels is not None:
            return importance.fpgm(self.channels.filters(self.model))
        if self.options.scores == "snip":
            return importance.snip(theta, [self._gradients(batch, 0.0)])
        inputs, labels, groups = batch
        by_group = [
            [self._gradients((inputs[groups == g], labels[groups == g], groups[groups == g]), 0.0)]
            for g in torch.unique(groups).tolist()
        ]
        return importance.fairgrape(theta, by_group, list(self.engine.units.layers.values()))
