"""The worker on a node (a slot): keeps plait imported, and forks a process for each rank that the manager asks for.

``python -m plait_malletrain.worker --manager HOST:PORT --token-file FILE --name NAME``. The forked process is an
ordinary `plait.run` under a launcher's environment, so that any recipe works; since nothing has to be imported again it
starts within a fraction of a second. When the manager or the worker is gone, its processes end: never two at a run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .channel import Channel, ChannelError, Ended, Imports, Leave, Progress, Stop, Work, greet, read_token
from .errors import MalletrainError

GRACE = 3.0
"""Seconds that a process has to write a checkpoint when the manager is gone."""
PR_SET_PDEATHSIG = 1
MANY = 500
"""Names of modules in one message."""


@dataclass(eq=False)
class Child:
    """A forked rank: its order, process, and the lines that it writes."""

    order: Work
    rank: int
    pid: int
    lines: int
    buffer: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)


class Worker:
    """The processes of one node.

    Args:
        channel: to the manager.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.children: dict[int, Child] = {}
        # modules to import before they are asked for: what any first step wants, then what jobs have imported anywhere
        self.wanted = ["torch._dynamo"]
        self.selector = selectors.DefaultSelector()
        self.selector.register(channel, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Do what the manager says, until it says to leave or is gone."""
        try:
            waiting = self.channel.buffered()
            while True:
                for message in waiting:
                    if isinstance(message, Leave):
                        return
                    self.obey(message)
                waiting = []
                self.import_next()
                for key, _ in self.selector.select(0 if self.wanted else None):
                    if key.data is None:
                        waiting = self.channel.receive()
                    else:
                        self.listen(key.data)
        except (ChannelError, OSError, EOFError):
            self.signal(self.children.values(), signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            while self.children and time.monotonic() < deadline:
                for key, _ in self.selector.select(0.1):
                    if key.data is not None:
                        self.listen(key.data, tell=False)
        finally:
            self.signal(self.children.values(), signal.SIGKILL)
            for child in self.children.values():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)

    def import_next(self) -> None:
        """Import one module that a job will want; between two of them the manager is heard."""
        if self.wanted:
            with contextlib.suppress(Exception, SystemExit):  # whatever a stranger's module raises
                importlib.import_module(self.wanted.pop(0))

    def obey(self, message: Any) -> None:
        """Start ranks, or stop them."""
        if isinstance(message, Imports):
            self.wanted += [name for name in message.names if name not in sys.modules]
        elif isinstance(message, Work):
            while self.wanted:  # once here, instead of once in every rank
                self.import_next()
            gc.freeze()  # else the first collection in every rank copies what it shares with this process
            for rank in message.ranks:
                self.start(message, rank)
        elif isinstance(message, Stop):
            job = (message.job, message.generation)
            chosen = [child for child in self.children.values() if (child.order.job, child.order.generation) == job]
            self.signal(chosen, signal.SIGKILL if message.now else signal.SIGTERM)

    def signal(self, children: Any, number: int) -> None:
        """Send a signal; of one generation rank 0 stops the others, at a common step."""
        for child in list(children):
            if number == signal.SIGKILL or child.rank == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def start(self, order: Work, rank: int) -> None:
        """Fork a rank."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self.channel.close()
            work(order, rank, writing)
        os.close(writing)
        child = Child(order, rank, pid, reading)
        self.children[reading] = child
        self.selector.register(reading, selectors.EVENT_READ, child)

    def listen(self, child: Child, tell: bool = True) -> None:
        """Pass on what a rank writes; at its end say how it ended."""
        data = os.read(child.lines, 65536)
        child.buffer += data
        *lines, child.buffer = child.buffer.split(b"\n")
        job, generation = child.order.job, child.order.generation
        for line in lines:
            child.last = json.loads(line)
            if tell and "modules" in child.last:
                names = [name for name in child.last["modules"] if name not in sys.modules]
                self.wanted += names
                for first in range(0, len(names), MANY):
                    self.channel.send(Imports(names=tuple(names[first : first + MANY])))
            if tell and "step" in child.last:
                self.channel.send(Progress(job=job, generation=generation, **child.last))
        if data:
            return
        self.selector.unregister(child.lines)
        os.close(child.lines)
        del self.children[child.lines]
        os.waitpid(child.pid, 0)
        end = child.last if "outcome" in child.last else {"outcome": "lost", "text": "the process was killed"}
        if tell:
            self.channel.send(Ended(job=job, generation=generation, rank=child.rank, **end))


def end_with_parent() -> None:
    """When the process that started this one is gone, the system kills this one, too."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux a killed worker may leave its ranks
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# ---- in the forked process -----------------------------------------------------------------------------------------
def work(order: Work, rank: int, lines: int) -> None:
    """Be a rank of a job; never returns."""
    end_with_parent()
    if order.world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(order.world), "LOCAL_RANK": str(order.ranks.index(rank))}
        os.environ |= {"MASTER_ADDR": order.address, "MASTER_PORT": str(order.port)}
    log = os.open(f"{order.directory}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    asked = threading.Event()

    def ask(*_: Any) -> None:
        asked.set()

    signal.signal(signal.SIGTERM, ask)

    def insist() -> None:
        """A stop that came before the training loop listens is said again when it does."""
        asked.wait()
        while signal.getsignal(signal.SIGTERM) is ask:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=insist, daemon=True).start()

    def write(**document: Any) -> None:
        os.write(lines, json.dumps(document).encode() + b"\n")

    try:
        end = _train(order, rank, write)
    except BaseException as error:  # whatever a stranger's code raises
        end = {"outcome": "failed", "text": f"{type(error).__name__}: {error}"[:2000], "code": 1}
    with contextlib.suppress(OSError):
        write(**end)
        sys.stderr.flush()
    os._exit(0)


def _train(order: Work, rank: int, write: Any) -> dict[str, Any]:
    from plait.declare.recipe import Recipe
    from plait.errors import Interrupted, PlaitError
    from plait.planning.plan import make_plan
    from plait.run import execute, make_artifacts
    from plait.storage.directory import RunDirectory
    from plait.storage.progress import Silent

    class Reporter(Silent):
        """Tells the manager of the steps."""

        def start(self, total: int, done: int, what: str) -> None:
            self.total = total
            self.advance(done, "")
            write(modules=[*sys.modules])

        def advance(self, done: int, note: str) -> None:
            write(step=done, total=self.total, time=time.time())

        def say(self, text: str) -> None:
            print(text, file=sys.stderr)

    directory = RunDirectory(order.directory)
    try:
        # artifacts only at the end: a page for every resize would be most of its time
        plan = make_plan(Recipe.load(order.recipe))
        execute(plan, directory, go_on=True, progress=Reporter(), artifacts=False)
    except Interrupted as error:
        return {"outcome": "stopped", "text": str(error)}
    except PlaitError as error:
        return {"outcome": "failed", "text": str(error)[:2000], "code": error.exit_code}
    if rank == 0:
        make_artifacts(directory)
    return {"outcome": "finished"}


def main(arguments: list[str] | None = None) -> int:
    """The worker's command line."""
    parser = argparse.ArgumentParser(prog="python -m plait_malletrain.worker", description=__doc__)
    parser.add_argument("--manager", required=True, metavar="HOST:PORT")
    parser.add_argument("--token-file", required=True, type=Path)
    parser.add_argument("--name", default=socket.gethostname())
    parser.add_argument("--cpu", type=int, help="run on this core only")
    parser.add_argument("--bound", action="store_true", help="end with the process that started it")
    given = parser.parse_args(arguments)
    if given.bound:
        end_with_parent()
    host, _, port = given.manager.rpartition(":")
    if given.cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {given.cpu})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # what every run imports; nothing here computes, so that forking is safe
    import accelerate  # noqa: F401
    import torch

    import plait.rehearsal
    import plait.run
    import plait.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    try:
        token = read_token(given.token_file)
        connection = socket.create_connection((host or "127.0.0.1", int(port)), timeout=30)
        Worker(greet(connection, token, given.name)).serve()
    except (MalletrainError, ChannelError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
