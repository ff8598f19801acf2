"""Two processes choose the masks, and end with the weights, of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state
from plait_authoring.together import together
from plait_fairprune.plugin import FairprunePlugin

NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, num_classes))
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "nets_of_fairprune.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    with pretend(FairprunePlugin, distribution="plait-fairprune", alone=True):
        yield


@pytest.mark.parametrize("options", [{}, {"measure": "eodds", "surrogate": "logistic", "hypergradient": "ig"}])
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = {
        "data": {"name": "tiny-images", "train": 250, "classes": 2},  # the last batch has 26 rows: the shares differ
        "model": {"name": "nets_of_fairprune:net"},
        "train": {"steps": 24, "batch_size": 33},
        "optimizer": {"lr": 0.05},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"fairprune": {"sparsity": 0.7, "mask_every": 2, "strength": 3.0, "curve_points": 0, **options}},
    }
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    plait.run(wanted, out=tmp_path / "one")
    two, one = final_state(tmp_path / "two"), final_state(tmp_path / "one")
    for name, mask in one["masks"].items():
        assert torch.equal(mask["bits"], two["masks"][name]["bits"]), name
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    images = torch.rand(4, 1, 8, 8)
    outputs = [plait.load_run(tmp_path / name).model(images) for name in ("two", "one")]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
