"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_fairsam.weave`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import Tensor

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions, View
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

    from .weave import Weave


class FairsamPlugin(Plugin):
    """FairSAM in a plait run: weights, the two-pass step, corruption views, fairness metrics."""

    name = "fairsam"
    summary = "fairness-aware sharpness: instance-weighted SAM, judged on corrupted test views"
    paper = "FairSAM: Fair Classification on Corrupted Data Through Sharpness-Aware Minimization, arXiv:2503.22934"
    contract = 1
    Options = later("plait_fairsam.options:FairsamOptions")
    suggests_data = ("toned-digits",)
    suggests_model = ("cnn",)
    suggests: ClassVar[Mapping[str, Any]] = {"train.epochs": 30, "optimizer.lr": 0.05}
    tiny: ClassVar[Mapping[str, Any]] = {"corruptions": ["gaussian_noise"], "severities": [3]}

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Losses that can be weighted one by one, gradients that can be asked for twice; groups and classes where used.

        What takes statistics over the batch (adaptive weights, a perturbation for each group, the penalty) also needs
        one network and not many stacked ones, each with a batch of its own.
        """
        words = {"loss:per-example", "gradients:repeatable"}
        options = self.options
        if options.by_group:
            words.add("field:group")
        if options.weights in ("subgroup", "kamiran"):
            words |= {"field:label", "task:classification"}
        if options.weights in ("adaptive", "groupdro") or "per_group" in options.perturbation or options.penalty:
            words.add("parameters:single")
        return frozenset(words)

    def provides(self) -> frozenset[str]:
        """With one perturbation of the whole batch the step is norms and sums alone, so parameters may be spread."""
        options = self.options
        plain = options.perturbation in ("weighted", "plain", "ascent_only") and not options.asam
        return frozenset({"parameters:sharded"}) if options.sync_perturbation and plain else frozenset()

    def breaks(self) -> frozenset[str]:
        """A perturbation for each group has passes over one group each, where a statistic of the batch is another."""
        return frozenset({"loss:whole-batch"}) if self.options.perturbation == "per_group" else frozenset()

    def setup(self, trainer: Trainer) -> None:
        """Count groups and labels on the training split and build the step."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Weights, step counter and passes."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._weave.load_state_dict(state)

    @hookimpl
    def transform_data(self, data: Data) -> Data:
        """Corrupt the training images when asked to."""
        from .weave import corrupt_training

        return corrupt_training(self.options, data)

    @hookimpl
    def example_weights(self, batch: Batch) -> Tensor:
        """v_i of the batch, [B]."""
        return self._weave.weights(batch)

    @hookimpl
    def loss_terms(self, batch: Batch, per_example: Tensor) -> Mapping[str, Tensor]:
        """The group-gap penalty of the baseline of that name."""
        return self._weave.penalty(batch, per_example)

    @hookimpl(inner=True)
    def optimizer_step(self, trainer: Trainer, batch: Batch) -> LossReport:
        """Ascent, descent, restore, update."""
        return self._weave.step(trainer, batch)

    @hookimpl
    def views(self, trainer: Trainer) -> Mapping[str, View]:
        """The corrupted copies of the test split."""
        from .weave import corruption_views

        return corruption_views(self.options, trainer)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """CDD, never without the accuracies it could be traded for."""
        return self._weave.evaluate(trainer, predictions)
