"""Plugins that break one rule of the conformance suite in a run, or by what a hook returns; see `broken_plugins`."""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar

import numpy as np
import torch
from broken_plugins import breaks
from good_plugin import Good
from torch import nn

import plait
from plait import hookimpl


@breaks("trains", "stopped: KeyError: 'nothing' at .*broken_runs.py.*plait_plugin_suite")
class Crashes(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        _ = {}["nothing"]  # type: ignore[var-annotated]


@breaks("deterministic", "the last checkpoints differ.*trainer.generator")
class ByTheClock(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"noise": outputs.square().mean() * (time.time_ns() % 1000) / 1000}


@breaks("deterministic", "what an earlier run left in a module or a class")
class LeftOvers(Good):
    steps: ClassVar[list[int]] = []

    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        self.steps.append(1)
        return {"grows": 1e-3 * len(self.steps) * outputs.square().mean()}


@breaks("state_types", r"state_dict\(\)\['array'\] is a numpy\.ndarray")
class KeepsAnArray(Good):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "array": np.zeros(2)}


@breaks("state_types", "has the key 3, a int; it comes back as a string")
class IntegerKeys(Good):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "counts": {3: 4}}


@breaks("resumable", "killed after step 4 .*the last checkpoints differ.*load_state_dict")
class Forgets(Good):
    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


@breaks("resumable", "it stopped")
class CannotLoad(Good):
    def load_state_dict(self, state: Any) -> None:
        self.seen = state["sen"]


@breaks("own_generators", r"loss_terms draws from the global generator of torch.*generator=trainer\.generator")
class DrawsTorch(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"noise": outputs.square().mean() * torch.rand(())}


@breaks("own_generators", "evaluate draws from the global generator of python")
class DrawsPython(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"luck": plait.Metric(random.random())}


@breaks("own_generators", "the transform of a view draws from the global generator of numpy")
class DrawsInAView(Good):
    @hookimpl
    def views(self) -> Any:
        return {"noisy": plait.View("noise", numpy_noise)}


def numpy_noise(batch: Any) -> Any:
    """Noise from the global generator."""
    noise = torch.from_numpy(np.random.rand(*batch["input"].shape)).float()
    return plait.Batch({**batch, "input": batch["input"] + noise})


@breaks("own_generators", "setup draws from the global generator of numpy")
class DrawsInSetup(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self.total = torch.tensor(float(np.random.rand()))


@breaks("looks_only", "evaluate changes the weights of 'head.weight'")
class Zeroes(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        with torch.no_grad():
            trainer.model.head.weight.zero_()
        return {}


@breaks("looks_only", "evaluate changes the training mode of the model .*left in eval mode")
class LeavesEval(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        trainer.model.eval()
        return {}


@breaks("looks_only", "example_weights changes the weights of 'conv1.weight'")
class WeighsWeights(Good):
    @hookimpl
    def example_weights(self, trainer: Any, batch: Any) -> Any:
        with torch.no_grad():
            trainer.model.conv1.weight.mul_(0.999)
        return torch.ones(batch.size)


@breaks("looks_only", "evaluate changes the buffer 'norm1.running_mean'")
class FeedsNorms(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        with torch.no_grad():
            trainer.model(trainer.data.test.__getitems__([0, 1, 2])["input"])
        return {}


@breaks("looks_only", "export changes the weights of 'head.weight'")
class ExportsTheOriginal(Good):
    @hookimpl
    def export(self, trainer: Any, model: Any) -> Any:
        with torch.no_grad():
            trainer.model.head.weight.mul_(0.5)
        return model


@breaks("bfloat16", r"With precision = bf16 the run stopped.*\.float\(\)")
class NumpyOnly(Good):
    @hookimpl
    def loss_terms(self, outputs: Any) -> Any:
        return {"size": torch.tensor(float(np.abs(outputs.detach().numpy()).mean()))}


@breaks("batch_of_one", r"With train\.batch_size = 1 the run stopped.*mind std")
class Spread(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"spread": per_example.std()}


@breaks("batch_of_one", "With a last batch of one example the run stopped")
class Squeezes(Good):
    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size, 1).squeeze()


# ---- results -----------------------------------------------------------------------------------------------------
@breaks("loss_shapes", r"objective returned a tensor \[\] for a batch of 24")
class ScalarLoss(Good):
    @hookimpl
    def objective(self, outputs: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(outputs, batch["label"])


@breaks("loss_shapes", r"example_weights returned a tensor \[24, 1\] for a batch of 24")
class ColumnWeights(Good):
    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size, 1)


@breaks("loss_shapes", r"loss_terms\['size'\] is a tensor \[24\]; it must be a scalar tensor")
class VectorTerm(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"size": per_example}


@breaks("loss_shapes", "loss_terms\\['size'\\] is a float")
class FloatTerm(Good):
    @hookimpl
    def loss_terms(self, per_example: Any) -> Any:
        return {"size": per_example.mean().item()}


@breaks("metrics_described", "unit of metric 'size' is None")
class NoUnit(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(1.0, None)}  # type: ignore[arg-type]


@breaks("metrics_described", "better='up'; it must be 'higher'")
class NoDirection(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(1.0, "", "up")}  # type: ignore[arg-type]


@breaks("metrics_described", r"'size' is a tensor \[\]; it must be a float \(tensor\.item\(\)\)")
class TensorMetric(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(torch.tensor(1.0))}  # type: ignore[arg-type]


@breaks("metrics_described", "is nan without a note")
class UndocumentedNan(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": plait.Metric(float("nan"))}


@breaks("metrics_described", "gave a float for 'size'; wrap it in plait.Metric")
class BareNumber(Good):
    @hookimpl
    def evaluate(self) -> Any:
        return {"size": 1.0}


@breaks("metrics_described", "another seed.*size_")
class NamesByOutcome(Good):
    @hookimpl
    def evaluate(self, trainer: Any) -> Any:
        return {f"size_{float(trainer.model.head.weight.detach().sum()):.4f}": plait.Metric(1.0)}


@breaks("export_alike", r"the exported model gives a tuple, the trained one a tensor \[2, 4\]")
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


@breaks("export_alike", "export returned a NoneType; it must return the model")
class ExportsNothing(Good):
    @hookimpl
    def export(self, model: Any) -> Any:
        model.eval()
