"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_glt.weave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import DataSource, ModelSource, Ownership, Plugin, hookimpl, later
from plait_glt.sources import data_sources, models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport
    from plait_glt.weave import Weave


class GltPlugin(Plugin):
    """Graph lottery tickets in a plait run: rounds with rewinding, masks on edges and weights."""

    name = "glt"
    summary = "graph lottery tickets: prune edges and weights of a GNN in rounds, rewind, retrain"
    paper = "Rethinking Graph Lottery Tickets: Graph Sparsity Matters, ICLR 2023, arXiv:2305.02190"
    contract = 1
    Options = later("plait_glt.options:GltOptions")
    suggests_data = ("cora-like",)
    suggests_model = ("gcn",)
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.epochs": 200,
        "train.batch_size": 1_000_000,
        "train.select": "best",
        "optimizer.name": "adam",
        "optimizer.lr": 0.008,
        "optimizer.weight_decay": 8e-5,
        "scheduler.name": "constant",
        "checkpoint.every_steps": 200,
    }
    tiny: ClassVar[Mapping[str, Any]] = {
        "rounds": 2,
        "p_g": 0.3,
        "p_theta": 0.3,
        "mask_epochs": 3,
        "fix_epochs": 2,
        "wd_samples": 16,
        "warmup": 0,
    }

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """One graph whose nodes or pairs have labels, a network that listens to edge weights, repeatable passes."""
        return frozenset(
            {
                "field:graph",
                "field:label",
                "field:node",
                "model:edge-weights",
                "gradients:repeatable",
                "parameters:single",
            }
        )

    def ownership(self) -> tuple[Ownership, ...]:
        """Every weight matrix of the network, and the edges of the graph."""
        return (Ownership("parameters"), Ownership("edges"))

    def budget(self, steps: int, steps_per_epoch: int) -> int:
        """The dense reference and every round; ``train.epochs`` is the length of one phase."""
        mask, fix = self.options.lengths(steps, steps_per_epoch)
        return int(self.options.planned * (mask + fix) + (fix if self.options.dense else 0))

    def setup(self, trainer: Trainer) -> None:
        """Take the masks of weights and edges, and lay out the phases."""
        from plait_glt.weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """The phase, the first weights, and what the rounds gave so far; the masks are the core's to save."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; a checkpoint of another graph is refused."""
        self._weave.load_state_dict(state)

    def selectable(self, trainer: Trainer) -> bool:
        """Not in the first epochs of a mask phase: on flat validation the choice would be the masks as they began."""
        return self._weave.selectable(trainer)

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Graphs: generated, from published files, and small ones."""
        return data_sources()

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """Graph networks that take edge weights."""
        return models()

    @hookimpl
    def transform_model(self, trainer: Trainer, model: nn.Module, data: Data) -> nn.Module:
        """The network with a soft mask for every edge and every weight."""
        from plait_glt.weave import masked

        return masked(self.options, model, data)

    @hookimpl
    def fit(self, trainer: Trainer) -> None:
        """Rounds: learn masks, prune, rewind, retrain."""
        self._weave.fit(trainer)

    @hookimpl
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """The adversary before the descent, the clip after it."""
        return self._weave.step(trainer, batch, proceed)

    @hookimpl
    def loss_terms(self, trainer: Trainer, raw: Tensor, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The inter-class Wasserstein distance of all nodes, and the L1 terms, while masks are learned."""
        return self._weave.terms(trainer, raw, outputs, batch)

    @hookimpl
    def update_masks(self, trainer: Trainer) -> None:
        """Edges and weights are pruned between phases, by `fit`; here they only stay."""

    @hookimpl
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The ticket: the network with its kept weights on the graph with its kept edges."""
        return self._weave.export(trainer, model)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Accuracy against sparsity, round by round."""
        return self._weave.evaluate(trainer)
