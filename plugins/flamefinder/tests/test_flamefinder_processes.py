"""Two processes have the same centres, and end with the weights, of one."""

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
from plait_flamefinder.plugin import FlamefinderPlugin

NET = """
from torch import nn
from plait_flamefinder.encoder import FlameNet

def net(num_classes):
    return FlameNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh()), 24, 8, num_classes)
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "nets_of_flamefinder.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    with pretend(FlamefinderPlugin, distribution="plait-flamefinder", alone=True):
        yield


@pytest.mark.parametrize(
    "options",
    [
        {"l_rec": 0.5},
        {"center_update": "delta", "balanced": False},
        {"center_update": "delta", "attention": "per_loss_gated"},
    ],
)
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = {
        "data": {"name": "tiny-images", "train": 250, "classes": 2},  # the last batch has 19 rows: the shares differ
        "model": {"name": "nets_of_flamefinder:net"},
        "train": {"steps": 18, "batch_size": 33},
        "optimizer": {"lr": 0.02, "clip_norm": 5.0},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"flamefinder": {"latent_points": 0, **options}},
    }
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    plait.run(wanted, out=tmp_path / "one")
    two, one = final_state(tmp_path / "two"), final_state(tmp_path / "one")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    centres = [state["extra"]["flamefinder.terms"]["module"]["centres.values"] for state in (one, two)]
    torch.testing.assert_close(*centres, rtol=1e-3, atol=1e-4)
