"""Two processes end with the weights of one: a sample's loss does not depend on others."""

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
from plait_brainot.plugin import BrainotPlugin


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pretend(BrainotPlugin, distribution="plait-brainot", alone=True):
        yield


@pytest.mark.parametrize("options", [{"align": "partial", "m": 0.6}, {"align": "jsd"}])
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    quick = {"captioner_steps": 3, "captioner_width": 24, "max_new_tokens": 4, "resamples": 10, "caption_rows": 8}
    wanted = {
        "data": {"name": "scenes", "train": 52, "validation": 8, "test": 8, "voxels": 60, "repetitions": 1},
        "model": {"name": "brain-encoder", "hidden": 8, "depth": 1},
        "train": {"steps": 8, "batch_size": 9},  # the last batch of an epoch has 7 rows: the shares differ
        "optimizer": {"lr": 0.02, "name": "sgd"},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"brainot": {**quick, **options}},
    }
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    one = plait.run(wanted, out=tmp_path / "one")
    first, second = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    for name, value in first["model"].items():
        torch.testing.assert_close(second["model"][name], value, rtol=1e-3, atol=1e-5, msg=name)
    if options["align"] == "jsd":
        told = [state["extra"]["brainot.discriminator"]["module"] for state in (first, second)]
        for name, value in told[0].items():
            torch.testing.assert_close(told[1][name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert one.metrics["brainot/cider"] >= 0
    two = plait.load_run(tmp_path / "two").metrics
    for name in ("cider_true", "mass", "norm_ratio"):
        assert two[f"brainot/{name}"] == pytest.approx(one.metrics[f"brainot/{name}"], rel=1e-3), name
