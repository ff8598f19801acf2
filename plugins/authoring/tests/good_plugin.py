"""A plugin that uses most of the contract and passes every check of the conformance suite; its parts."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

import plait
from plait import Data, DataInfo, DataSource, ModelSource, Options, Ownership, Plugin, hookimpl
from plait.planning.task import TinyImagesOptions
from plait.planning.tiny import TinyCNN
from plait.planning.tiny import load as load_tiny


class InnerOptions(Options):
    """Options in a table of their own."""

    share: float = Field(0.5, ge=0, le=1, description="a share")


class GoodOptions(Options):
    """Every kind of number that an option can hold."""

    strength: float = Field(0.1, ge=0, le=10, description="factor on the penalty")
    every: int = Field(4, ge=1, description="steps between mask updates")
    limit: float | None = Field(None, gt=0, description="largest penalty")
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2), description="widths")
    pair: tuple[float, float] = Field((0.0, 1.0), description="two numbers, checked below")
    named: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict, description="numbers by name")
    offset: float = Field(0.0, description="a shift", json_schema_extra={"unbounded": "a shift may have any size"})
    inner: InnerOptions = Field(InnerOptions(), description="a table")

    @field_validator("pair")
    @classmethod
    def _unit(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= value <= 1 for value in pair):
            raise ValueError("both lie in 0..1")
        return pair


class Good(Plugin):
    """Reads and provides fields, weighs, penalises, wraps the step, owns a mask, evaluates, exports."""

    name = "good"
    summary = "passes every check"
    contract = plait.CONTRACT_VERSION
    Options = GoodOptions
    suggests_data = ("tiny-images",)
    suggests_model = ("tiny-cnn",)
    suggests: ClassVar[Mapping[str, Any]] = {"optimizer.lr": 0.02}
    tiny: ClassVar[Mapping[str, Any]] = {"every": 2}

    def needs(self) -> frozenset[str]:
        """Labels and groups, channels, and losses that can be weighted."""
        return frozenset({"field:label", "field:group", "task:classification", "model:channel-groups"}) | frozenset(
            {"loss:per-example", "gradients:repeatable"}
        )

    def provides(self) -> frozenset[str]:
        """A score for each example."""
        return frozenset({"field:score"})

    def ownership(self) -> tuple[Ownership, ...]:
        """The second convolution."""
        return (Ownership("parameters", "conv2.*"),)

    def setup(self, trainer: Any) -> None:
        """Take the mask; begin the counts."""
        self.mask = trainer.masks.own(self.name, ["conv2.weight"])["conv2.weight"]
        self.centre = trainer.add_module("good.centre", nn.Linear(4, 1))
        self.seen, self.total = 0, torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """Counts."""
        return {"seen": self.seen, "total": self.total, "words": ["a", None, True]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counts."""
        self.seen, self.total = state["seen"], state["total"]

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Generated data."""
        words = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})
        return {"good-images": DataSource("good_plugin:load", "generated", words, TinyImagesOptions)}

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """A small network."""
        return {"good-cnn": ModelSource("good_plugin:build", "two convolutions", frozenset({"model:channel-groups"}))}

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """One."""
        return {"show": "good_plugin:show"}

    @hookimpl
    def artifacts(self) -> Mapping[str, str]:
        """One."""
        return {"size": "good_plugin:write_size"}

    @hookimpl
    def transform_data(self, data: Data) -> Data:
        """Add a score."""
        split = data.train
        fields = {**split.fields, "score": torch.ones(len(split))}  # type: ignore[attr-defined]
        return dataclasses.replace(data, train=plait.TensorSplit(fields), augment=flipped)

    @hookimpl(before=("clip",), after=("field:other",))
    def example_weights(self, batch: Any) -> Tensor:
        """By group, and by a weight that data may have."""
        extra = batch["weight"] if "weight" in batch else batch.get("other", 1.0)
        return (1 + batch["group"].float()) * extra * batch["score"]

    @hookimpl
    def loss_terms(self, trainer: Any, outputs: Tensor, per_example: Tensor) -> Mapping[str, Tensor]:
        """A noisy penalty that knows how many examples there were."""
        noise = torch.rand((), generator=trainer.generator("good"))
        size = self.options.strength * (outputs.float().square().mean() + 0 * self.centre(outputs).mean())
        return {"penalty": size * (noise + self.total / (1 + self.seen)), "constant": torch.tensor(1.0)}

    @hookimpl
    def optimizer_step(self, batch: Any, proceed: Callable[[], Any]) -> Any:
        """Count."""
        report = proceed()
        self.seen += batch.size
        self.total = self.total + report.loss
        return report

    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        """Keep the larger half."""
        if trainer.step % self.options.every == 0:
            size = trainer.model.conv2.weight.detach().abs()
            self.mask.copy_(size >= size.median())
            trainer.masks.changed()

    @hookimpl
    def views(self) -> Mapping[str, plait.View]:
        """A noisy one, alike in every run."""
        return {"noisy": plait.View("noise", noisy, tags={"noise": 1})}

    @hookimpl
    def evaluate(self, trainer: Any, predictions: Any) -> Mapping[str, Any]:
        """Accuracy under noise, something undefined, a table and a plot."""
        seen = predictions["noisy"]
        right = (seen.outputs.argmax(1) == seen.fields["label"]).double().mean()
        return {
            "noisy": plait.Metric(100 * float(right), "%", "higher"),
            "clock": plait.Metric(time.monotonic(), "s", "lower"),
            "nothing": plait.Metric(float("nan"), "", "neither", "undefined here"),
            "table": plait.Table("t", ["a", "b"], [[1, 2]]),
            "plot": plait.Plot("p", "x", "y", {"s": ([1, 2], [3.0, 4.0])}),
        }

    @hookimpl
    def export(self, trainer: Any, model: nn.Module) -> nn.Module:
        """A copy."""
        return copy.deepcopy(model)


def flipped(batch: Any, generator: torch.Generator) -> plait.Batch:
    """Half of the batches mirrored."""
    turn = bool(torch.rand((), generator=generator) < 0.5)
    return plait.Batch({**batch, "input": batch["input"].flip(-1) if turn else batch["input"]})


def noisy(batch: Any) -> plait.Batch:
    """Noise by the images' numbers."""
    generator = torch.Generator().manual_seed(int(batch["index"][0]))
    return plait.Batch(
        {**batch, "input": batch["input"] + 0.1 * torch.randn(batch["input"].shape, generator=generator)}
    )


def load(options: TinyImagesOptions, seed: int) -> Data:
    """The core's generated images."""
    return load_tiny(options, seed)


def build(options: Options, info: DataInfo) -> TinyCNN:
    """The core's small network."""
    return TinyCNN(info.input_shape[0], 8, info.num_classes)


def show(number: int = 1) -> None:
    """A command."""
    print(number)


def write_size(run_directory: Path) -> Path:
    """An artifact."""
    file = run_directory / "size.txt"
    file.write_text(f"{(run_directory / 'metrics.jsonl').stat().st_size} bytes", encoding="utf-8")
    return file


def flipped_once(options: Options) -> None:
    """A function of one argument, which is no factory."""
