"""The two phases of a round in plain PyTorch: masks and weights together, then weights alone. Card sections 2 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plait_glt.adversary import ascend, delta_removed, implicit_term, unclipped
from plait_glt.auxiliary import auxiliary_loss
from plait_glt.baselines import drop_edges
from plait_glt.config import GLTConfig
from plait_glt.masked import INITIAL_NOISE, MaskedGNN
from plait_glt.sparsity import gradient_share
from plait_glt.tasks import Task


@dataclass(frozen=True)
class Trained:
    """What the mask phase ends with: scores to rank, at the best validation epoch.

    Args:
        edge_scores: s_g [U].
        weight_scores: s_theta, or ``|Theta|`` for the magnitude baseline, by name.
        gradient_share: share of the kept edges whose mask got a gradient in some epoch, the L1 term apart.
        epoch: the epoch chosen, from 1.
        validation_accuracy: the task's figure on validation there, in %.
    """

    edge_scores: Tensor
    weight_scores: dict[str, Tensor]
    gradient_share: float
    epoch: int
    validation_accuracy: float


@dataclass(frozen=True)
class Retrained:
    """The task's figures in % at the best validation epoch (counted from 1), whose weights the network then has."""

    accuracy: float
    validation_accuracy: float
    epoch: int


def train_masks(
    model: MaskedGNN,
    task: Task,
    edge_kept: Tensor,
    weight_kept: Mapping[str, Tensor],
    config: GLTConfig,
    generator: torch.Generator,
) -> Trained:
    """Train Theta, s_theta and s_g together from where Theta stands.

    The masks of the best validation epoch are returned, the first of equal ones, but none from the warm-up, so that a
    flat validation curve does not choose the masks as they began (card, trap 7).

    Args:
        model: its network at Theta_0 with pruned weights 0.
        task: graph and splits.
        edge_kept: b_g [U], bool.
        weight_kept: b_theta by name, bool.
        config: options.
        generator: of the initial noise, the samples of the auxiliary loss and what the task draws; on the CPU.

    Raises:
        GLTError: a loss that is not finite.
    """
    step = MaskStep(model, task, edge_kept, weight_kept, config, generator)
    warmup = min(config.warmup, config.mask_epochs - 1)
    best: Trained | None = None
    for epoch in range(config.mask_epochs):
        step(with_aux=config.lam > 0 and epoch >= warmup)
        accuracy = task.score(_evaluate(model, task), "validation")
        if epoch >= warmup and (best is None or accuracy > best.validation_accuracy):
            best = Trained(*step.scores(), 0.0, epoch + 1, accuracy)
    assert best is not None
    return replace(best, gradient_share=gradient_share(step.reached, edge_kept))


class MaskStep:
    """Epochs of the mask phase, one a call; arguments as `train_masks`.

    Attributes:
        reached: mask entries that had a gradient so far [U], bool.
    """

    def __init__(
        self,
        model: MaskedGNN,
        task: Task,
        edge_kept: Tensor,
        weight_kept: Mapping[str, Tensor],
        config: GLTConfig,
        generator: torch.Generator,
    ) -> None:
        self.model, self.task, self.config, self.generator = model, task, config, generator
        self.kept = edge_kept
        model.soft_masks(True)
        model.compact(edge_kept)
        model.removed = None
        self.masks = [model.weight_mask(name) for name in model.names]
        hard = [weight_kept[name].to(mask.dtype) for name, mask in zip(model.names, self.masks, strict=True)]
        hard_edges = edge_kept.to(model.edge_mask.dtype)
        self.learn_edges, self.learn_weights = config.edge_ranking == "mask", config.weight_ranking == "mask"
        self.reached = torch.zeros_like(edge_kept)
        with torch.no_grad():
            for mask, kept in ((model.edge_mask, hard_edges), *zip(self.masks, hard, strict=True)):
                noise = torch.rand(mask.shape, generator=generator, dtype=mask.dtype).to(mask.device)
                mask.copy_(kept * (1 + INITIAL_NOISE * (2 * noise - 1)))
        model.edge_mask.requires_grad_(self.learn_edges)
        for mask in self.masks:
            mask.requires_grad_(self.learn_weights)
        self.optimizer = torch.optim.Adam(self._groups())
        weights = model.weights()
        self.held: list[nn.Parameter] = [*[weights[name] for name in model.names], *self.masks, model.edge_mask]
        self.holders = [*hard, *hard, hard_edges]

    def _groups(self) -> list[dict[str, object]]:
        config, decay = self.config, self.config.weight_decay
        network = list(self.model.network.parameters())
        groups: list[dict[str, object]] = [{"params": network, "lr": config.lr, "weight_decay": decay}]
        # weight decay on a mask would prune by itself (card, trap 2)
        decay = decay if config.decay_masks else 0.0
        if self.learn_weights and self.masks:
            groups.append({"params": self.masks, "lr": config.eta2, "weight_decay": decay})
        if self.learn_edges and config.adversary != "ascent":
            groups.append({"params": [self.model.edge_mask], "lr": config.eta1, "weight_decay": decay})
        return groups

    def __call__(self, *, with_aux: bool) -> None:
        """One step of all masks and weights; ``with_aux`` adds the auxiliary loss."""
        model, config = self.model, self.config
        model.train()
        self.task.renew(self.generator)
        adversary = config.adversary if self.learn_edges and model.edge_mask.numel() else "none"
        if adversary == "ascent":
            loss = self._ascend(with_aux)
        else:
            if adversary == "delta" and config.rho > 0:
                (gradient,) = torch.autograd.grad(self.task.loss(self._logits()), model.edge_mask)
                model.removed = delta_removed(gradient, model.edge_mask.detach(), self.kept, config.rho)
            loss = self._loss(with_aux)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        model.removed = None
        with torch.no_grad():
            self._descend()

    def _logits(self) -> Tensor:
        logits: Tensor = self.model(self.task.x, self.task.edge_index)
        return logits

    def _loss(self, with_aux: bool) -> Tensor:
        logits = self._logits()
        loss = self.task.loss(logits)
        if not with_aux:
            return loss
        config = self.config
        auxiliary = auxiliary_loss(
            *self.task.compared(logits),
            samples=config.wd_samples,
            generator=self.generator,
            eps=config.wd_eps,
            max_iterations=config.wd_iterations,
            tolerance=config.wd_tolerance,
        )
        return loss + config.lam * auxiliary.loss

    def _ascend(self, with_aux: bool) -> Tensor:
        mask, config = self.model.edge_mask, self.config
        implicit = config.alpha > 0
        (before,) = torch.autograd.grad(self._loss(with_aux), mask, create_graph=implicit)
        free = unclipped(mask, before, self.kept, config.eta1)
        with torch.no_grad():
            mask.copy_(ascend(mask, before, self.kept, config.eta1))
        loss = self._loss(with_aux)
        if not implicit:
            return loss
        (after,) = torch.autograd.grad(loss, mask, retain_graph=True)
        return loss + implicit_term(before, after, free, alpha=config.alpha, step=config.eta1)

    def _descend(self) -> None:
        config, edge_mask = self.config, self.model.edge_mask
        if edge_mask.grad is not None:
            self.reached |= edge_mask.grad != 0
            if config.l1_edges:
                edge_mask.grad.add_(edge_mask.sign(), alpha=config.l1_edges)
        if config.l1_weights and self.learn_weights:
            for mask in self.masks:
                if mask.grad is not None:
                    mask.grad.add_(mask.sign(), alpha=config.l1_weights)
        pairs = [(p.grad, hard) for p, hard in zip(self.held, self.holders, strict=True) if p.grad is not None]
        torch._foreach_mul_([grad for grad, _ in pairs], [hard for _, hard in pairs])
        self.optimizer.step()
        if config.clip and self.learn_edges:
            edge_mask.clamp_(0, 1)
        torch._foreach_mul_([p.detach() for p in self.held], self.holders)

    def scores(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Copies of what is ranked."""
        ranked = self.model.weights() if self.config.weight_ranking == "magnitude" else None
        weights = {
            name: (mask if ranked is None else ranked[name]).detach().clone()
            for name, mask in zip(self.model.names, self.masks, strict=True)
        }
        return self.model.edge_mask.detach().clone(), weights


def retrain(
    model: MaskedGNN,
    task: Task,
    edge_kept: Tensor,
    weight_kept: Mapping[str, Tensor],
    config: GLTConfig,
    generator: torch.Generator,
) -> Retrained:
    """Train Theta from where it stands with fixed masks and the plain loss of the task; the same for every variant.

    The network ends with the weights of its best validation epoch, the first of equal ones.

    Args:
        model, task, edge_kept, weight_kept, config: as in `train_masks`.
        generator: of DropEdge and what the task draws; on the CPU.

    Raises:
        GLTError: a loss that is not finite.
    """
    _fix(model, edge_kept, weight_kept)
    weights = model.weights()
    held = [weights[name] for name in model.names]
    hard = [weight_kept[name].to(w.dtype) for name, w in zip(model.names, held, strict=True)]
    optimizer = torch.optim.Adam(model.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    best = Retrained(0.0, -1.0, 0)
    state: dict[str, Tensor] = {}
    for epoch in range(config.fix_epochs):
        model.train()
        task.renew(generator)
        model.removed = drop_edges(edge_kept, config.dropedge, generator) if config.dropedge else None
        optimizer.zero_grad()
        task.loss(model(task.x, task.edge_index)).backward()  # type: ignore[no-untyped-call]
        model.removed = None
        with torch.no_grad():
            pairs = [(w.grad, h) for w, h in zip(held, hard, strict=True) if w.grad is not None]
            if pairs:
                torch._foreach_mul_([grad for grad, _ in pairs], [h for _, h in pairs])
            # pruned weights are 0 and stay so: no gradient, no moment, and decay of 0 is 0
            optimizer.step()
        logits = _evaluate(model, task)
        accuracy = task.score(logits, "validation")
        if accuracy > best.validation_accuracy:
            best = Retrained(task.score(logits, "test"), accuracy, epoch + 1)
            state = {name: value.detach().clone() for name, value in model.network.state_dict().items()}
    model.network.load_state_dict(state)
    return best


@torch.no_grad()
def _fix(model: MaskedGNN, edge_kept: Tensor, weight_kept: Mapping[str, Tensor]) -> None:
    model.soft_masks(False)
    model.removed = None
    model.edge_mask.copy_(edge_kept)
    for name in model.names:
        model.weight_mask(name).copy_(weight_kept[name])
    model.compact(edge_kept)
    for mask in (model.edge_mask, *model.weight_masks.values()):
        mask.grad = None


@torch.no_grad()
def _evaluate(model: MaskedGNN, task: Task) -> Tensor:
    model.eval()
    logits: Tensor = model(task.x, task.edge_index)
    return logits
