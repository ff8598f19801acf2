"""A job whose batches are lists by shape under malletrain's manager: resized while it trains, to the bit."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
import torch

import plait
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import together
from plait_malletrain.jobs import admitted
from plait_malletrain.launchers import LocalProcesses
from plait_malletrain.manager import Manager
from plait_malletrain.options import ServeOptions

STEPS = 40
RECIPE: dict[str, Any] = {  # the optimizer is what dydca suggests
    "seed": 5,
    "data": {"name": "clip", "clip": "generated", "every": 60},
    "model": {"name": "wdsr", "channels": 4},
    "train": {"steps": STEPS, "batch_size": 5, "log_every": 1},  # shares are uneven
    "distributed": {"unused_parameters": True, "timeout": 60},
    "device": "cpu",
    "plugins": {"dydca": {"blocks": [2, 1], "sampler": "mixed"}},
}


def alone(path: Path) -> None:
    torch.set_num_threads(1)
    plait.run(RECIPE, out=path)


def turn_until(manager: Manager, wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not wanted():
        assert time.monotonic() < deadline, json.dumps(manager.state_dict())
        manager.turn()


def test_a_video_that_loses_a_node_ends_with_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    ended = together(lambda rank: alone(tmp_path / "alone"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    (tmp_path / "video.toml").write_text(tomli_w.dumps(RECIPE), encoding="utf-8")
    served = tmp_path / "served"
    with Manager(served, ServeOptions(slots=2, policy="equal", grace=60), say=lambda text: None) as manager:
        launcher = manager.launcher = LocalProcesses(manager.address, served / "token", tmp_path / "workers.log")
        for slot in ("0", "1"):
            launcher.start(slot)
        turn_until(manager, lambda: len(manager.nodes) == 2)
        manager.submit(admitted([tmp_path / "video.toml"]))
        job = manager.jobs["video"]
        turn_until(manager, lambda: job.state == "running" and job.step >= 3)
        manager.ask_back(job.slots[-1])
        turn_until(manager, lambda: manager.over)
        assert job.state == "done" and job.restarts == 0
        assert [size for _, size in job.sizes] == [2, 1]
    trained = Counter(
        event["step"]
        for event in RunDirectory(served / "video").events()
        if event.get("event") == "scalars" and "train/loss" in event["values"]
    )
    assert trained == Counter(range(1, STEPS + 1))  # each once: none lost, none twice
    one, other = final_state(tmp_path / "alone"), final_state(served / "video")
    for part in ("model", "optimizer", "plugins", "streams"):
        assert first_difference(one[part], other[part]) is None, part
    psnr = [
        plait.load_run(folder).metrics["dydca/psnr_video@export"] for folder in (tmp_path / "alone", served / "video")
    ]
    assert psnr[0] == psnr[1]
