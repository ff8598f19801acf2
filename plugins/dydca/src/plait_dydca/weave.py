"""The driver inside a run: patches out of frames, paths out of a network, and what is reported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plait.data import Batch, Data
from plait.data.batches import in_parts
from plait.declare.results import Metric, Plot, Table
from plait.errors import BadInput, RunFailed
from plait.training.evaluation import Predictions
from plait.training.trainer import Trainer
from plait.training.woven import LossReport

from . import figures
from .buckets import PatchSplit, TrainingPatches
from .clips import Clip
from .degradation import upscale
from .measures import PatchErrors, squared_error
from .network import RoutedNetwork
from .options import DydcaOptions
from .quadtree import area_share
from .routing import Routing, plan_clip

__all__ = ["Weave", "cut", "exported"]


class Weave:
    """One run.

    Args:
        options: of the method.
        trainer: the run.
        routing, clip: what is trained on.

    Raises:
        BadInput: programs among the export's formats.
    """

    def __init__(self, options: DydcaOptions, trainer: Trainer, routing: Routing, clip: Clip) -> None:
        self.options, self.routing, self.clip = options, routing, clip
        if extra := [kind for kind in trainer.recipe.export.formats if kind != "safetensors"]:
            raise BadInput(
                f"export.formats has {extra[0]!r}: a routed network is several programs. Leave it out; "
                "plait_dydca.runtimes compiles each path."
            )
        empty = sorted(set(range(len(options.blocks))) - set(routing.used))
        if empty:
            trainer.note(f"no patch takes path {empty[0]}: it stays untrained and is not counted among delivered bytes")
        self.steps, self.pixels = [0] * len(options.blocks), [0] * len(options.blocks)

    def state_dict(self) -> dict[str, Any]:
        """What each path was trained on."""
        return {"steps": list(self.steps), "pixels": list(self.pixels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.steps, self.pixels = list(state["steps"]), list(state["pixels"])

    def step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """The step, and which paths it trained."""
        report = proceed()
        taken = torch.zeros(2, len(self.steps), dtype=torch.float64)
        for part in in_parts(batch):
            pixels = part["input"].shape[-2:].numel() * part.size
            taken[1, part["path"]] += pixels * (trainer.share > 0)
            taken[0, part["path"]] = 1
        if trainer.world > 1:
            taken = trainer.sum_over_ranks(taken)
        for path, (touched, pixels) in enumerate(taken.T.tolist()):
            self.steps[path] += touched > 0
            self.pixels[path] += int(pixels)
        if trainer.device.type == "cpu" and not math.isfinite(report.loss.item()):
            raise RunFailed(
                f"step {trainer.step}: the loss of path {in_parts(batch)[0]['path']} is {report.loss.item()}. "
                f"{trainer.stopping} {trainer.lower_rate}"
            )
        return report

    @cached_property
    def _bicubic(self) -> list[float]:
        """Mean squared error of bicubic up-sampling, each frame."""
        pairs = zip(self.clip.lr, self.clip.hr, strict=True)
        return [squared_error(upscale(low, self.clip.scale), high) / high.size for low, high in pairs]

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """Quality, bytes and work."""
        predicted, network, routing = predictions["clean"], predictions.model, self.routing
        assert isinstance(network, RoutedNetwork)
        index = predicted.fields["index"]
        patches = routing.patches[: len(index)]
        outputs = torch.empty_like(predicted.outputs)
        outputs[index] = predicted.outputs  # in the order of the plan
        errors = PatchErrors(outputs, torch.from_numpy(patches[:, 0].copy()))
        shown = figures.quality(errors, self._bicubic)
        shown |= figures.costs(network, routing, len(self.clip))
        hard = 100 * area_share(routing.patches, 0)
        shown["hard_area"] = Metric(hard, "%", "neither", "of the frames, on the deepest path")
        for level, tau in enumerate(routing.tau):
            if math.isfinite(tau):
                shown["tau" if len(routing.tau) == 1 else ("tau_hi", "tau_lo")[level]] = Metric(tau, "dB")
        if routing.gate is not None:
            shown["gate_agreement"] = Metric(routing.agreement, "%", "higher", "with the plan of the server")
        shown["paths"] = figures.tables(network, patches, errors, self.steps, self.pixels)
        return shown


def cut(options: DydcaOptions, trainer: Trainer, data: Data) -> tuple[Data, Routing, Clip]:
    """The data of patches, out of that of frames.

    Raises:
        BadInput: data that is no clip.
    """
    clip = getattr(data.test, "clip", None)
    if not isinstance(clip, Clip):
        raise BadInput(
            "dydca cuts frames of a video: choose --data clip or --data video, or give plait_dydca.sources.clip_data."
        )
    clip = clip.first(options.frames)
    routing = plan_clip(clip, options, trainer.recipe.seed)
    (columns, rows), (height, width), halo = options.grid, clip.lr.shape[1:3], routing.halo
    cell = height // rows, width // columns
    drawn, anywhere = routing.patches, options.split in ("whole", "chunks")
    if anywhere:  # as many patches of a cell's size as a frame has cells, on the frame's path
        drawn = drawn.repeat(rows * columns, 0)
        drawn[:, 3:5] = cell
    test = PatchSplit(clip, routing.patches, halo)
    train = test
    if options.sampler == "shapes":
        drop_last = trainer.recipe.train.drop_last
        train = TrainingPatches(clip, drawn, halo, cell[0] * cell[1], anywhere=anywhere, drop_last=drop_last)

    def forward(model: Callable[..., Tensor], batch: Batch) -> Tensor:
        return model(batch["input"], batch["path"], batch["halo"])

    # what is kept of the batches, and the headline, stay those of the frames
    info = dataclasses.replace(data.info, fields=data.info.fields | {"path", "halo", "borders"})
    return dataclasses.replace(data, info=info, train=train, test=test, forward=forward), routing, clip


def exported(model: nn.Module, routing: Routing) -> nn.Module:
    """The network with plain convolutions, how to build it again, and the plan as a file beside it."""
    assert isinstance(model, RoutedNetwork)
    plain = model.folded()
    blocks = ",".join(str(getattr(path, "blocks", "")) for path in plain.paths)
    plain.export_metadata = {"scale": plain.scale, "blocks": blocks}  # type: ignore[assignment]
    plain.export_files = {"plan.bin": routing.plan.packed()}  # type: ignore[assignment]
    return plain
