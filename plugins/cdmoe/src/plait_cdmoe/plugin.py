"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_cdmoe.weave`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import Ownership, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import nn

    from plait.data import Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer

    from .weave import Weave


class CdmoePlugin(Plugin):
    """CD-MoE in a plait run: the base, the search, the condensed model, its fine-tuning, and what became of it."""

    name = "cdmoe"
    summary = "mixture-of-experts layers of a language model condensed into small dense ones"
    paper = "Condense, Don't Just Prune: Enhancing Efficiency and Performance in MoE Layer Pruning, arXiv:2412.00069"
    contract = 1
    Options = later("plait_cdmoe.options:CdmoeOptions")
    suggests_data = ("python-docs",)
    suggests_model = ("transformers",)
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.steps": 60,
        "train.batch_size": 24,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.01,
        "optimizer.clip_norm": 1.0,
        "scheduler.warmup_steps": 6,
    }
    tiny: ClassVar[Mapping[str, Any]] = {
        "layers": 1,
        "texts": 6,
        "base_steps": 0,
        "base_batch": 2,
        "questions": 2,
        "windows": 4,
        "speed": False,
    }

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Texts as tokens, and one network."""
        return frozenset({"field:input", "task:causal-lm", "parameters:single"})

    def provides(self) -> frozenset[str]:
        """The export folds the constants into weights, and their buffers go."""
        return frozenset({"export:structure"})

    def breaks(self) -> frozenset[str]:
        """Weights outside the condensed layers are frozen: they have no gradients for whoever prunes by them."""
        return frozenset({"gradients:dense"})

    def ownership(self) -> tuple[Ownership, ...]:
        """All experts and routers: nobody else may remove or add any."""
        return (Ownership("experts", "*"),)

    def state_dict(self) -> dict[str, Any]:
        """What was found: layer mask [L], keep mask [L, E], and the search."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare it with what this run has found."""
        self._weave.load_state_dict(state)

    @hookimpl
    def transform_data(self, data: Data) -> Data:
        """Validation and test cut to a number of windows of each domain."""
        from .windows import shortened

        return shortened(data, self.options.windows)

    @hookimpl
    def transform_model(self, trainer: Trainer, model: nn.Module, data: Data) -> nn.Module:
        """The whole method up to fine-tuning: train the base where it is fresh, search, condense, freeze the rest."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer, model, data)
        small: nn.Module = self._weave.model
        return small

    @hookimpl
    def export(self, model: nn.Module) -> nn.Module:
        """The model with the constants in its weights."""
        from .condensed import fold

        fold(model)
        return model

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Perplexity against the original's, multiple choice, memory, speed, and how the search went."""
        return self._weave.evaluate(trainer, predictions)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait cdmoe condense`: any local folder, layer by layer."""
        return {"condense": "plait_cdmoe.commands:condense"}
