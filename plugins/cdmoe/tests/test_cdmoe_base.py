"""The base that is trained once: killed or not, cached or not, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.storage import checkpoints
from plait_cdmoe import base

RECIPE = {"steps": 6, "batch": 3, "lr": 1e-2, "shares": [0.5, 0.5], "seed": 4}
WINDOWS = torch.randint(64, (20, 8), generator=torch.Generator().manual_seed(0))
DOMAINS = torch.arange(20) % 2


def test_killed_it_goes_on_and_ends_alike(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "EVERY", 2)
    whole, other = small("qwen2_moe", torch.float32), small("qwen2_moe", torch.float32)
    assert not base.cached(whole, WINDOWS, DOMAINS, RECIPE, "corpus", tmp_path)

    def dying(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    folder = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        base.cached(other, WINDOWS, DOMAINS, RECIPE, "corpus", folder, dying)
    again = small("qwen2_moe", torch.float32)
    steps: list[int] = []
    assert not base.cached(again, WINDOWS, DOMAINS, RECIPE, "corpus", folder, lambda done, of: steps.append(done))
    assert steps == [5, 6]
    cached = small("qwen2_moe", torch.float32)
    assert base.cached(cached, WINDOWS, DOMAINS, RECIPE, "corpus", folder)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, cached.state_dict()[name])
    fresh = small("qwen2_moe", torch.float32)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))


def test_the_key_is_of_all_that_matters(small: Callable[..., Any]) -> None:
    model = small("qwen2_moe", torch.float32)
    keys = {
        base.key_of(model, RECIPE, "a"),
        base.key_of(model, RECIPE, "b"),
        base.key_of(model, {**RECIPE, "seed": 5}, "a"),
        base.key_of(small("qwen2_moe", torch.float32, seed=1), RECIPE, "a"),
    }
    assert len(keys) == 4
    assert base.key_of(small("qwen2_moe", torch.float32), RECIPE, "a") in keys


def test_damaged_files_are_made_again(small: Callable[..., Any], tmp_path: Path) -> None:
    base.cached(small("qwen2_moe", torch.float32), WINDOWS, DOMAINS, RECIPE, "c", tmp_path)
    file = next(tmp_path.rglob("trained.safetensors"))
    content = file.read_bytes()
    trained = {name: value.clone() for name, value in checkpoints.load(file)["model"].items()}
    file.write_bytes(content[: len(content) // 2])
    assert not base.cached(small("qwen2_moe", torch.float32), WINDOWS, DOMAINS, RECIPE, "c", tmp_path)
    again = checkpoints.load(file)["model"]
    assert all(torch.equal(value, again[name]) for name, value in trained.items())


def test_weights_whose_optimizer_does_not_fit_are_not_gone_on_from(small: Callable[..., Any], tmp_path: Path) -> None:
    whole, again = small("qwen2_moe", torch.float32), small("qwen2_moe", torch.float32)
    base.cached(whole, WINDOWS, DOMAINS, RECIPE, "c", tmp_path / "whole")
    home = tmp_path / "again" / base.key_of(again, RECIPE, "c")[:32]
    home.mkdir(parents=True)
    other = {"state": {}, "param_groups": []}
    checkpoints.save(home / "going.safetensors", {"model": whole.state_dict(), "optimizer": other, "step": 2})
    base.cached(again, WINDOWS, DOMAINS, RECIPE, "c", tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
