"""Where workers come from: processes of this machine, jobs of a Slurm cluster, or tasks of a Ray cluster.

A launcher keeps as many workers wanted as there are slots; which of them are there the manager sees by their
connections. So a node that the batch system takes back, or that dies, is simply a connection that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from .errors import MalletrainError

__all__ = ["Launcher", "LocalProcesses", "Ray", "Slurm"]


class Launcher(Protocol):
    """What the manager asks of a launcher; names are those of slots."""

    def start(self, name: str) -> None:
        """Ask for a worker of that name."""

    def kill(self, name: str) -> None:
        """End it without notice."""

    def watch(self) -> None:
        """Look after the workers that were asked for; called every second."""

    def close(self) -> None:
        """End all of them."""


def command(manager: str, token: Path, name: str) -> list[str]:
    """The command line of a worker."""
    python = [sys.executable, "-P", "-m", "plait_malletrain.worker"]
    return [*python, "--manager", manager, "--token-file", str(token), "--name", name]


class LocalProcesses:
    """Workers as processes of this machine, each on one core.

    Args:
        manager: HOST:PORT.
        token: its file.
        log: where the workers' own output goes.
    """

    def __init__(self, manager: str, token: Path, log: Path) -> None:
        self.manager, self.token, self.log = manager, token, log
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def start(self, name: str) -> None:
        """Start it; it comes when plait is imported."""
        line = command(self.manager, self.token, name)
        if self.cores and name.isdigit():
            line += ["--cpu", str(self.cores[int(name) % len(self.cores)])]
        with open(self.log, "ab") as log:
            # a session of its own: a Ctrl-C is the manager's to act on
            self.processes[name] = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)

    def kill(self, name: str) -> None:
        """kill -9."""
        if name in self.processes:
            self.processes[name].kill()

    def watch(self) -> None:
        """Let the system forget processes that have ended.

        Raises:
            MalletrainError: one could not work at all; with what it said.
        """
        for name, process in self.processes.items():
            if (process.poll() or 0) > 0:
                said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
                raise MalletrainError(f"worker {name} ended with exit code {process.returncode}: {said[-1]}")

    def close(self) -> None:
        """Wait for workers that were told to leave, and kill those that stay."""
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Slurm:
    """Workers as jobs of one node each, of low priority, that the batch system may take back at any time.

    A job that is no longer known is submitted again and waits until a node is idle; one that Slurm has requeued runs
    again by itself. How jobs are pre-empted is the cluster's setting (PreemptMode, GraceTime).

    Args:
        manager, token: as of `LocalProcesses`; every node must reach the address and see the file.
        log: of the workers.
        options: further ones of sbatch, e.g. ``--partition=idle --qos=low``.
    """

    def __init__(self, manager: str, token: Path, log: Path, options: str = "") -> None:
        self.manager, self.token, self.log, self.options = manager, token, log, options.split()
        self.jobs: dict[str, str] = {}

    def start(self, name: str) -> None:
        """Submit it."""
        wrapped = " ".join(f"'{part}'" for part in command(self.manager, self.token, name))
        log = ["--output", str(self.log), "--open-mode", "append"]
        line = ["sbatch", "--parsable", "--requeue", "--nodes=1", f"--job-name=malletrain-{name}", *log]
        self.jobs[name] = _said([*line, *self.options, f"--wrap=exec {wrapped}"]).split(";")[0].strip()

    def kill(self, name: str) -> None:
        """Let Slurm take the node back and queue the worker again."""
        if name in self.jobs:
            _said(["scontrol", "requeue", self.jobs[name]])

    def states(self) -> dict[str, str]:
        """Slot -> state and reason of its job as squeue says them, PENDING/Priority; without jobs that are gone."""
        if not self.jobs:
            return {}
        said = _said(["squeue", "--noheader", "--format=%i %T/%r", f"--jobs={','.join(self.jobs.values())}"], fails="")
        known = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
        return {name: known[job] for name, job in self.jobs.items() if job in known}

    def watch(self) -> None:
        """Submit again what has ended; what was requeued need not wait its two minutes."""
        states = self.states()
        for name, job in list(self.jobs.items()):
            if name not in states:
                self.start(name)
            elif states[name] == "PENDING/BeginTime":
                _said(["scontrol", "update", f"JobId={job}", "StartTime=now"], fails="")

    def close(self) -> None:
        """Cancel all of them."""
        if self.jobs:
            _said(["scancel", *self.jobs.values()], fails="")
            self.jobs.clear()


class Ray:
    """Workers as tasks of a Ray cluster, one CPU each.

    Args:
        manager, token: as of `LocalProcesses`.
        address: of the cluster, e.g. ``ray://host:10001`` or ``auto``; ``local`` for one on this machine.
    """

    def __init__(self, manager: str, token: Path, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise MalletrainError('--ray needs Ray: pip install "plait-malletrain[ray]".') from None
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself waits for minutes
            if colon:
                socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise MalletrainError(f"--ray {address}: nothing answers there: {error}") from None
        extra: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **extra)
        except Exception as error:  # Ray raises many kinds
            raise MalletrainError(f"--ray {address}: no cluster answers: {type(error).__name__}: {error}") from None
        self.ray: Any = ray
        self.manager, self.token = manager, token
        self.tasks: dict[str, Any] = {}

    def start(self, name: str) -> None:
        """Submit it."""
        line = [*command(self.manager, self.token, name), "--bound"]
        self.tasks[name] = self.ray.remote(num_cpus=1, max_retries=0)(_run).remote(line)

    def kill(self, name: str) -> None:
        """Cancel it, and with it the worker that it started."""
        if name in self.tasks:
            self.ray.cancel(self.tasks[name], force=True)

    def watch(self) -> None:
        """Submit again what has ended."""
        for name, task in list(self.tasks.items()):
            if self.ray.wait([task], timeout=0)[0]:
                self.start(name)

    def close(self) -> None:
        """Cancel all of them."""
        for name in self.tasks:
            with contextlib.suppress(Exception):
                self.kill(name)
        self.tasks.clear()
        self.ray.shutdown()


def _run(line: list[str]) -> int:
    """In a Ray task: a worker in a process without Ray's threads, from which it can fork."""
    return subprocess.run([sys.executable, *line[1:]]).returncode


def _said(line: list[str], fails: str | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
        MalletrainError: it is not there, or fails and ``fails`` is not given in its place.
    """
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MalletrainError(f"{line[0]}: {error}. Is Slurm installed here?") from None
    if done.returncode:
        if fails is not None:
            return fails
        raise MalletrainError(f"{line[0]} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else '?'}")
    return done.stdout
