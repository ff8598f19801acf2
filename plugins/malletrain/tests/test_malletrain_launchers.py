"""Workers of a real Slurm (daemons of its own on loopback, where installed), and what is said where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plait.declare.recipe import Recipe
from plait_malletrain.errors import MalletrainError
from plait_malletrain.jobs import admitted
from plait_malletrain.launchers import LocalProcesses, Ray, Slurm
from plait_malletrain.manager import Manager
from plait_malletrain.options import ServeOptions

CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
PartitionName=idle Nodes=n1 Default=YES MaxTime=INFINITE State=UP
"""


def write_recipe(path: Path) -> Path:
    """A run that does not end by itself within the test."""
    values = {
        "data": {"name": "tiny-images", "train": 64},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": 3000, "batch_size": 16, "log_every": 1, "evaluate_every": 10000},
        "checkpoint": {"every_steps": 5},
    }
    path.write_text(Recipe.parse(values).to_toml(), encoding="utf-8")
    return path


def go_on(manager: Manager, wanted: Callable[[], bool], seconds: float = 240) -> None:
    """As `Manager.run` does, until something is so."""
    assert manager.launcher is not None
    deadline, watched = time.monotonic() + seconds, 0.0
    while not wanted():
        assert time.monotonic() < deadline, manager.state_dict()
        manager.turn()
        if time.monotonic() - watched > 1:
            watched = time.monotonic()
            manager.launcher.watch()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of one node."""
    if missing := [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed (Debian: apt-get install slurmctld slurmd slurm-client)")
    if os.geteuid() != 0:
        pytest.skip("daemons of Slurm that run jobs need to be root")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [end.getsockname()[1] for end in (one, two)]
    file = tmp_path / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=socket.gethostname(), ports=ports, folder=tmp_path))
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("SLURM_CONF", str(file))
    with open(tmp_path / "daemons.log", "wb") as log:
        lines = (["slurmctld", "-D", "-f", str(file)], ["slurmd", "-D", "-N", "n1", "-f", str(file)])
        daemons = [subprocess.Popen(line, stdout=log, stderr=log) for line in lines]
        try:
            deadline = time.monotonic() + 60
            while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
                if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                    pytest.skip(f"no cluster came up: {(tmp_path / 'daemons.log').read_text()[-300:]}")
                time.sleep(0.2)
            yield
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(5)
                except subprocess.TimeoutExpired:  # slurmd waits for a job that is just being cancelled
                    daemon.kill()
                    daemon.wait()


def test_a_job_goes_on_when_slurm_takes_its_node_and_gives_it_back(slurm: None, tmp_path: Path) -> None:
    write_recipe(tmp_path / "job.toml")
    said: list[str] = []
    with Manager(tmp_path / "served", ServeOptions(nmax=1), say=said.append) as manager:
        manager.submit(admitted([tmp_path / "job.toml"]))
        log = tmp_path / "served/workers.log"
        launcher = Slurm(manager.address, tmp_path / "served/token", log, "--partition=idle")
        manager.launcher = launcher
        launcher.start("0")
        job = manager.jobs["job"]
        go_on(manager, lambda: job.step >= 8 and job.state == "running")
        assert launcher.states()["0"].startswith("RUNNING")
        launcher.kill("0")
        go_on(manager, lambda: job.generation == 2 and job.state == "running")
        assert job.step >= 5  # from the last checkpoint, not from the start
    assert launcher.states() == {} and "0" not in manager.leaving


@pytest.mark.slow
def test_a_job_on_a_ray_cluster_goes_on_when_its_worker_is_cancelled(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with Manager(tmp_path / "served", ServeOptions(nmax=1), say=lambda text: None) as manager:
        manager.submit(admitted([write_recipe(tmp_path / "job.toml")]))
        launcher = manager.launcher = Ray(manager.address, tmp_path / "served/token", "local")
        launcher.start("0")
        job = manager.jobs["job"]
        go_on(manager, lambda: job.step >= 8 and job.state == "running")
        launcher.kill("0")
        go_on(manager, lambda: "0" not in manager.nodes)  # the worker is gone with its task
        go_on(manager, lambda: job.generation == 2 and job.state == "running")
        assert job.step >= 5  # from the last checkpoint, not from the start


def test_without_slurm_or_ray_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MalletrainError, match=r"sbatch: .*Is Slurm installed here"):
        Slurm("127.0.0.1:1", tmp_path / "token", tmp_path / "log").start("0")
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(MalletrainError, match="nothing answers there"):
        Ray("127.0.0.1:1", tmp_path / "token", "ray://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MalletrainError, match="--ray needs Ray"):
        Ray("127.0.0.1:1", tmp_path / "token", "auto")


def test_a_worker_that_cannot_work_ends_the_wait(tmp_path: Path) -> None:
    launcher = LocalProcesses("127.0.0.1:1", tmp_path / "none", tmp_path / "log")
    launcher.processes["0"] = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    launcher.processes["0"].wait()
    (tmp_path / "log").write_text("error: the token cannot be read")
    with pytest.raises(MalletrainError, match="worker 0 ended with exit code 2: error: the token cannot be read"):
        launcher.watch()
    launcher.processes["0"] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher.kill("0")
    launcher.close()
    launcher.watch()  # a node that vanishes is no error
