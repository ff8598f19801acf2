"""The core's own plugin ``task``, active in every run: the metrics of the task, and something to try things out on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from plait.declare.options import Options
from plait.declare.sources import DataSource, ModelSource
from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.plugin import Plugin

if TYPE_CHECKING:
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer


class TinyImagesOptions(Options):
    """Options of ``tiny-images``."""

    train: int = Field(256, ge=2, le=100_000, description="training images; validation a quarter, test a half of it")
    size: int = Field(8, ge=4, le=64, description="side of the image in pixels")
    classes: int = Field(4, ge=2, le=100, description="number of classes")
    minority_share: float = Field(0.25, ge=0, le=1, description="share of the darker group")
    noise: float = Field(0.2, ge=0, le=10, description="standard deviation of the pixel noise")


class TinyCNNOptions(Options):
    """Options of ``tiny-cnn``."""

    width: int = Field(8, ge=1, le=1024, description="channels of the first convolution; the second has twice as many")


class TaskPlugin(Plugin):
    """Accuracy and loss on the clean test split; the data ``tiny-images`` and the model ``tiny-cnn``."""

    name = "task"
    summary = "the task's own metrics (always active); generated tiny-images and tiny-cnn"
    contract = CONTRACT_VERSION

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """The generated data set."""
        summary = "generated 8x8 images in two groups"
        words = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})
        return {"tiny-images": DataSource("plait.planning.tiny:load", summary, words, TinyImagesOptions)}

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """The small model."""
        summary = "two convolutions and a linear layer"
        words, needs = frozenset({"model:channel-groups"}), frozenset({"field:input", "task:classification"})
        return {"tiny-cnn": ModelSource("plait.planning.tiny:build", summary, words, needs, TinyCNNOptions)}

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """``task/loss`` (nats), ``task/accuracy`` (%), and the data's own figures, on the clean view."""
        from plait.training.evaluation import task_metrics

        return task_metrics(trainer.data, predictions)
