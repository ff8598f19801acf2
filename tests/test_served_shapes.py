"""Jobs whose batches are lists by shape under `plait malletrain serve`: resized while they train, to the bit.

A video a job, as dydca is meant to be served: one draws batches of one shape, the other lists of several shapes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import plait
from plait.declare.recipe import Recipe
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import together
from plait_malletrain.jobs import admitted
from plait_malletrain.launchers import LocalProcesses
from plait_malletrain.manager import Manager
from plait_malletrain.options import ServeOptions

STEPS = {"shapes": 6, "mixed": 60}


def recipe(sampler: str) -> dict[str, Any]:
    return {
        "seed": 5,
        "data": {"name": "clip", "clip": "generated", "every": 30},
        "model": {"name": "wdsr", "channels": 4},
        "train": {"steps": STEPS[sampler], "batch_size": 5, "log_every": 1},  # uneven shares
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
        "distributed": {"unused_parameters": True, "timeout": 60},
        "device": "cpu",
        "plugins": {"dydca": {"blocks": [2, 1], "grid": [5, 2], "sampler": sampler}},
    }


def alone(path: Path, sampler: str) -> None:
    torch.set_num_threads(1)
    plait.run(recipe(sampler), out=path / sampler)


def turn_until(manager: Manager, wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not wanted():
        assert time.monotonic() < deadline, json.dumps(manager.state_dict())
        manager.turn()


def test_videos_that_are_resized_end_with_the_bits_of_undisturbed_runs(tmp_path: Path) -> None:
    for sampler in STEPS:
        (tmp_path / f"{sampler}.toml").write_text(Recipe.parse(recipe(sampler)).to_toml(), encoding="utf-8")
        ended = together(lambda rank, sampler=sampler: alone(tmp_path / "alone", sampler), 2)  # type: ignore[misc]
        assert [end.code for end in ended] == [0, 0], ended
    served = tmp_path / "served"
    with Manager(served, ServeOptions(slots=2, policy="equal", grace=60), say=lambda text: None) as manager:
        launcher = manager.launcher = LocalProcesses(manager.address, served / "token", tmp_path / "workers.log")
        for slot in ("0", "1"):
            launcher.start(slot)
        turn_until(manager, lambda: len(manager.nodes) == 2)
        manager.submit(admitted([tmp_path / f"{sampler}.toml" for sampler in STEPS]))
        short, long = (manager.jobs[sampler] for sampler in STEPS)
        turn_until(manager, lambda: short.state == "done" and long.state == "running" and len(long.slots) == 2)  # grown
        begun = long.step
        turn_until(manager, lambda: long.step >= begun + 3)
        manager.ask_back(long.slots[-1])  # and shrunk
        turn_until(manager, lambda: manager.over)
        assert long.state == "done" and long.restarts == 0
        assert [size for _, size in long.sizes] == [1, 2, 1]
    for sampler, steps in STEPS.items():
        events = RunDirectory(served / sampler).events()
        trained = Counter(e["step"] for e in events if e.get("event") == "scalars" and "train/loss" in e["values"])
        assert trained == Counter(range(1, steps + 1))  # each once: none lost, none twice
        one, other = (final_state(folder / sampler) for folder in (tmp_path / "alone", served))
        for part in ("model", "optimizer", "plugins", "streams"):
            assert first_difference(one[part], other[part]) is None, (sampler, part)
        psnr = [
            plait.load_run(folder / sampler).metrics["dydca/psnr_video@export"]
            for folder in (tmp_path / "alone", served)
        ]
        assert psnr[0] == psnr[1]
