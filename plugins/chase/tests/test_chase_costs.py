"""Counting against fvcore and torch's flop counter; yardsticks; timing; lazy import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from plait_chase.errors import ChaseError
from plait_chase.flops import TrainFlops, dense_macs, layer_costs, sparse_macs
from plait_chase.groups import find_channel_groups
from plait_chase.residual import SmallResNet
from plait_chase.timing import compare_throughput
from plait_chase.vgg import bn_vgg
from plait_chase.yardsticks import prune_with_torch_pruning, random_channels


@pytest.mark.parametrize("build", [bn_vgg, lambda: SmallResNet("bottleneck")])
def test_macs_agree_with_two_independent_counters(build: Any) -> None:
    model = build().eval()
    x = torch.randn(2, 1, 14, 14)
    macs = dense_macs(layer_costs(model, x))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() == 2 * 2 * macs
    analysis = FlopCountAnalysis(model, x[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    assert by_operator["conv"] + by_operator["linear"] == macs


def test_the_cards_macs_and_the_sparse_count() -> None:
    costs = layer_costs(bn_vgg(), torch.randn(3, 1, 14, 14))
    assert dense_macs(costs) == 6_564_224
    assert sparse_macs(costs, {}) == dense_macs(costs)
    assert sparse_macs(costs, {"features.0.weight": 10}) == dense_macs(costs) - 288 * 196 + 10 * 196


def test_train_flops() -> None:
    costs = layer_costs(bn_vgg((4, 4)), torch.randn(1, 1, 8, 8))
    dense = dense_macs(costs)
    half = {name: cost.numel // 2 for name, cost in costs.items()}
    meter = TrainFlops(costs)
    assert meter.ratio == 0
    meter.add(10, half)
    assert meter.ratio == pytest.approx(0.5)
    meter.add(10, half, dense_gradient=True)
    assert meter.macs == 20 * 3 * sparse_macs(costs, half) + 10 * dense
    again = TrainFlops(costs)
    again.load_state_dict(meter.state_dict())
    assert again.flops == meter.flops == 2 * meter.macs


@pytest.mark.parametrize("kind", ["magnitude", "bn-scale"])
def test_torch_pruning_yardsticks(kind: str) -> None:
    model = bn_vgg((16, 16, "M", 32, 32))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(2, 1, 8, 8)
    dense = dense_macs(layer_costs(model, x))
    to_macs = prune_with_torch_pruning(model, x, kind, mac_ratio=0.5)
    assert 0.4 * dense < dense_macs(layer_costs(to_macs, x)) <= 0.5 * dense
    floored = prune_with_torch_pruning(model, x, kind, mac_ratio=0.5, layer_ratio=0.6)
    for (_, layer), (_, was) in zip(floored.named_modules(), model.named_modules(), strict=True):
        if isinstance(layer, torch.nn.Conv2d) and isinstance(was, torch.nn.Conv2d):
            assert layer.out_channels >= 0.4 * was.out_channels - 2  # it stops at the first step that is below
    by_ratio = prune_with_torch_pruning(model, x, kind, channel_ratio=0.5, global_pruning=False)
    assert [m.out_channels for m in by_ratio.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 8, 16, 16]
    assert to_macs(x).shape == by_ratio(x).shape == (2, 10)
    assert dense_macs(layer_costs(model, x)) == dense
    for bad in ({}, {"mac_ratio": 2.0}, {"mac_ratio": 0.5, "channel_ratio": 0.5}):
        with pytest.raises(ChaseError):
            prune_with_torch_pruning(model, x, kind, **bad)
    with pytest.raises(ChaseError, match="kind='l7'"):
        prune_with_torch_pruning(model, x, "l7", mac_ratio=0.5)


def test_random_channels() -> None:
    model = bn_vgg((16, 16, "M", 32, 32))
    groups = find_channel_groups(model)
    small = random_channels(model, groups, 0.5, torch.Generator().manual_seed(0))
    assert sum(small.get_submodule(g.producer).out_channels for g in groups) == 32
    assert small(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ChaseError, match="channel_sparsity=1"):
        random_channels(model, groups, 1.0, torch.Generator())


def test_timing_is_interleaved_and_restores_state() -> None:
    wide, narrow = bn_vgg((32, 32)).train(), bn_vgg((4, 4)).train()
    threads = torch.get_num_threads()
    result = compare_throughput(wide, narrow, torch.randn(16, 1, 14, 14), repeats=6, warmups=1, threads=1)
    assert result.speedup > 1.5 and result.threads == 1 and result.batch == 16
    assert result.dense.quartile_low <= result.dense.median <= result.dense.quartile_high
    assert wide.training and narrow.training and torch.get_num_threads() == threads
    assert result.to_dict()["throughput"][1] > result.to_dict()["throughput"][0]
    with pytest.raises(ChaseError, match="repeats=1"):
        compare_throughput(wide, narrow, torch.randn(2, 1, 8, 8), repeats=1)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        exec(code, names)
    assert names["report"]["channels_alive"] == 32
    assert names["run"].metrics["chase/channels"] == 12
