"""Real launchers: ``plait run --nproc``, torchrun and ``accelerate launch``; a worker killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plait
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import free_port, together

PLUGIN = """
import json, os, signal
from pathlib import Path
from plait import Plugin, hookimpl


class Witness(Plugin):
    name = "witness"
    contract = 1

    def setup(self, trainer):
        self.file = Path(os.environ["WITNESS"]) / f"rank-{trainer.rank}.jsonl"

    @hookimpl
    def optimizer_step(self, trainer, batch, proceed):
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        with self.file.open("a") as file:
            file.write(json.dumps([attempt, trainer.step, batch["index"].tolist()]) + "\\n")
        if os.environ.get("KILL") and attempt == 0 and trainer.rank == 1 and trainer.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return proceed()
"""

RECIPE = """
device = "cpu"
[data]
name = "tiny-images"
train = 250
[model]
name = "tiny-cnn"
[train]
steps = 14
batch_size = 32
[checkpoint]
every_steps = 6
[plugins.witness]
[plugins.chase]
density = 0.4
exploration_interval = 3
channel_interval = 6
timing_repeats = 0
[plugins.fairsam]
severities = [3]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the witness as an installed plugin, and the recipe."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "witness_plugin.py").write_text(PLUGIN)
    (folder / "recipe.toml").write_text(RECIPE)
    info = folder / "witness_plugin-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: witness-plugin\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[plait]\nwitness = witness_plugin:Witness\n")
    return folder


def command(site: Path, *arguments: str, witness: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    witness.mkdir(exist_ok=True)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    own = {"PYTHONPATH": path, "WITNESS": str(witness), "OMP_NUM_THREADS": "1", "COLUMNS": "160", **extra}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=240, env={**os.environ, **own}
    )


@pytest.fixture(scope="module")
def unbroken(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """The run of two forked ranks that nothing happens to, and the rows of each of its steps."""
    from plait.planning import discovery

    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("WITNESS", str(folder))
        patch.setattr(discovery, "_installed", None)
        ended = together(lambda rank: plait.run(site / "recipe.toml", out=folder / "r"))
    assert [e.code for e in ended] == [0, 0], ended
    return folder / "r", [rows for _, _, rows in seen(folder)]


def trained(path: Path) -> dict[str, Any]:
    """The final state but for Python's global generator, from which some imports draw in a new process."""
    state = final_state(path)
    del state["random"]["python"]
    return state


def seen(folder: Path) -> list[list[Any]]:
    """[attempt, step, rows of both ranks] in the order in which they were trained on."""
    ranks = [
        {(a, s): rows for a, s, rows in map(json.loads, (folder / f"rank-{r}.jsonl").read_text().splitlines())}
        for r in (0, 1)
    ]
    return [[a, s, ranks[0][a, s] + ranks[1].get((a, s), [])] for a, s in sorted(ranks[0])]


def committed(folder: Path) -> list[list[int]]:
    """The rows of every step that counts: of the first attempt those up to the checkpoint."""
    return [rows for attempt, step, rows in seen(folder) if attempt == 1 or step <= 6]


def test_a_killed_worker_is_started_again_and_goes_on_from_the_last_checkpoint(
    site: Path, unbroken: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    out, witness = tmp_path / "r", tmp_path / "w"
    arguments = ("run", str(site / "recipe.toml"), "--nproc", "2", "--restarts", "1", "--out", str(out), "--json")
    done = command(site, "plait_cli", *arguments, witness=witness, KILL="1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["metrics"]["task/loss"] > 0
    reference, order = unbroken
    assert first_difference(trained(out), trained(reference)) is None
    steps = seen(witness)
    assert max(step for attempt, step, _ in steps if attempt == 0) == 9
    assert committed(witness) == order  # no sample lost, none repeated
    assert [e["processes"] for e in plait.load_run(out).directory.events() if e["event"] == "resumed"] == [2]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_same_recipe_under_other_launchers(
    site: Path, unbroken: tuple[Path, list[list[int]]], tmp_path: Path, launcher: str
) -> None:
    """torchrun also loses a worker on the way, and starts all of them again."""
    launch = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"],
        # its launcher for several processes without MPI; the recipe says that the device is the CPU
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    }[launcher]
    out = tmp_path / "r"
    killed = launcher == "torchrun"
    launch += ["--master-port", str(free_port())] if killed else []
    arguments = [*launch, "-m", "plait_cli", "run", str(site / "recipe.toml"), "--out", str(out)]
    done = command(site, *arguments, witness=tmp_path / "w", KILL="1" if killed else "")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("task/accuracy") == 1  # one process shows the result
    reference, order = unbroken
    assert first_difference(trained(out), trained(reference)) is None
    assert (committed(tmp_path / "w") if killed else [rows for _, _, rows in seen(tmp_path / "w")]) == order


def test_without_restarts_the_loss_is_told_and_the_run_goes_on_by_hand(
    site: Path, unbroken: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    arguments = ("run", str(site / "recipe.toml"), "--nproc", "2", "--out", str(out))
    done = command(site, "plait_cli", *arguments, witness=tmp_path / "w", KILL="1")
    assert done.returncode == 1
    assert "process 1 of 2 was ended by SIGKILL (out of memory?). The last checkpoint is kept." in done.stderr
    assert f"Go on with: plait resume {out} --nproc 2" in done.stderr
    assert "Traceback" not in done.stderr
    done = command(site, "plait_cli", "resume", str(out), "--nproc", "2", witness=tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert "task/accuracy" in done.stdout
    assert first_difference(trained(out), trained(unbroken[0])) is None
