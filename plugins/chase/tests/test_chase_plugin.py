"""The plugin in plait: what it refuses, what it reports, and every baseline by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.errors import BadInput, RunFailed
from plait.run import execute
from plait.storage import places
from plait_chase.presets import BASELINES

NETS = """
import torch
from torch import nn


def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


class Poison(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, num_classes)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        out = self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))
        if self.calls == 3 and self.training:
            self.conv2.weight.register_hook(lambda g: g * float("inf"))
        return out

    def channel_groups(self):
        return [("conv1", None, ["conv2"])]
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "chase_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return "chase_nets"


def run(path: Path, options: dict[str, Any], **changes: Any) -> plait.Run:
    """A small run, without the reports of whatever is installed."""
    settings = {"timing_repeats": 0, **options}
    chosen = {"data": "tiny-images", "model": "tiny-cnn", "steps": 30, **changes}
    plan = plait.plan(plugins={"chase": settings}, **chosen)
    return execute(plan, places.at(path / "r"), artifacts=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density = 0.0"),
        ({"density": 1.5}, "density = 1.5"),
        ({"channel_sparsity": 1.0}, "channel_sparsity = 1.0"),
        ({"min_layer_factor": 0.0}, "min_layer_factor = 0.0"),
        ({"channel_sparsity": 0.9, "min_layer_factor": 1.0, "density": 0.9}, None),
        ({"exploration_interval": 0}, "exploration_interval = 0"),
        ({"exploration_interval": 31}, "exploration_interval=31 is longer than the run of total_steps=30"),
        ({"channel_interval": 31}, "channel_interval=31"),
        ({"removal_end": 1.5}, "removal_end = 1.5"),
        ({"score": "best"}, "score = 'best'"),
        ({"baseline": "magic"}, "no baseline 'magic'"),
        ({"exclude": ["nothing.*"]}, r"exclude='nothing.\*' matches no parameter"),
        ({"densty": 0.1}, "Did you mean 'density'"),
    ],
)
def test_bad_input_names_option_and_value(tmp_path: Path, options: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert run(tmp_path, options).finished
        return
    with pytest.raises(BadInput, match=message):
        run(tmp_path, options)
    assert not (tmp_path / "r").exists()


def test_model_without_prunable_groups(tmp_path: Path, nets: str) -> None:
    with pytest.raises(BadInput, match="no prunable channel group"):
        run(tmp_path, {}, model=f"{nets}:flat")
    assert run(tmp_path, {"channel_sparsity": 0.0}, model=f"{nets}:flat").metrics["chase/nonzeros"] == 25


def test_non_finite_gradients_at_an_update_are_refused_with_step_and_tensor(tmp_path: Path, nets: str) -> None:
    with pytest.raises(RunFailed, match=r"step 3: plugin 'chase'.*conv2\.weight"):
        run(tmp_path, {"exploration_interval": 1, "density": 0.5}, model=f"{nets}:Poison")


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_ends_with_its_counts(tmp_path: Path, name: str) -> None:
    options = {"baseline": name} if name == "dense" else {"baseline": name, "density": 0.3}
    done = run(tmp_path, options, steps=60)
    wanted = 1288 if name == "dense" else 386
    alive = {"chase", "random-channels", "masked-mean", "umm-layer"}
    capacity = wanted if name not in alive else min(wanted, done.metrics["chase/nonzeros"])
    assert done.metrics["chase/nonzeros"] == capacity
    if name in alive:
        assert done.metrics["chase/channels"] == 12
        assert done.metrics["chase/mac_ratio@export"] < 1
    else:
        assert done.metrics["chase/mac_ratio@export"] == 1


def test_excluded_parameters_stay_dense(tmp_path: Path) -> None:
    done = run(tmp_path, {"exclude": ["head.*"], "channel_sparsity": 0.0, "density": 0.2})
    assert bool((done.model.head.weight != 0).all())  # type: ignore[union-attr, operator]
    assert done.metrics["chase/nonzeros"] == int(0.2 * (1288 - 64))


def test_round_channels_keeps_extra_channels_only(tmp_path: Path) -> None:
    done = run(tmp_path, {"round_channels": 4, "density": 0.4}, steps=60)
    widths = [done.model.conv1.out_channels, done.model.conv2.out_channels]  # type: ignore[union-attr]
    assert all(width % 4 == 0 for width in widths) and sum(widths) >= 12


def test_plugin_imports_no_torch() -> None:
    code = "import sys, plait_chase.plugin; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
