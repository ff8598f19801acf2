"""What the claims measure: the saved network alone, its speed, Torch-Pruning in as many steps; the claims file."""

from __future__ import annotations

from pathlib import Path

import pytest

import plait
from plait.declare.recipe import Recipe
from plait_chase.arms import exported, torch_pruning
from plait_chase.errors import ChaseError
from plait_chase.yardsticks import count_weights, prune_with_torch_pruning
from plait_experiments.experiment import check
from plait_experiments.schema import load

RECIPE = {
    "data": {"name": "tiny-images"},
    "model": {"name": "tiny-cnn", "width": 16},
    "train": {"steps": 24},
    "device": "cpu",
}


def test_the_claims_file_is_good() -> None:
    book = load("chase")
    assert book is not None and check(book) == []
    assert [c.id for c in book.claims if c.gate] == ["exact", "accuracy", "speed"]


def test_the_saved_network_runs_without_plait(tmp_path: Path) -> None:
    run = plait.run(
        {**RECIPE, "export": {"formats": ["safetensors", "torch_export"]}},
        plugins={"chase": {"timing_repeats": 0}},
        out=tmp_path / "r",
    )
    measured = exported(plait.load_run(run.path))
    assert measured["saved/alone_error"] < 1e-5
    assert 0.1 < measured["saved/speedup"] < 10


@pytest.mark.parametrize("goal", [{"mac_ratio": 0.5}, {"weights": 800}])
def test_torch_pruning_reaches_its_goal_in_as_many_steps(tmp_path: Path, goal: dict[str, float]) -> None:
    measures = torch_pruning(Recipe.parse(RECIPE), tmp_path, share=0.25, **goal)  # type: ignore[arg-type]
    steps = [plait.load_run(tmp_path / part).recipe.train.steps for part in ("dense", "pruned")]
    assert steps == [6, 18]
    assert measures["chase/mac_ratio@export"] <= 0.5 if "mac_ratio" in goal else measures["chase/nonzeros"] <= 800
    assert "task/accuracy@validation" in measures
    again = torch_pruning(Recipe.parse(RECIPE), tmp_path, share=0.25, **goal)  # type: ignore[arg-type]
    assert again == measures  # resumes from the runs that are there


def test_goals_of_the_pruner() -> None:
    import torch

    from plait.planning.tiny import TinyCNN

    model, example = TinyCNN(1, 16, 4), torch.zeros(2, 1, 8, 8)
    small = prune_with_torch_pruning(model, example, weights=1000)
    assert count_weights(small) <= 1000 < count_weights(model)
    for bad in ({}, {"weights": 10, "mac_ratio": 0.5}, {"weights": 0}):
        with pytest.raises(ChaseError, match="weights"):
            prune_with_torch_pruning(model, example, **bad)  # type: ignore[arg-type]
    with pytest.raises(ChaseError, match="cannot be reached"):
        prune_with_torch_pruning(model, example, weights=1)
