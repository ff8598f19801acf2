"""SIGKILL in the middle of mask phases, of retraining phases and at their borders: resumed runs end with equal bits."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.run import execute
from plait.storage import places
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done
from plait_glt.phases import phases
from plait_glt.transport import pot
from plait_glt.weave import Weave

MASKS, RETRAIN = 7, 5
OPTIONS = {"rounds": 2, "p_g": 0.3, "p_theta": 0.4, "mask_epochs": MASKS, "fix_epochs": RETRAIN, "warmup": 2}
PLUGINS: dict[str, dict[str, Any]] = {
    "delta": {"glt": {**OPTIONS, "wd_samples": 8, "rho": 0.1}},
    "ascent": {"glt": {**OPTIONS, "baseline": "ascent", "wd_samples": 8}},
    "ugs": {"glt": {**OPTIONS, "baseline": "ugs", "directed_masks": True}},
    "links": {"glt": {**OPTIONS, "wd_samples": 8, "rho": 0.1}},
    "random": {"glt": {**OPTIONS, "baseline": "random", "dropedge": 0.2}},
}


def recipe(name: str) -> dict[str, Any]:
    return {
        "data": {"name": "karate-links" if name == "links" else "karate"},
        "model": {"name": "gcn", "hidden": 16},
        "optimizer": {"name": "adam", "lr": 0.02},
        "train": {"select": "best", "batch_size": 1000, "evaluate_every": 1, "epochs": 5},
        "checkpoint": {"every_steps": 2},
        "device": "cpu",
        "plugins": PLUGINS[name],
    }


def whole_run(name: str, path: Path) -> None:
    execute(plait.plan(recipe(name)), places.at(path), artifacts=False)


def killed_at(step: int, name: str, path: Path) -> None:
    """A run that ends itself inside that step."""
    step_of = Weave.step

    def stop(self: Weave, trainer: Any, batch: Any, proceed: Any) -> Any:
        if trainer.step == step:
            proceed()
            os.kill(os.getpid(), signal.SIGKILL)
        return step_of(self, trainer, batch, proceed)

    Weave.step = stop  # type: ignore[method-assign]
    whole_run(name, path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pot()  # once here, not in every forked process
    unbroken = {}
    for name in PLUGINS:
        unbroken[name] = tmp_path_factory.mktemp(name) / "run"
        assert forked(functools.partial(whole_run, name, unbroken[name])) == 0
    return unbroken


def assert_same_figures(path: Path, other: Path) -> None:
    """All but what a clock says; and the table has seconds for every round but the one that was interrupted."""
    mine, theirs = plait.load_run(path), plait.load_run(other)
    timed = {name for name in theirs.metrics if name.partition("@")[0] == "glt/seconds"}
    assert mine.metrics.keys() == theirs.metrics.keys() > timed
    assert {n: v for n, v in mine.metrics.items() if n not in timed} == {
        n: v for n, v in theirs.metrics.items() if n not in timed
    }
    assert None not in seconds_of(theirs)
    assert seconds_of(mine).count(None) == 1


def seconds_of(run: plait.Run) -> list[float | None]:
    result = run.directory.result()
    assert result is not None
    table = result["tables"]["glt/rounds"]
    return [row[table["columns"].index("seconds")] for row in table["rows"]]


WHERE = {
    "middle of the first mask phase": 10,
    "first step of the first retraining": 13,
    "middle of the first retraining": 16,
    "first step of the second mask phase": 18,
    "middle of the second mask phase": 22,
    "middle of the last retraining": 28,
}


def test_the_instants_are_where_they_say() -> None:
    plan = phases(2, MASKS, RETRAIN, dense=True)
    assert [(p.kind, p.start, p.end) for p in plan] == [
        ("dense", 0, 5),
        ("masks", 5, 12),
        ("retrain", 12, 17),
        ("masks", 17, 24),
        ("retrain", 24, 29),
    ]


@pytest.mark.parametrize("where", WHERE)
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, unbroken: dict[str, Path], where: str) -> None:
    path = tmp_path / "run"
    assert forked(lambda: killed_at(WHERE[where], "delta", path)) == -signal.SIGKILL
    newest = RunDirectory(path).checkpoint()
    assert newest is not None
    assert WHERE[where] - 2 <= int(newest.stem.removeprefix("step-")) < WHERE[where]
    resume_until_done(path, recipe("delta"))
    assert first_difference(final_state(path), final_state(unbroken["delta"])) is None
    assert_same_figures(path, unbroken["delta"])


@pytest.mark.parametrize("name", ["ascent", "ugs", "random", "links"])
def test_every_kind_of_phase_resumes(tmp_path: Path, unbroken: dict[str, Path], name: str) -> None:
    path, step = tmp_path / "run", 10 if name != "random" else 13
    assert forked(lambda: killed_at(step, name, path)) == -signal.SIGKILL
    resume_until_done(path, recipe(name))
    assert first_difference(final_state(path), final_state(unbroken[name])) is None
    assert_same_figures(path, unbroken[name])
