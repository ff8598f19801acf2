"""The core's own plugin ``task``, active in every run: the metrics of the task, and something to try things out on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plait.components import DataSource, ModelSource
from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.plugin import Plugin
from plait.tiny_options import TinyCNNOptions, TinyImagesOptions

if TYPE_CHECKING:
    from plait.evaluation import Metric, Plot, Predictions, Table
    from plait.trainer import Trainer


class TaskPlugin(Plugin):
    """Accuracy and loss on the clean test split; the data ``tiny-images`` and the model ``tiny-cnn``."""

    name = "task"
    summary = "the task's own metrics (always active); generated tiny-images and tiny-cnn"
    contract = CONTRACT_VERSION

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """The generated data set."""
        provides = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})
        return {
            "tiny-images": DataSource(
                "plait.tiny:load", "generated 8x8 images in two groups", provides, TinyImagesOptions
            )
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """The small model."""
        words = frozenset({"model:channel-groups"})
        need = frozenset({"field:input", "task:classification"})
        return {
            "tiny-cnn": ModelSource(
                "plait.tiny:build", "two convolutions and a linear layer", words, need, TinyCNNOptions
            )
        }

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """``task/loss`` (nats), ``task/accuracy`` (%), and the data's own figures, on the clean view."""
        from plait.evaluation import task_metrics

        return task_metrics(trainer.data, predictions)
