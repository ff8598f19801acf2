"""Two processes end with the weights, the figures and the counts of one, in batches of one shape and of several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plait
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state
from plait_dydca.plugin import DydcaPlugin

TOGETHER = """
import json, sys
import plait
from plait.planning.discovery import pretend
from plait_authoring.together import together
from plait_dydca.plugin import DydcaPlugin

wanted, out = json.loads(sys.argv[1]), sys.argv[2]
with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
    ended = together(lambda rank: plait.run(wanted, out=out), 2)
assert [end.code for end in ended] == [0, 0], ended
"""


@pytest.mark.parametrize("sampler", ["shapes", "mixed"])
def test_two_processes_equal_one(tmp_path: Path, sampler: str) -> None:
    wanted = {
        "data": {"name": "clip", "clip": "generated", "every": 30},
        "model": {"name": "wdsr", "channels": 4},
        "train": {"steps": 4, "batch_size": 5},  # uneven shares
        "optimizer": {"name": "sgd", "lr": 0.1},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"dydca": {"blocks": [1, 1], "sampler": sampler}},
    }
    # forked processes in a process of their own: compilers of other tests start threads, after which none can be forked
    command = [sys.executable, "-c", TOGETHER, json.dumps(wanted), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
        plait.run(wanted, out=tmp_path / "one")
        two, one = final_state(tmp_path / "two"), final_state(tmp_path / "one")
        for name, value in one["model"].items():
            torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
        for name in ("steps", "pixels"):
            assert two["plugins"]["dydca"][name] == one["plugins"]["dydca"][name]
        psnr = [plait.load_run(tmp_path / name).metrics["dydca/psnr_video"] for name in ("one", "two")]
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)
