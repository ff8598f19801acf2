"""Two processes end with the weights, the figures and the counts of one, in batches of one shape and of several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state
from plait_dydca.plugin import DydcaPlugin

SAMPLERS = ("shapes", "mixed")
TOGETHER = """
import json, sys
import plait
from plait.planning.discovery import pretend
from plait_authoring.together import together
from plait_dydca.plugin import DydcaPlugin

with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
    for out, wanted in json.loads(sys.argv[1]).items():
        ended = together(lambda rank: plait.run(wanted, out=out), 2)
        assert [end.code for end in ended] == [0, 0], ended
"""


def recipe(sampler: str) -> dict[str, Any]:
    return {
        "data": {"name": "clip", "clip": "generated", "every": 60},
        "model": {"name": "wdsr", "channels": 4},
        "train": {"steps": 4, "batch_size": 5},  # uneven shares
        "optimizer": {"name": "sgd", "lr": 0.1},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"dydca": {"blocks": [1, 1], "sampler": sampler}},
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs on two processes, each in the folder of its sampler.

    Forked processes in a process of their own: compilers of other tests start threads, after which none can be forked.
    """
    folder = tmp_path_factory.mktemp("two")
    wanted = json.dumps({str(folder / sampler): recipe(sampler) for sampler in SAMPLERS})
    done = subprocess.run([sys.executable, "-c", TOGETHER, wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_processes_equal_one(two: Path, tmp_path: Path, sampler: str) -> None:
    with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
        plait.run(recipe(sampler), out=tmp_path / "one")
        places = two / sampler, tmp_path / "one"
        many, one = (final_state(place) for place in places)
        for name, value in one["model"].items():
            torch.testing.assert_close(many["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
        for name in ("steps", "pixels"):
            assert many["plugins"]["dydca"][name] == one["plugins"]["dydca"][name]
        psnr = [plait.load_run(place).metrics["dydca/psnr_video"] for place in places]
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)
