"""Several processes that make one run, forked from the testing process: real ranks without an import of torch each."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from plait.errors import PlaitError
from plait_authoring.kill import preload

LAUNCHER = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")


@dataclass(frozen=True)
class Ended:
    """How a rank ended.

    Attributes:
        code: its exit code, negative for the signal that ended it.
        error: the message of the error that ended it.
        shown: whether another rank has told it to the user.
        seconds: after how long.
    """

    code: int
    error: str = ""
    shown: bool = False
    seconds: float = 0.0


def together(
    action: Callable[[int], object],
    world: int = 2,
    *,
    port: int | None = None,
    environments: Sequence[Mapping[str, str]] = (),
    until: int | None = None,
    limit: float = 120.0,
) -> list[Ended]:
    """Run ``action(rank)`` in forked processes that find each other as a launcher's processes do.

    Args:
        action: what every rank runs; an exception ends the rank.
        world: how many.
        port: of rank 0; default a free one.
        environments: extra variables of each rank.
        until: kill the others when this rank has ended; default: wait for all of them.
        limit: seconds after which ranks that still run are killed, and the test fails.

    Raises:
        AssertionError: a rank hung.
    """
    preload()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notes = [Path(folder) / f"rank-{rank}.json" for rank in range(world)]
        port = port if port is not None else free_port()
        children = {}
        for rank in range(world):
            child = os.fork()
            if child == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ.update({name: str(value) for name, value in place.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                for name in LAUNCHER:
                    os.environ.pop(name, None)
                os.environ.update(environments[rank] if environments else {})
                _work(action, rank, notes[rank])
            children[child] = rank
        codes: dict[int, tuple[int, float]] = {}
        while len(codes) < world and time.monotonic() - start < limit:
            for child, rank in children.items():
                if rank not in codes:
                    ended, status = os.waitpid(child, os.WNOHANG)
                    if ended:
                        codes[rank] = (os.waitstatus_to_exitcode(status), time.monotonic() - start)
                elif rank == until:
                    _kill([c for c, r in children.items() if r not in codes])
            time.sleep(0.01)
        hung = [rank for rank in range(world) if rank not in codes]
        _kill([child for child, rank in children.items() if rank in hung])
        assert not hung, f"rank {hung} still ran after {limit} s"
        notes_of = [json.loads(note.read_text()) if note.exists() else {} for note in notes]
        return [Ended(codes[r][0], seconds=codes[r][1], **notes_of[r]) for r in range(world)]


def _kill(children: Sequence[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _work(action: Callable[[int], object], rank: int, note: Path) -> NoReturn:
    code = 1
    try:
        action(rank)
        code = 0
    except BaseException as error:
        code = error.exit_code if isinstance(error, PlaitError) else 1
        note.write_text(
            json.dumps({"error": f"{type(error).__name__}: {error}", "shown": getattr(error, "shown", False)})
        )
        if not isinstance(error, PlaitError):
            traceback.print_exc()
    finally:
        os._exit(code)
