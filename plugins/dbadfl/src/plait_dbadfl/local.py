"""The plain-PyTorch loop: local SGD of all nodes at once, in the order that an engine says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.training import replicas
from plait_dbadfl.defences import RobustAggregation
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.options import SGDOptions
from plait_dbadfl.pace import lowered
from plait_dbadfl.phases import Engine
from plait_dbadfl.poisoning import Poison, check_finite, check_gamma, distance_to_start, poison, scale_update
from plait_dbadfl.sampling import NodeData, draw_batch, generator
from plait_dbadfl.stacking import Stacked

__all__ = ["Attack", "NodeSGD", "Training"]

Prepare = Callable[[Tensor], Tensor]
PAIRS = 4096
"""Most pairs of models and batches at a time in `Training.cross_losses`."""


class NodeSGD(torch.optim.Optimizer):
    """SGD with momentum and weight decay whose learning rate may differ by node.

    Args:
        parameters: stacked tensors [N, *s].
        lr: learning rate; `node_scale` multiplies it by node.
        momentum, weight_decay: as in ``torch.optim.SGD`` (no dampening).

    Attributes:
        node_scale: None, or [N].
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.node_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [p.grad for p in parameters]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
            if group["momentum"]:
                # A buffer of zeros gives the first step that torch.optim.SGD takes from the gradient itself.
                for p in parameters:
                    if "momentum_buffer" not in self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum_buffer"] for p in parameters]
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, updates)
                updates = buffers
            if self.node_scale is not None:
                updates = replicas.scaled(updates, self.node_scale)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])


@dataclass(frozen=True)
class Attack:
    """What some nodes do in a round beside honest training.

    Args:
        nodes: int64 [M].
        poison: one row per node of ``nodes``.
        gamma: scale of their updates, in (0, 100].
        alpha: weight of cross-entropy against the distance to the start of the round, in [0, 1].
        lr: their learning rate, or None for the common one.
        milestones, decay: shares of their local steps after which their rate is multiplied by ``decay``.
    """

    nodes: Tensor
    poison: Poison
    gamma: float = 1.0
    alpha: float = 1.0
    lr: float | None = None
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if len(self.nodes) != len(self.poison.ratio):
            raise DbadflError(f"an attack of {len(self.nodes)} nodes has poison for {len(self.poison.ratio)}")

    @property
    def needs_start(self) -> bool:
        """Whether the models at the start of the round are needed."""
        return self.gamma != 1.0 or self.alpha < 1.0

    def acting(self) -> Tensor:
        """int64, the nodes of ``nodes`` that poison in this round."""
        return self.nodes[self.poison.ratio.cpu() > 0]


class Training:
    """N nodes in training; a step is a function of the state and of (seed, step number).

    Args:
        stack: the N models.
        engine: who trains when and exchanges what; made with ``keep_start`` if attacks need it.
        images: [n, ch, H, W] in [0, 1]. labels: int64 [n].
        data: which images each node owns.
        sgd: batch, learning rate, momentum, weight decay.
        seed: of batches and poisoning.
        optimizer: whose step the caller makes himself, between `begin_step` and `end_step`; None (default) is
            `NodeSGD`, with which `step` and `run_round` work.
        prepare: applied to images [..., ch, H, W] just before the networks (normalisation), after the triggers.

    Attributes:
        steps: steps done.
    """

    def __init__(
        self,
        stack: Stacked,
        engine: Engine,
        images: Tensor,
        labels: Tensor,
        data: NodeData,
        sgd: SGDOptions,
        seed: int,
        optimizer: torch.optim.Optimizer | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        if not stack.replicas == engine.n == data.nodes:
            raise DbadflError(
                f"{stack.replicas} models, a mixing of {engine.n} nodes and data of {data.nodes} nodes do not belong "
                "together"
            )
        self.stack, self.engine, self.data, self.sgd, self.seed = stack, engine, data, sgd, seed
        self.images, self.labels, self.prepare = images, labels, prepare
        self.parameters = list(stack.parameters())
        self.optimizer: torch.optim.Optimizer = optimizer or NodeSGD(
            self.parameters,
            sgd.lr,
            momentum=sgd.momentum or (engine.momentum or 0.0),
            weight_decay=sgd.weight_decay,
        )
        self.steps = 0

    @property
    def round(self) -> int:
        """Finished rounds."""
        return self.engine.round

    def run_round(self, attack: Attack | None = None) -> None:
        """Steps up to the end of the present round.

        Raises:
            DbadflError: a model that is not finite afterwards (names node and round).
        """
        now = self.engine.round
        while self.engine.round == now:
            self.step(attack)
        check_finite(self.parameters, now)

    def step(self, attack: Attack | None = None) -> None:
        """One local step of everybody whose turn it is, and the exchange if one is due."""
        assert isinstance(self.optimizer, NodeSGD)
        nodes = self.active()
        self.begin_step(attack)
        self._gradients(nodes, attack)
        self.optimizer.node_scale = self._scale(attack)
        self.optimizer.step()
        self.end_step(attack)

    @property
    def draw(self) -> int:
        """Number of the batch of the next step; `steps`, but for nodes with a pace of their own."""
        return self.steps if self.engine.pace is None else self.engine.draw

    def active(self) -> Tensor | None:
        """int64, the nodes that train in the coming step, ascending; None is all of them."""
        active = self.engine.active
        return None if active is None or bool(active.all()) else active.nonzero().flatten()

    def begin_step(self, attack: Attack | None = None) -> None:
        """What comes before the gradients of a step: an exchange, if one is due then."""
        if attack is not None and attack.needs_start and not self.engine.keep_start:
            raise DbadflError("gamma != 1 or alpha < 1 needs the models at the start of the round: keep_start=True")
        self.engine.before_step(self.parameters, self.optimizer)

    def end_step(self, attack: Attack | None = None) -> None:
        """What comes after the optimizer's step: the exchange, if one is due."""
        self.engine.after_step(self.parameters, self.optimizer, sending=self._sending(attack))
        self.steps += 1

    def _gradients(self, nodes: Tensor | None, attack: Attack | None) -> None:
        images, labels = self.batch(nodes, attack)
        logits = self.stack(self.prepared(images), nodes)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        if attack is not None and attack.alpha < 1.0:
            losses = self._with_distance(losses, nodes, attack)
        for p, gradient in zip(self.parameters, torch.autograd.grad(losses.sum(), self.parameters), strict=True):
            p.grad = gradient

    def picked(self, nodes: Tensor | None) -> Tensor:
        """Positions int64 [n, B] of the images of ``nodes`` (None: all N) at the present step."""
        picked = draw_batch(self.data, self.sgd.batch, self.seed, self.draw)
        return (picked if nodes is None else picked[nodes]).to(self.images.device)

    def batch(self, nodes: Tensor | None, attack: Attack | None) -> tuple[Tensor, Tensor]:
        """Images [n, B, ch, H, W] and labels [n, B] of ``nodes`` (None: all N) at the present step, poisoned."""
        picked = self.picked(nodes)
        return self.poisoned(self.images[picked], self.labels[picked], nodes, attack)

    def poisoned(
        self, images: Tensor, labels: Tensor, nodes: Tensor | None, attack: Attack | None
    ) -> tuple[Tensor, Tensor]:
        """The batch of the present step with the attackers' rows overwritten, in place: both were gathered for it."""
        if attack is None:
            return images, labels
        rows, some = _among(attack.nodes, nodes)
        if len(rows):
            how = attack.poison if len(some) == len(attack.nodes) else attack.poison.rows(some)
            rows = rows.to(images.device)
            stamped, relabelled = poison(images[rows], labels[rows], how, generator(self.seed, "poison", self.draw))
            images.index_copy_(0, rows, stamped)
            labels.index_copy_(0, rows, relabelled)
        return images, labels

    def _with_distance(self, losses: Tensor, nodes: Tensor | None, attack: Attack) -> Tensor:
        distances = self.distances(nodes, attack)
        if distances is None:
            return losses
        rows, distance = distances
        return losses.index_copy(0, rows, attack.alpha * losses[rows] + (1 - attack.alpha) * distance)

    def distances(self, nodes: Tensor | None, attack: Attack) -> tuple[Tensor, Tensor] | None:
        """Rows int64 [m] of the acting attackers in a batch of ``nodes``, and their distances [m] to the start.

        None where none of them takes part, or nothing is known of the start.
        """
        acting, start = attack.acting(), self.engine.start
        rows, some = _among(acting, nodes)
        if not len(rows) or start is None:
            return None
        which, rows = acting[some].to(self.images.device), rows.to(self.images.device)
        return rows, distance_to_start([p[which] for p in self.parameters], [s[which] for s in start])

    def rates(self, attack: Attack | None) -> tuple[Tensor, Tensor] | None:
        """The acting attackers int64 [m] and factors [m] of their learning rate in the next step; None: 1 for all."""
        if attack is None or (attack.lr is None and not attack.milestones):
            return None
        acting, engine = attack.acting(), self.engine
        factors = lowered(engine.local_step, engine.local_counts[acting.cpu()], attack.milestones, attack.decay)
        if attack.lr is not None:
            factors = attack.lr / self.sgd.lr * factors
        return acting, factors

    def _scale(self, attack: Attack | None) -> Tensor | None:
        rates = self.rates(attack)
        if rates is None:
            return None
        scale = torch.ones(self.stack.replicas, dtype=torch.float64)
        scale[rates[0]] = rates[1]
        return scale

    def _sending(self, attack: Attack | None) -> Callable[[Any], None] | None:
        if attack is None or attack.gamma == 1.0:
            return None
        acting = attack.acting().to(self.images.device)

        def scale(parameters: Any) -> None:
            assert self.engine.start is not None
            for p, start in zip(parameters, self.engine.start, strict=True):
                p.copy_(scale_update(p, start, attack.gamma, acting))

        return scale

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the networks take them."""
        return images if self.prepare is None else self.prepare(images)

    def forward(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Logits without gradient, [N, X, ch, H, W] -> [N, X, C], in evaluation mode; for ``nodes`` only if given."""
        mode = self.stack.training
        self.stack.eval()
        try:
            with torch.no_grad():
                logits: Tensor = self.stack(self.prepared(images), nodes)
        finally:
            self.stack.train(mode)
        return logits

    def cross_losses(self, receivers: Tensor, senders: Tensor) -> Tensor:
        """[m], loss of each sender's model on its receiver's own clean batch of the present step; for UBAR.

        Args:
            receivers, senders: int64 [m].
        """
        picked = draw_batch(self.data, self.sgd.batch, self.seed, self.draw).to(self.images.device)
        losses = []
        for r, s in zip(torch.split(receivers, PAIRS), torch.split(senders, PAIRS), strict=True):
            labels = self.labels[picked[r]]
            logits = self.forward(self.images[picked[r]], s)
            per_image = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses.append(per_image.view(labels.shape).mean(1))
        return torch.cat(losses)

    # ---- checkpoints -------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Whatever is kept between steps: numbers and tensors."""
        momentum = [self.optimizer.state[p].get("momentum_buffer") for p in self.parameters]
        return {
            "stack": {name: t.clone() for name, t in self.stack.state_dict().items()},
            "momentum": [b.clone() for b in momentum if b is not None],
            "engine": self.engine.state_dict(),
            "aggregate": rule.state_dict() if (rule := self.rule) is not None else {},
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit by bit, where `state_dict` was taken."""
        self.stack.load_state_dict(state["stack"])
        for p, buffer in zip(self.parameters, state["momentum"], strict=False):
            self.optimizer.state[p]["momentum_buffer"] = buffer.clone()
        self.engine.load_state_dict(state["engine"])
        if (rule := self.rule) is not None:
            rule.load_state_dict(state["aggregate"])
        self.steps = int(state["steps"])

    @property
    def rule(self) -> RobustAggregation | None:
        """The defence in place of the mean, or None."""
        rule = self.engine.aggregate
        return rule if isinstance(rule, RobustAggregation) else None


def _among(wanted: Tensor, nodes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of ``wanted`` in a batch of ``nodes`` (None: all, in order), and which of ``wanted`` those are."""
    if nodes is None:
        return wanted, torch.arange(len(wanted))
    rows, some = (nodes[:, None] == wanted[None]).nonzero(as_tuple=True)
    return rows, some
