"""The plugin: options, a simulation beside a run, and the commands. Importing it imports no torch and no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import Plugin, hookimpl, later

if TYPE_CHECKING:
    from plait.declare.results import Metric, Plot, Table
    from plait.training.trainer import Trainer


class MalletrainPlugin(Plugin):
    """MalleTrain in a plait run: says what its scheduler makes of a cluster's idle nodes, and trains as ever.

    The scheduler decides when and where steps are done and never what they compute, so it goes with every method whose
    runs can be resized; `plait malletrain serve` is the scheduler itself.
    """

    name = "malletrain"
    summary = "elastic training on the idle nodes of a cluster: simulator, and manager of plait runs"
    paper = "MalleTrain: Deep Neural Network Training on Unfillable Supercomputer Nodes, arXiv:2404.15668"
    contract = 1
    Options = later("plait_malletrain.options:MalletrainOptions")
    suggests_data = ("tiny-images",)
    suggests_model = ("tiny-cnn",)
    suggests: ClassVar[Mapping[str, Any]] = {"train.epochs": 1}
    tiny: ClassVar[Mapping[str, Any]] = {
        "nodes": 48,
        "hours": 1.0,
        "policies": ["equal", "freetrain-linear", "freetrain-mean", "malletrain", "oracle"],
    }

    _results: Mapping[str, Metric | Table | Plot] | None = None

    def needs(self) -> frozenset[str]:
        """One network on all ranks: per-participant models cannot be spread over another number of nodes."""
        return frozenset({"parameters:single"})

    @hookimpl
    def evaluate(self, trainer: Trainer) -> Mapping[str, Metric | Table | Plot]:
        """The simulation's figures, tables and plots, seeded by the run; nothing before the first step."""
        if trainer.step == 0 and trainer.total_steps:
            return {}
        if self._results is None:
            from .comparison import compare

            result = compare(self.options, (trainer.recipe.seed,))
            for note in result.notes:
                trainer.note(note)
            self._results = {**result.metrics(), "policies": result.table(), **result.plots()}
        return self._results

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait malletrain simulate`, `serve`, `status`, `convert`."""
        names = ("simulate", "serve", "status", "convert")
        return {name: f"plait_malletrain.commands:{name}" for name in names}
