"""The same recipe on two gloo processes: equal to one process at equal global batch, and equal on both ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.testing.killing import final_state, first_difference

WORKER = """
import json, sys, torch
torch.set_num_threads(1)
import plait
from plait import running
from safetensors.torch import save_file

recipe, out = json.loads(sys.argv[1]), sys.argv[2]
kept = {}
finish = running._finish
def keep(trainer, recorder, views):
    kept.update({k: v.clone() for k, v in trainer.model.state_dict().items()})
    kept.update({f"mask {k}": v.clone() for k, v in trainer.masks.mask.items()})
    kept["rank"] = torch.tensor(trainer.rank)
    return finish(trainer, recorder, views)
running._finish = keep
plait.run(recipe, out=out)
save_file(kept, f"{out}.rank{int(kept['rank'])}")
"""

NET = """
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, num_classes))
"""

CHASE = {"density": 0.4, "channel_sparsity": 0.0, "exploration_interval": 5, "timing_repeats": 0}
SAM = {"severities": [3], "sync_perturbation": True, "rho": 0.2}


def recipe(plugins: dict[str, Any], model: str = "nets_of_two:net") -> dict[str, Any]:
    return {
        "data": {"name": "tiny-images", "train": 250},
        "model": {"name": model},
        "train": {"steps": 30, "batch_size": 32},
        "optimizer": {"lr": 0.05},
        "device": "cpu",
        "plugins": plugins,
    }


def on_two(folder: Path, wanted: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Run on two processes; the ranks' weights and masks."""
    import json

    from safetensors.torch import load_file

    script = folder / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(script), json.dumps(wanted), str(folder / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"two.rank{rank}") for rank in (0, 1)]


@pytest.mark.parametrize(
    "plugins",
    [{}, {"fairsam": SAM}, {"chase": CHASE}, {"chase": CHASE, "fairsam": SAM}],
    ids=["dense", "fairsam", "chase", "both"],
)
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: dict[str, Any]) -> None:
    (tmp_path / "nets_of_two.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_two", raising=False)
    wanted = recipe(plugins)
    first, second = on_two(tmp_path, wanted)
    assert first_difference({**first, "rank": 0}, {**second, "rank": 0}) is None
    plait.run(wanted, out=tmp_path / "one")
    for name, value in final_state(tmp_path / "one")["model"].items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_each_rank_may_perturb_by_its_own_gradient(tmp_path: Path) -> None:
    """m-SAM (the default): ranks perturb apart, average the descent gradient, and so stay equal."""
    first, second = on_two(
        tmp_path, recipe({"chase": {"timing_repeats": 0}, "fairsam": {"severities": [3]}}, "tiny-cnn")
    )
    assert all(torch.equal(first[k], second[k]) for k in first if k != "rank" and "running" not in k)
