"""The plugin in tiny runs of the core: what is averaged, exported, held at zero, and refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.planning.discovery import pretend
from plait_ema.average import ema
from plait_ema.plugin import EMAPlugin


class Watch(plait.Plugin):
    """Keeps the weights that every step ends with."""

    name, contract = "watch", plait.CONTRACT_VERSION
    seen: list[list[torch.Tensor]] = []

    @plait.hookimpl
    def optimizer_step(self, trainer: Any, proceed: Any) -> Any:
        report = proceed()
        self.seen.append([p.detach().clone() for p in trainer.model.parameters()])
        return report


class Blink(plait.Plugin):
    """Masks that are drawn anew every third step, so weights leave and come back."""

    name, contract = "blink", plait.CONTRACT_VERSION

    def ownership(self) -> tuple[plait.Ownership, ...]:
        return (plait.Ownership("parameters", "conv2.weight"),)

    def setup(self, trainer: Any) -> None:
        self.mask = trainer.masks.own("blink", ["conv2.weight"])["conv2.weight"]

    @plait.hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step % 3 == 0:
            self.mask.copy_(torch.rand(self.mask.shape, generator=trainer.generator("blink")) < 0.5)
            trainer.masks.changed()

    @plait.hookimpl
    def evaluate(self, trainer: Any, predictions: Any) -> dict[str, plait.Metric]:
        weight = predictions.model.conv2.weight
        return {"leaks": plait.Metric(int((weight[self.mask == 0] != 0).sum()), "weights", "lower")}


class Rounded(plait.Plugin):
    """An export that changes values."""

    name, contract = "rounded", plait.CONTRACT_VERSION

    @plait.hookimpl
    def export(self, model: Any) -> Any:
        return model.bfloat16().float()


class Quantised(Rounded):
    """The same, and says so."""

    name = "quantised"

    def provides(self) -> frozenset[str]:
        return frozenset({"export:values"})


def run(path: Path, plugins: dict[str, Any], steps: int = 12, **recipe: Any) -> plait.Run:
    with pretend(Watch, Blink, Rounded, Quantised):
        Watch.seen.clear()
        return plait.run(
            {"optimizer": {"lr": 0.2}, "scheduler": {"name": "constant"}, "device": "cpu", **recipe},
            plugins=plugins,
            data="tiny-images",
            model="tiny-cnn",
            steps=steps,
            out=path / "run",
        )


@pytest.mark.parametrize("options", [{}, {"decay": 0.5}, {"warmup": False, "decay": 0.9}])
def test_the_export_is_the_average_and_the_run_is_untouched(tmp_path: Path, options: dict[str, Any]) -> None:
    done = run(tmp_path, {"ema": options, "watch": {}})
    average = [weight.clone() for weight in Watch.seen[0]]
    update = ema(**options)
    for t, weights in enumerate(Watch.seen):
        update(average, weights, t)
    for got, want, last in zip(done.model.parameters(), average, Watch.seen[-1], strict=True):
        assert torch.equal(got, want) and not torch.equal(got, last)
    alone = run(tmp_path / "alone", {"watch": {}})
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), Watch.seen[-1], strict=True))
    for name, buffer in alone.model.named_buffers():
        assert torch.equal(done.model.get_buffer(name), buffer)
    assert done.metrics["task/loss"] == alone.metrics["task/loss"] != done.metrics["task/loss@export"]


def test_weights_in_half_precision_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halved.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)).to(torch.bfloat16)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plait.PlaitError, match=r"'1.weight' is torch.bfloat16") as caught:
        plait.run(plugins=["ema"], data="tiny-images", model="halved:net", steps=3, device="cpu", out=tmp_path / "run")
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_masked_weights_are_zero_in_the_average(tmp_path: Path) -> None:
    done = run(tmp_path, {"ema": {"decay": 0.99, "warmup": False}, "blink": {}}, steps=11)
    assert done.metrics["blink/leaks@export"] == 0
    assert 0.3 < float((done.model.conv2.weight == 0).float().mean()) < 0.7  # type: ignore[union-attr, operator]


def test_without_a_step_the_export_is_the_first_weights(tmp_path: Path) -> None:
    done = run(tmp_path, {"ema": {}}, steps=0)
    assert done.metrics["task/loss@export"] == done.metrics["task/loss"]


def test_the_best_state_is_exported_with_its_own_average(tmp_path: Path) -> None:
    """Epochs of two steps; the run is read back from its directory as well."""
    recipe = {"train": {"select": "best", "steps": 12, "batch_size": 128}, "optimizer": {"lr": 2.0}}
    done = run(tmp_path, {"ema": {"decay": 0.5}, "watch": {}}, **recipe)
    (chosen,) = [event["step"] for event in done.directory.events() if event["event"] == "selected"]
    assert chosen < 12
    average = [weight.clone() for weight in Watch.seen[0]]
    for t, weights in enumerate(Watch.seen[:chosen]):
        ema(0.5)(average, weights, t)
    with pretend(Watch):
        back = plait.load_run(done.path).model
    for model in (done.model, back):
        assert all(torch.equal(got, want) for got, want in zip(model.parameters(), average, strict=True))


@pytest.mark.parametrize("order", [("ema", "quantised"), ("quantised", "ema"), ("ema", "rounded")])
def test_averages_go_in_before_the_export_is_changed(tmp_path: Path, order: tuple[str, str]) -> None:
    done = run(tmp_path, {name: {} for name in (*order, "watch")})
    average = [weight.clone() for weight in Watch.seen[0]]
    for t, weights in enumerate(Watch.seen):
        ema()(average, weights, t)
    for got, want in zip(done.model.parameters(), average, strict=True):
        assert torch.equal(got, want.bfloat16().float())


def test_an_export_that_was_changed_before_is_refused(tmp_path: Path) -> None:
    with pytest.raises(plait.BadInput, match=r"plugin 'ema': 'conv1.weight' was changed in the export"):
        run(tmp_path, {"rounded": {}, "ema": {}})


def test_importing_the_plugin_imports_no_torch() -> None:
    code = f"import sys, {EMAPlugin.__module__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
