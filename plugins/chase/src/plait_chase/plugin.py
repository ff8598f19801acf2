"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_chase.weave`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import Ownership, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import nn

    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait_chase.weave import Weave


class ChasePlugin(Plugin):
    """Chase in a plait run: owns the weight masks, removes channels, exports the shrunk network."""

    name = "chase"
    summary = "dynamic sparse training that ends in a physically narrower network"
    paper = "Dynamic Sparsity Is Channel-Level Sparsity Learner, NeurIPS 2023, arXiv:2305.19454"
    contract = 1
    Options = later("plait_chase.options:ChaseOptions")
    suggests_data = ("mnist5k", "digits")
    suggests_model = ("vgg-bn",)
    suggests: ClassVar[Mapping[str, Any]] = {"optimizer.lr": 0.1}
    tiny: ClassVar[Mapping[str, Any]] = {
        "exploration_interval": 2,
        "channel_interval": 4,
        "shrink_during": True,
        "timing_repeats": 0,
    }

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Dense gradients of masked weights, parameters that are one network's, and an input to trace it with."""
        return frozenset({"field:input", "gradients:dense", "parameters:single", "steps:minibatch"})

    def provides(self) -> frozenset[str]:
        """Its export changes shapes, so whoever puts other weights into the export goes before it."""
        return frozenset({"export:structure"})

    def breaks(self) -> frozenset[str]:
        """Its masks lie on weights that are parameters; a network whose weights are computed from others has none."""
        return frozenset({"parameters:computed"})

    def ownership(self) -> tuple[Ownership, ...]:
        """Weights of two or more dimensions, and biases of prunable channels, among the included names."""
        return tuple(Ownership("parameters", pattern) for pattern in self.options.include)

    def setup(self, trainer: Trainer) -> None:
        """Find the channel groups, take the masks and draw them."""
        from plait_chase.weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """The engine's state, and the work counted so far; the masks are the core's to save."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; a run that was sliced while training slices the fresh model first."""
        self._weave.load_state_dict(state)

    def selectable(self, trainer: Trainer) -> bool:
        """Only once the network has its final channels and at most K weights."""
        return self._weave.is_final()

    @hookimpl
    def transform_model(self, model: nn.Module) -> nn.Module:
        """Initialise as the official code does, when asked to."""
        from plait_chase.weave import initialised

        return initialised(self.options, model)

    @hookimpl
    def update_masks(self, trainer: Trainer) -> None:
        """Remove channels, drop and grow weights, when due."""
        self._weave.update(trainer)

    @hookimpl
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The copy without its dead channels."""
        return self._weave.export(trainer, model)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Densities, channels, MACs, and the layer table."""
        return self._weave.evaluate(trainer, predictions)
