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


class Centred(nn.Module):
    def forward(self, weight):
        return weight - weight.mean()


class Odd(nn.Module):
    # four convolutions, a head that the loss does not reach, and something odd

    def __init__(self, num_classes, odd=""):
        super().__init__()
        self.odd, self.steps = odd, 0
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.conv3, self.conv4 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head, self.other, self.branch = nn.Linear(8, num_classes), nn.Linear(8, 9), nn.Linear(8, 8)
        if odd == "frozen":
            self.conv2.requires_grad_(False)
        if odd in ("weight_norm", "spectral_norm", "orthogonal"):
            getattr(nn.utils.parametrizations, odd)(self.conv2)
        if odd == "stranger":
            nn.utils.parametrize.register_parametrization(self.conv2, "weight", Centred())

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        if self.odd == "pool":
            x = nn.MaxPool2d(2)(x)
        x = torch.relu(self.conv4(torch.relu(self.conv3(x)))).mean((2, 3))
        self.kept = self.other(x).detach()
        if self.odd == "twice":
            x = x + self.conv2.weight.mean()
        self.steps += self.training
        if (self.odd == "branch" and self.steps % 2) or (self.odd == "late" and self.steps > 5):
            x = x + self.branch(x)
        return self.head(x)
"""

ODD = {"density": 0.4, "exploration_interval": 2, "channel_interval": 4, "channel_sparsity": 0.3}


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
    if name in alive:
        assert done.metrics["chase/mac_ratio@export"] < 1
        assert done.metrics["chase/channels"] == 12
        first, second = done.model.conv1.out_channels, done.model.conv2.out_channels  # type: ignore[union-attr]
        wanted = min(wanted, 9 * first + 9 * first * second + 4 * second)  # no more than the channels hold
    else:
        assert done.metrics["chase/mac_ratio@export"] == 1
    assert done.metrics["chase/nonzeros"] == wanted


def test_excluded_parameters_stay_dense(tmp_path: Path) -> None:
    done = run(tmp_path, {"exclude": ["head.*"], "channel_sparsity": 0.0, "density": 0.2})
    assert bool((done.model.head.weight != 0).all())  # type: ignore[union-attr, operator]
    assert done.metrics["chase/nonzeros"] == int(0.2 * (1288 - 64))


@pytest.mark.parametrize("shrink_during", [False, True])
@pytest.mark.parametrize(
    ("odd", "alone", "prunable"),
    [
        ("", "other", 24),
        ("pool", "other", 24),
        ("frozen", "conv2", 8),
        ("weight_norm", "conv2", 8),
        ("spectral_norm", "conv2", 8),
        ("orthogonal", "conv2", 8),
        ("stranger", "conv2", 8),
        ("twice", "other", 8),
        ("branch", "other", 24),
        ("late", "branch", 24),
    ],
)
def test_odd_weights_are_left_alone_in_a_run(
    tmp_path: Path, nets: str, odd: str, alone: str, prunable: int, shrink_during: bool
) -> None:
    options = {**ODD, "shrink_during": shrink_during}
    done = run(tmp_path, options, model=f"{nets}:Odd", settings={"model.odd": odd})
    model: Any = done.model
    assert bool(model.get_submodule(alone).weight.all())
    assert float(done.metrics["chase/shrink_error@export"]) < 1e-4
    assert done.metrics["chase/channels"] == round(prunable * 0.7)
    widths = [layer.out_channels for layer in (model.conv1, model.conv2, model.conv3)]
    assert sum(widths) == 24 - prunable + round(prunable * 0.7)
    if odd == "branch":
        assert not model.branch.weight.all()


def test_exclude_and_include_of_a_layer(tmp_path: Path, nets: str) -> None:
    model: dict[str, Any] = {"model": f"{nets}:Odd", "settings": {"model.odd": "frozen"}}
    done = run(tmp_path / "a", {**ODD, "exclude": ["conv4.weight"], "channel_sparsity": 0.0}, **model)
    assert bool(done.model.conv4.weight.all())  # type: ignore[union-attr, operator]
    done = run(tmp_path / "b", {**ODD, "exclude": ["conv1.*"]}, model=f"{nets}:Odd")
    small: Any = done.model
    assert bool(small.conv1.weight.all()) and small.conv1.out_channels == 8
    assert done.metrics["chase/channels"] == round(16 * 0.7)
    with pytest.raises(BadInput, match=r"no prunable channel group.*'conv2.weight' left alone \(frozen"):
        run(tmp_path / "c", {**ODD, "exclude": ["conv4.weight"]}, **model)
    include = {**ODD, "include": ["conv2.weight", "conv4.weight"], "channel_sparsity": 0.0}
    done = run(tmp_path / "d", include, **model)
    assert not done.model.conv2.weight.all() and done.model.conv1.weight.all()  # type: ignore[union-attr]


def test_round_channels_keeps_extra_channels_only(tmp_path: Path) -> None:
    done = run(tmp_path, {"round_channels": 4, "density": 0.4}, steps=60)
    widths = [done.model.conv1.out_channels, done.model.conv2.out_channels]  # type: ignore[union-attr]
    assert all(width % 4 == 0 for width in widths) and 12 <= sum(widths) < 12 + 2 * 4  # of 24


def test_plugin_imports_no_torch() -> None:
    code = "import sys, plait_chase.plugin; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
