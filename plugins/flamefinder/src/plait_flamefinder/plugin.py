"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_flamefinder.weave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import DataSource, ModelSource, Ownership, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

    from .weave import Weave

MODULE = "plait_flamefinder"
_PATCHES = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})
_IMAGES = frozenset({"field:input", "task:classification"})


class FlamefinderPlugin(Plugin):
    """FlameFinder in a plait run: metric losses on learned centres, and the detector that is exported."""

    name = "flamefinder"
    summary = "flames behind smoke: deep metric learning on thermal patches that clear RGB has labelled"
    paper = "Illuminating Obscured Fire through Smoke with Attentive Deep Metric Learning, arXiv:2404.06653"
    contract = 1
    Options = later("plait_flamefinder.options:FlamefinderOptions")
    suggests_data = ("flame-synth",)
    suggests_model = ("flame-lfe",)
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.steps": 250,
        "train.batch_size": 64,
        "optimizer.name": "adam",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 1e-4,
        "optimizer.clip_norm": 5.0,
    }
    tiny: ClassVar[Mapping[str, Any]] = {"share_points": 3, "latent_points": 0, "l_rec": 0.1}

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """One network with a latent vector, and labels."""
        words = {"field:input", "field:label", "task:classification", "model:latent"}
        return frozenset(words | {"parameters:single", "steps:minibatch"})

    def ownership(self) -> tuple[Ownership, ...]:
        """The rule by which the exported model decides; two plugins cannot both own it."""
        return (Ownership("decision", "*"),)

    def setup(self, trainer: Trainer) -> None:
        """Add centres, gates and decoder to the training."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """The measured gradient shares; centres are the core's to save."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._weave.load_state_dict(state)

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Generated frame pairs, and FLAME2 and FLAME3 as published."""
        given = {
            "flame-synth": ("synthetic:load", "generated thermal and RGB frames of fires under smoke", "SynthOptions"),
            "flame2": ("published:flame2", "FLAME2: frame pairs 254x254 of a prescribed burn", "Flame2Options"),
            "flame3": ("published:flame3", "FLAME3: radiometric pairs 640x512, Sycan Marsh", "Flame3Options"),
        }
        return {
            name: DataSource(f"{MODULE}.{factory}", summary, _PATCHES, later(f"{MODULE}.options:{options}"))
            for name, (factory, summary, options) in given.items()
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """The paper's encoder as reconstructed, and any network of torchvision or timm in its place."""
        latent, options = frozenset({"model:latent"}), f"{MODULE}.options"
        lfe, network = "FlameFinder's local features", "FlameFinder on a torchvision or timm network"
        factories = f"{MODULE}.encoder:build_lfe", f"{MODULE}.encoder:build_backbone"
        return {
            "flame-lfe": ModelSource(factories[0], lfe, latent, _IMAGES, later(f"{options}:LfeOptions")),
            "flame-backbone": ModelSource(factories[1], network, latent, _IMAGES, later(f"{options}:BackboneOptions")),
        }

    @hookimpl
    def transform_data(self, trainer: Trainer, data: Data) -> Data:
        """Balanced batches, and a random thermal gain where it is asked for."""
        from .weave import prepared

        return prepared(self.options, trainer, data)

    @hookimpl
    def transform_model(self, trainer: Trainer, model: nn.Module, data: Data) -> nn.Module:
        """Put the attention in, and a classifier on a backbone that ends in a latent vector."""
        from .weave import attentive

        return attentive(self.options, model, data.info.num_classes, trainer.generator("flamefinder.attention"))

    @hookimpl
    def loss_terms(self, trainer: Trainer, batch: Batch, weights: Tensor) -> Mapping[str, Tensor]:
        """``CL``, ``TCL``, ``TCCL`` and ``rec``, weighted."""
        return self._weave.terms(trainer, batch, weights)

    @hookimpl
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """The step, and once after it the centres' update by ``delta``."""
        return self._weave.step(trainer, batch, proceed)

    @hookimpl(after=("export:structure", "export:values"))
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The detector: the network with its centres and its decision rule."""
        return self._weave.export(trainer, model)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Every decision on every bucket, and how well the classes are separated."""
        return self._weave.evaluate(trainer, predictions)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait flamefinder detect` and `annotate`."""
        return {name: f"{MODULE}.commands:{name}" for name in ("detect", "annotate")}
