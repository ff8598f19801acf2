"""The loss on the line between two networks, by hand, by the command, and as the claims measure it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import plait
from plait.declare.recipe import Recipe
from plait_fairprune.barrier import interpolate
from plait_fairprune.claims import barriers, iterations
from plait_fairprune.commands import barrier
from plait_fairprune.errors import FairpruneError

pytestmark = pytest.mark.smoke


def one(weight: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(weight)
    return layer


def test_a_hill_and_a_valley_by_hand() -> None:
    hill = interpolate(one(-1.0), one(3.0), lambda model: 9 - float(model.weight) ** 2, points=5)
    assert list(hill.at) == [0, 0.25, 0.5, 0.75, 1]
    assert list(hill.losses) == [8, 9, 8, 5, 0]
    assert hill.barrier == 4  # 8 at the middle of a line from 8 to 0
    assert interpolate(one(-1.0), one(3.0), lambda model: float(model.weight) ** 2).barrier == 0


def test_networks_without_a_line_are_refused() -> None:
    with pytest.raises(FairpruneError, match=r"'weight' is \[1, 1\] and \[1, 2\]"):
        interpolate(one(1), nn.Linear(2, 1, bias=False), lambda _: 0.0)
    with pytest.raises(FairpruneError, match="'bias' is in one of the two networks only"):
        interpolate(one(1), nn.Linear(1, 1), lambda _: 0.0)
    with pytest.raises(FairpruneError, match="at least 2"):
        interpolate(one(1), one(2), lambda _: 0.0, points=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed, strength in (("a", 0, 1.0), ("b", 0, 0.0), ("other", 1, 1.0)):
        plait.run(
            plugins={"fairprune": {"sparsity": 0.5, "strength": strength}},
            data="tiny-images",
            model="tiny-cnn",
            steps=8,
            settings={"seed": seed, "data.classes": 2},
            out=tmp_path / name,
        )
    barrier(tmp_path / "a", tmp_path / "b", points=3)
    said = capsys.readouterr().out
    ends = [plait.load_run(tmp_path / name).metrics["task/loss"] for name in "ab"]
    assert [line.split()[1] for line in said.splitlines()[::2][:2]] == [f"{loss:.4f}" for loss in ends]
    assert "barrier: " in said
    with pytest.raises(plait.BadInput, match="different data or seeds"):
        barrier(tmp_path / "a", tmp_path / "other")


TINY = {
    "data": {"name": "tiny-images", "classes": 2},
    "model": {"name": "tiny-cnn"},
    "train": {"steps": 20, "batch_size": 16},
}


def test_barriers_of_the_claims(tmp_path: Path) -> None:
    recipe = Recipe.parse({**TINY, "plugins": {"fairprune": {"sparsity": 0.5}}}, "test")
    measured = barriers(recipe, tmp_path)
    assert set(measured) == {"without_mask", "without_weights"}
    assert min(measured.values()) >= 0
    names = ("bifp", "without-mask", "without-weights")
    kinds = [plait.load_run(tmp_path / name).recipe.plugins["fairprune"]["baseline"] for name in names]
    assert kinds == list(names)
    written = {name: (tmp_path / name / "metrics.jsonl").stat().st_mtime_ns for name in names}
    assert barriers(recipe, tmp_path) == measured  # taken up again
    assert written == {name: (tmp_path / name / "metrics.jsonl").stat().st_mtime_ns for name in names}


@pytest.mark.parametrize("lr", [0.05, 1e-9])
def test_iterations_of_the_claims(tmp_path: Path, lr: float) -> None:
    """A network that learns nothing keeps the gap of the dense one, or leaves it for good when it is cut."""
    options = {"protocol": "paper", "dense_share": 0.5, "sparsity": 0.5, "curve_points": 5, "density": "once"}
    wanted = {**TINY, "optimizer": {"lr": lr}, "plugins": {"fairprune": options}}
    run = plait.run(wanted, out=tmp_path / "run")
    counted = iterations(run)
    reached = run.metrics["fairprune/steps_to_dense_gap"]
    if counted["reached"]:
        assert counted["iterations"] == reached
        assert counted["iterations"] in (2, 4, 6, 8, 10)
    else:
        assert reached != reached
        assert counted["iterations"] == 10
    assert counted["whole"] == 10 + counted["iterations"]
