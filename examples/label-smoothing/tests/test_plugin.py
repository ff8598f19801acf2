"""The plugin in tiny runs of the core: its loss is torch's, alone and beside plugins that weight examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import plait
from plait.planning.discovery import pretend
from plait_label_smoothing.plugin import LabelSmoothingPlugin


class Smoothed(plait.Plugin):
    """Oracle: torch's label smoothing as the objective, which the core weights itself."""

    name, contract = "smoothed", plait.CONTRACT_VERSION

    @plait.hookimpl
    def objective(self, outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch["label"], label_smoothing=0.2, reduction="none")


class Weigh(plait.Plugin):
    """Some examples count nothing."""

    name, contract = "weigh", plait.CONTRACT_VERSION

    @plait.hookimpl
    def example_weights(self, batch: Any) -> Tensor:
        return 2.0 * batch["group"]


class Twice(plait.Plugin):
    """A step of two passes, the first without the weights of the other plugin."""

    name, contract = "twice", plait.CONTRACT_VERSION

    @plait.hookimpl(inner=True)
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        trainer.gradients(batch, without=("weigh",), scale=0.5)
        report = trainer.gradients(batch, accumulate=True, freeze_statistics=True)
        trainer.apply_gradients()
        return report


class Cut(plait.Plugin):
    """A model whose outputs are no logits."""

    name, contract = "cut", plait.CONTRACT_VERSION

    @plait.hookimpl
    def objective(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.square().mean(1, keepdim=True)


def run(path: Path, plugins: dict[str, Any]) -> plait.Run:
    with pretend(Smoothed, Weigh, Twice, Cut):
        recipe = {"train": {"steps": 10, "batch_size": 32}, "device": "cpu"}
        return plait.run(recipe, plugins=plugins, data="tiny-images", model="tiny-cnn", out=path)


@pytest.mark.parametrize("others", [(), ("weigh",), ("twice",), ("weigh", "twice")])
def test_a_run_is_a_run_on_torchs_smoothed_loss(tmp_path: Path, others: tuple[str, ...]) -> None:
    beside = {name: {} for name in others}
    ours = run(tmp_path / "ours", {"label-smoothing": {"epsilon": 0.2}, **beside})
    torchs = run(tmp_path / "torchs", {"smoothed": {}, **beside})
    for name, got in ours.model.state_dict().items():
        torch.testing.assert_close(got, torchs.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    plain = run(tmp_path / "plain", beside)
    assert not torch.allclose(plain.model.head.weight, ours.model.head.weight, atol=1e-4)  # type: ignore[union-attr, arg-type]


def test_confidence_against_a_loop(tmp_path: Path) -> None:
    from plait.planning.task import TinyImagesOptions
    from plait.planning.tiny import load

    done = run(tmp_path, {"label-smoothing": {}})
    test = load(TinyImagesOptions(), 0).test.fields  # type: ignore[attr-defined]
    with torch.no_grad():
        highest = [done.model(image[None]).softmax(1)[0].max().item() for image in test["input"]]
    confidence = 100 * sum(highest) / len(highest)
    assert done.metrics["label-smoothing/confidence"] == pytest.approx(confidence, rel=1e-5)
    wanted = confidence - done.metrics["task/accuracy"]
    assert done.metrics["label-smoothing/overconfidence"] == pytest.approx(wanted, abs=1e-3)


def test_losses_of_another_shape_are_refused_with_the_plugins_name(tmp_path: Path) -> None:
    with pytest.raises(plait.PlaitError, match=r"label-smoothing.*needs logits"):
        run(tmp_path, {"label-smoothing": {}, "cut": {}})


def test_a_regression_is_refused_by_the_plan() -> None:
    plan = plait.plan(plugins=["label-smoothing"], data="mine:regression", model="tiny-cnn")
    assert [line for line in plan.unchecked if "label-smoothing needs task:classification" in line]


def test_importing_the_plugin_imports_no_torch() -> None:
    code = f"import sys, {LabelSmoothingPlugin.__module__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
