"""Two gloo processes that find one ticket: the same edges, weights and figures as one process finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.run import execute
from plait.storage import places
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import together
from plait_glt.tickets import Ticket
from plait_glt.transport import pot

OPTIONS = {"rounds": 2, "p_g": 0.3, "p_theta": 0.4, "mask_epochs": 8, "fix_epochs": 8, "warmup": 2, "wd_samples": 16}
PLUGINS: dict[str, dict[str, Any]] = {
    "delta": {"rho": 0.1},
    "ascent": {"baseline": "ascent"},
    "ugs": {"baseline": "ugs", "directed_masks": True},
    "random": {"baseline": "random", "dropedge": 0.2},
}


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"name": "karate", "labels_per_class": 3},  # 12 training nodes: six on each process
        "model": {"name": "gcn", "hidden": 16, "dropout": 0.0},
        "optimizer": {"name": "adam", "lr": 0.02},
        "train": {"select": "best", "batch_size": 1000, "evaluate_every": 1, "epochs": 5},
        "checkpoint": {"every_steps": 5, "keep": 99},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"glt": {**OPTIONS, **PLUGINS[name]}},
        **changes,
    }


def figures(path: Path) -> dict[str, float]:
    return {n: v for n, v in plait.load_run(path).metrics.items() if n.partition("@")[0] != "glt/seconds"}


def tickets_agree(left: Path, right: Path) -> None:
    first, second = (Ticket.load(path / "export" / "ticket.safetensors") for path in (left, right))
    assert torch.equal(first.edge_kept, second.edge_kept)
    assert all(torch.equal(first.weight_kept[name], second.weight_kept[name]) for name in first.weight_kept)


def on_two(path: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Run on two processes; what each rank's rounds gave, and its masks as a checksum."""

    def act(rank: int) -> None:
        from plait_glt.weave import Weave

        whole = Weave._end

        def keep(self: Weave, trainer: Any, phase: Any) -> None:
            whole(self, trainer, phase)
            state = {"rounds": self.rounds, "masks": trainer.masks.checksum()}
            Path(f"{path}.rank{rank}").write_text(json.dumps(state))

        Weave._end = keep  # type: ignore[method-assign]
        execute(plait.plan(wanted), places.at(path), artifacts=False)

    pot()  # once here, not in every forked process
    ended = together(act)
    assert [e.code for e in ended] == [0, 0], ended
    return [json.loads(Path(f"{path}.rank{rank}").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two_of_delta(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """An unbroken run of two processes, and what `on_two` gave."""
    path = tmp_path_factory.mktemp("delta") / "two"
    return path, on_two(path, recipe("delta"))


@pytest.mark.parametrize("name", PLUGINS)
def test_two_processes_find_the_ticket_of_one(
    tmp_path: Path, name: str, two_of_delta: tuple[Path, list[dict[str, Any]]]
) -> None:
    two, (first, second) = two_of_delta
    if name != "delta":
        two = tmp_path / "two"
        first, second = on_two(two, recipe(name))
    assert first == second and len(first["rounds"]) == 3
    execute(plait.plan(recipe(name)), places.at(tmp_path / "one"), artifacts=False)
    unbroken = tmp_path / "one"
    tickets_agree(two, unbroken)
    mine, other = figures(two), figures(unbroken)
    assert mine.keys() == other.keys()
    for metric, value in mine.items():
        assert value == pytest.approx(other[metric], rel=1e-3, abs=1e-3), metric
    weights = [final_state(path)["model"] for path in (two, unbroken)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4, msg=key)


def test_two_processes_resume_in_the_middle_of_a_round(
    tmp_path: Path, two_of_delta: tuple[Path, list[dict[str, Any]]]
) -> None:
    """From a checkpoint inside a mask phase, to the same bits as the unbroken run of two."""
    whole, _ = two_of_delta
    shutil.copytree(whole, tmp_path / "two")
    ended = together(lambda rank: plait.resume(tmp_path / "two", checkpoint="step-000000030"))
    assert [e.code for e in ended] == [0, 0], ended
    assert first_difference(final_state(tmp_path / "two"), final_state(whole)) is None
    tickets_agree(tmp_path / "two", whole)


def test_links_on_two_processes(tmp_path: Path) -> None:
    """Each process scores its part of the pairs and draws its own negatives; both keep the same masks."""
    wanted = recipe("delta", data={"name": "karate-links"})
    first, second = on_two(tmp_path / "two", wanted)
    assert first == second
    trained = plait.load_run(tmp_path / "two").metrics
    assert trained["glt/kept_edges"] == 53 and 0 <= trained["glt/auc"] <= 100
