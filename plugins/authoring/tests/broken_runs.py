"""Plugins that fail one check of the conformance suite in a run, or by what a hook returns; see `broken_plugins`."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from broken_plugins import fails
from good_plugin import Good
from torch import nn

import plait
from plait import hookimpl


@fails("trains", "stopped: KeyError: 'nothing' .*broken_runs.py, line.*plait_plugin_suite")
class Crashes(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        _ = {}["nothing"]  # type: ignore[var-annotated]


@fails("deterministic", "the last checkpoints differ.*trainer.generator")
class ByTheClock(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"noise": outputs.square().mean() * (time.time_ns() % 1000) / 1000}


@fails("deterministic", "what an earlier run left in a module or a class")
class LeftOvers(Good):
    steps: ClassVar[list[int]] = []

    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        self.steps.append(1)
        return {"grows": 1e-3 * len(self.steps) * outputs.square().mean()}


@fails("state_types", r"state_dict\(\)\['array'\] is a numpy\.ndarray")
class KeepsAnArray(Good):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "array": np.zeros(2)}


@fails("state_types", "has the key 3, a int; it comes back as a string")
class IntegerKeys(Good):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "counts": {3: 4}}


@fails("resumable", "killed in step 6 .*the last checkpoints differ.*load_state_dict")
class Forgets(Good):
    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


@fails("resumable", "it stopped")
class CannotLoad(Good):
    def load_state_dict(self, state: Any) -> None:
        self.seen = state["sen"]


@fails("own_generators", r"loss_terms draws from the global generator of torch.*generator=trainer\.generator")
class DrawsTorch(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"noise": outputs.square().mean() * torch.rand(())}


@fails("own_generators", "evaluate draws from the global generator of python")
class DrawsPython(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"luck": plait.Metric(random.random())}


@fails("own_generators", "the transform of a view draws from the global generator of numpy")
class DrawsInAView(Good):
    @hookimpl
    def views(self) -> Any:
        return {"noisy": plait.View("noise", numpy_noise)}


def numpy_noise(batch: Any) -> Any:
    """Noise from the global generator."""
    noise = torch.from_numpy(np.random.rand(*batch["input"].shape)).float()
    return plait.Batch({**batch, "input": batch["input"] + noise})


@fails("own_generators", "setup draws from the global generator of numpy")
class DrawsInSetup(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self.total = torch.tensor(float(np.random.rand()))


@fails("looks_only", "evaluate changes the weights of 'head.weight'")
class Zeroes(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        with torch.no_grad():
            trainer.model.head.weight.zero_()
        return {}


@fails("looks_only", "evaluate changes the training mode of the model .*left in eval mode")
class LeavesEval(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        trainer.model.eval()
        return {}


@fails("looks_only", "example_weights changes the weights of 'conv1.weight'")
class WeighsWeights(Good):
    @hookimpl
    def example_weights(self, trainer: Any, batch: Any) -> Any:
        with torch.no_grad():
            trainer.model.conv1.weight.mul_(0.999)
        return torch.ones(batch.size)


@fails("looks_only", "evaluate changes the buffer 'norm1.running_mean'")
class FeedsNorms(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        with torch.no_grad():
            trainer.model(trainer.data.test.__getitems__([0, 1, 2])["input"])
        return {}


@fails("looks_only", "export changes the weights of 'head.weight'")
class ExportsTheOriginal(Good):
    @hookimpl
    def export(self, trainer: Any, model: Any) -> Any:
        with torch.no_grad():
            trainer.model.head.weight.mul_(0.5)
        return model


@fails("bfloat16", r"With precision = bf16 the run stopped.*\.float\(\)")
class NumpyOnly(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"size": torch.tensor(float(np.abs(outputs.detach().numpy()).mean()))}


@fails("batch_of_one", r"With train\.batch_size = 1 the run stopped.*mind std")
class Spread(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"spread": per_example.std()}


@fails("batch_of_one", "With a last batch of one example the run stopped")
class Squeezes(Good):
    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size, 1).squeeze()


@fails(
    "artifacts_made", "'odd' of plugin 'good' cannot be made of the tiny run: KeyError: 'page' .*broken_runs.py, line"
)
class ArtifactFails(Good):
    @hookimpl
    def artifacts(self) -> Any:
        return {"odd": "broken_runs:stumble"}


@fails("artifacts_made", "returned a NoneType; it must return a pathlib.Path")
class ArtifactOfNothing(Good):
    @hookimpl
    def artifacts(self) -> Any:
        return {"odd": "broken_runs:nothing"}


@fails("artifacts_made", "returned /nowhere, and no such file is in the run directory")
class ArtifactElsewhere(Good):
    @hookimpl
    def artifacts(self) -> Any:
        return {"odd": "broken_runs:elsewhere"}


def stumble(path: Any) -> Any:
    """Raises."""
    return {}["page"]  # type: ignore[var-annotated]


def nothing(path: Any) -> Any:
    """Writes nothing."""


def elsewhere(path: Any) -> Any:
    """Names another place."""
    return Path("/nowhere")


# ---- results -----------------------------------------------------------------------------------------------------
@fails("loss_shapes", r"objective returned a tensor \[\] for a batch of 32")
class ScalarLoss(Good):
    @hookimpl
    def objective(self, outputs: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(outputs, batch["label"])


@fails("loss_shapes", r"example_weights returned a tensor \[32, 1\] for a batch of 32")
class ColumnWeights(Good):
    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size, 1)


@fails("loss_shapes", r"loss_terms\['size'\] is a tensor \[32\]; it must be a scalar tensor")
class VectorTerm(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"size": per_example}


@fails("loss_shapes", "loss_terms\\['size'\\] is a float")
class FloatTerm(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"size": per_example.mean().item()}


@fails("metrics_described", "unit of metric 'size' is None")
class NoUnit(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(1.0, None)}  # type: ignore[arg-type]


@fails("metrics_described", "better='up'; it must be 'higher'")
class NoDirection(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(1.0, "", "up")}  # type: ignore[arg-type]


@fails("metrics_described", r"'size' is a tensor \[\]; it must be a float \(tensor\.item\(\)\)")
class TensorMetric(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(torch.tensor(1.0))}  # type: ignore[arg-type]


@fails("metrics_described", "is nan without a note")
class UndocumentedNan(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(float("nan"))}


@fails("metrics_described", "gave a float for 'size'; wrap it in plait.Metric")
class BareNumber(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": 1.0}


@fails("metrics_described", "another seed.*size_")
class NamesByOutcome(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        return {f"size_{float(trainer.model.head.weight.detach().sum()):.4f}": plait.Metric(1.0)}


@fails("export_alike", r"the exported model gives a tuple, the trained one a tensor \[2, 4\]")
class ExportsTuples(Good):
    @hookimpl
    def export(self, model: Any) -> Any:
        return Pair(model)


class Pair(nn.Module):
    """Gives outputs twice."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Any) -> Any:
        """Twice."""
        return self.inside(x), 0


@fails("export_alike", "export returned a NoneType; it must return the model")
class ExportsNothing(Good):
    @hookimpl
    def export(self, model: Any) -> Any:
        model.eval()
