"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_brainot.weave`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import DataSource, ModelSource, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import Tensor

    from plait.data import Batch
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions, View
    from plait.training.trainer import Trainer

    from .weave import Weave

_BRAINS = frozenset({"field:input", "field:target", "field:subject", "field:scene", "field:index", "task:brain-tokens"})


class BrainotPlugin(Plugin):
    """Brain-image alignment by optimal transport in a plait run, and captions of what the brains saw."""

    name = "brainot"
    summary = "brain captioning: brain tokens aligned with image tokens by optimal transport"
    paper = (
        "Optimal Transport for Brain-Image Alignment: Unveiling Redundancy and Synergy in Neural Information "
        "Processing, ICCV 2025, arXiv:2503.10663"
    )
    contract = 1
    Options = later("plait_brainot.options:BrainotOptions")
    suggests_data = ("scenes",)
    suggests_model = ("brain-encoder",)
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.steps": 600,
        "train.batch_size": 48,
        "optimizer.name": "adamw",
        "optimizer.lr": 3e-3,
        "optimizer.weight_decay": 1e-2,
    }
    tiny: ClassVar[Mapping[str, Any]] = {
        "captioner_steps": 3,
        "captioner_width": 24,
        "caption_rows": 8,
        "max_new_tokens": 4,
        "resamples": 10,
        "masking": "regions",
    }

    _weave: Weave

    def needs(self) -> frozenset[str]:
        """Brains, and the image tokens of what they saw; captions also need to know the scene."""
        return frozenset({"field:input", "field:target", "field:subject", "parameters:single"})

    def setup(self, trainer: Trainer) -> None:
        """Take the captioner, from the cache or trained on the image tokens."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Which captioner it is."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse another captioner."""
        self._weave.load_state_dict(state)

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Generated scenes and brains, also with pixels, real ones with labels, and NSD as published."""
        known = {
            "haxby": ("haxby", "real fMRI of one subject, eight kinds of things (Haxby 2001)", "HaxbyOptions"),
            "nsd": ("published", "the Natural Scenes Dataset as MedARC, UMBRAE and MindEye2 publish it", "NsdOptions"),
            "scenes": ("synthetic", "generated scenes and brains with known redundancy and synergy", "ScenesOptions"),
            "pictures": ("pictures", "real digits on photographs, seen by an ImageNet network", "PicturesOptions"),
        }
        return {
            name: DataSource(
                f"plait_brainot.{module}:load",
                summary,
                _BRAINS | {"field:group"} if name in ("scenes", "pictures") else _BRAINS,
                later(f"plait_brainot.options:{options}"),
            )
            for name, (module, summary, options) in known.items()
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """The brain encoder."""
        words = frozenset({"model:channel-groups"})
        needs = frozenset({"field:input", "field:subject", "task:brain-tokens"})
        options = later("plait_brainot.options:EncoderOptions")
        summary = "UMBRAE's brain encoder: voxel tokenizer and perceiver"
        return {"brain-encoder": ModelSource("plait_brainot.encoder:build", summary, words, needs, options)}

    @hookimpl
    def objective(self, trainer: Trainer, outputs: Tensor, batch: Batch) -> Tensor:
        """The cost of aligning each sample's tokens, [B]."""
        return self._weave.objective(trainer, outputs, batch)

    @hookimpl
    def views(self, trainer: Trainer) -> Mapping[str, View]:
        """Brains with regions left out."""
        return self._weave.views(trainer)

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Captions, retrieval, and what the regions are worth."""
        return self._weave.evaluate(trainer, predictions)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait brainot score` and `plait brainot bench-ot`."""
        module = "plait_brainot.commands"
        return {"score": f"{module}:score", "bench-ot": f"{module}:bench_ot"}
