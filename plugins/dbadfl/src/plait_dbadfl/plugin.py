"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_dbadfl.weave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import DataSource, ModelSource, Plugin, hookimpl, later
from plait_dbadfl.sources import data_sources, models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport
    from plait_dbadfl.weave import Weave


class DbadflPlugin(Plugin):
    """A federation without a server in a plait run: N stacked nodes, an evaluated attack, defences beside it."""

    name = "dbadfl"
    summary = "how fragile a decentralized federation is to distributed backdoors, and which defence mends it"
    paper = "DBA-DFL: Distributed Backdoor Attacks with Network Detection in Decentralized FL, arXiv:2501.15005"
    contract = 1
    Options = later("plait_dbadfl.options:DbadflOptions")
    suggests_data = ("shared-digits",)
    suggests_model = ("small-mlp",)
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.steps": 300,
        "train.batch_size": 16,
        "train.evaluate_every": 20,
        "optimizer.lr": 0.2,
        "optimizer.momentum": 0.0,
        "optimizer.weight_decay": 0.0,
        "scheduler.name": "constant",
        "checkpoint.every_steps": 100,
    }
    tiny: ClassVar[Mapping[str, Any]] = {
        "nodes": 6,
        "attackers": 2,
        "target": 1,
        "min_samples": 2,
        "local_steps": 2,
        "rounds": 2,
        "scan_rounds": 2,
        "shadows": 2,
        "predictor_epochs": 2,
        "shadow_data": "all",
        "evaluate_every": 1,
    }

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Images with labels, and steps on batches."""
        return frozenset({"field:input", "field:label", "task:classification", "loss:per-example", "steps:minibatch"})

    def provides(self) -> frozenset[str]:
        """Its export makes one network of N, so whoever puts other weights into the export goes before it."""
        return frozenset({"export:structure"})

    def breaks(self) -> frozenset[str]:
        """A parameter holds the weights of all nodes."""
        return frozenset({"parameters:single"})

    def budget(self, steps: int, steps_per_epoch: int) -> int:
        """The scan and every compared run; the recipe's steps are the length of one run."""
        return self._weave.stages.budget(steps)

    def state_dict(self) -> dict[str, Any]:
        """The stage, the engine, the observations, and what the stages before gave."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._weave.load_state_dict(state)

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Handwritten digits, divided as the card says."""
        return data_sources()

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """The card's perceptron."""
        return models()

    @hookimpl
    def transform_data(self, trainer: Trainer, data: Data) -> Data:
        """Training batches of all nodes, poisoned where the evaluated arm says so."""
        from plait_dbadfl.weave import Weave

        self._weave = Weave(self.options, trainer, data)
        return self._weave.feed.data()

    @hookimpl
    def transform_model(self, model: nn.Module) -> nn.Module:
        """N networks as one, each parameter [N, ...]."""
        return self._weave.stack(model)

    @hookimpl
    def example_weights(self, batch: Batch) -> Tensor:
        """The loss's share in attackers' rows when a distance term is wanted, else ones."""
        return self._weave.weights(batch)

    @hookimpl
    def loss_terms(self, batch: Batch) -> Mapping[str, Tensor]:
        """The attackers' distance to the start of the round, when wanted."""
        return self._weave.terms(batch)

    @hookimpl
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """The engine around the step: exchanges of models before and after it."""
        return self._weave.step(trainer, batch, proceed)

    @hookimpl
    def fit(self) -> None:
        """The scan, the runs beside the main one, the main one."""
        self._weave.fit()

    @hookimpl
    def export(self, model: nn.Module) -> nn.Module:
        """One network, the benign nodes' mean; never a poisoned one without the flag."""
        return self._weave.export(model)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait dbadfl defences`: every aggregation rule against the attack."""
        return {"defences": "plait_dbadfl.sweep:defences"}

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Main accuracy and attack success of every run, and how well distances were predicted."""
        from plait_dbadfl.figures import figures

        return figures(self._weave, predictions)
