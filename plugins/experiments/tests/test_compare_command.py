"""``plait compare``: runs grouped by everything but the seed, and their paired difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait_experiments.statistics import difference

BASE: dict[str, Any] = {
    "device": "cpu",
    "data": {"name": "tiny-images", "train": 32, "size": 8},
    "model": {"name": "tiny-cnn", "width": 4},
    "train": {"steps": 1, "batch_size": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``slow`` and ``fast`` of three seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("slow", 0.001), ("fast", 0.1)):
        for seed in range(3):
            plait.run(BASE, seed=seed, settings={"optimizer.lr": lr}, out=folder / name / f"seed-{seed}")
    return folder


def test_two_groups_and_their_paired_difference(call: Callable[..., Any], folder: Path) -> None:
    answer = call("compare", str(folder / "slow"), str(folder / "fast"), "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert [group["name"] for group in document["groups"]] == ["slow", "fast"]
    assert [group["seeds"] for group in document["groups"]] == [[0, 1, 2]] * 2
    assert [group["differs"] for group in document["groups"]] == [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.1}]
    loss = document["metrics"]["task/loss"]
    slow, fast = (loss["groups"][name] for name in ("slow", "fast"))
    values = [plait.load_run(folder / "slow" / f"seed-{seed}").metrics["task/loss"] for seed in range(3)]
    assert list(slow["by_seed"].values()) == values
    assert slow["mean"] == pytest.approx(sum(values) / 3)
    gap = loss["difference"]
    assert (gap["paired"], gap["n"]) == (True, 3)
    assert gap["mean"] == pytest.approx(fast["mean"] - slow["mean"])
    again = difference({int(s): v for s, v in slow["by_seed"].items()}, {int(s): v for s, v in fast["by_seed"].items()})
    assert again.as_dict() == gap
    shown = call("compare", str(folder / "slow"), str(folder / "fast"))
    assert shown.code == 0
    assert "paired by seed (3 pair(s)); in brackets the 95 % interval (Student's t)" in shown.out
    assert "±" in shown.out and "optimizer.lr=0.001" in shown.out


def test_single_runs_without_a_common_seed(call: Callable[..., Any], folder: Path) -> None:
    apart = call("compare", str(folder / "slow" / "seed-0"), str(folder / "fast" / "seed-1"))
    assert apart.code == 0, apart.err
    assert "of the means (no common seed)" in apart.out
    same = call("compare", str(folder / "slow" / "seed-0"), str(folder / "slow" / "seed-2"), "--json").document
    assert [group["seeds"] for group in same["groups"]] == [[0, 2]]
    assert "difference" not in same["metrics"]["task/loss"]


def test_what_cannot_be_compared(call: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    assert "two or more finished runs" in call("compare", str(folder / "slow" / "seed-0")).err
    assert "not a run directory" in call("compare", "nowhere", "else").err
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "recipe.toml").write_text("seed = 3\n", encoding="utf-8")
    (cut / "metrics.jsonl").write_text(json.dumps({"event": "scalars", "step": 4}) + "\n", encoding="utf-8")
    refused = call("compare", "cut", str(folder / "slow"))
    assert refused.code == 2
    assert "plait resume cut" in refused.err
