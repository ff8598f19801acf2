"""What the processes of one run tell each other beside tensors, so that they agree and fail together.

They write short texts into the key-value store with which torch.distributed has brought them together. No tensor is
moved and nothing is unpickled. A process that fails says why; the others, whose next exchange of tensors breaks, read
it and end with the same words. Every wait has an end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from plait import errors
from plait.errors import BadInput, PlaitError, RunFailed, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

BEAT = 1.0
"""Seconds between two signs of life."""
PATIENCE = 2.5
"""Seconds to look for the reason after an exchange of tensors broke."""

_counter = itertools.count()


class Ranks:
    """The processes of a run, or the one that makes it alone; each waits for the others ``timeout`` seconds at most."""

    def __init__(self, rank: int, world: int, store: Any, timeout: float) -> None:
        self.rank, self.world, self.timeout = rank, world, timeout
        self.store = store
        self._told = False
        self._lost: set[int] = set()

    def decide(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives on rank 0 (JSON values), the same on every rank; its error is everybody's.

        Raises:
            PlaitError: the one that ``make`` raised on rank 0.
            RunFailed: rank 0 did not answer in time.
        """
        if self.rank:
            answer = json.loads(self._wait_for(name, 0))
            if "error" in answer:
                raise _rebuilt(answer["error"], shown=True)
            return answer["value"]
        try:
            value = make()
        except PlaitError as error:
            self._told = True
            self.store.set(name, json.dumps({"error": _described(error)}))
            raise
        self.store.set(name, json.dumps({"value": value}))
        return value

    def compare(self, mine: Mapping[str, Any]) -> None:
        """Refuse to train when the processes were not started alike, by ``{"recipe": ..., ...}`` of JSON values.

        Raises:
            BadInput: naming the first rank that differs, and in what.
        """
        self.store.set(f"mine/{self.rank}", json.dumps(mine))

        def judge() -> None:
            for rank in range(1, self.world):
                other = json.loads(self._wait_for(f"mine/{rank}", rank))
                if different := list(differences(mine, other)):
                    raise BadInput(
                        f"the processes of this run were not started alike. {_difference(different, rank)} "
                        "Start every process with the same recipe and options, in the same environment."
                    )

        self.decide("alike", judge)

    def _wait_for(self, key: str, rank: int) -> str:
        try:
            self.store.wait([key], timedelta(seconds=self.timeout))
            return str(self.store.get(key).decode())
        except RuntimeError as error:
            raise RunFailed(
                f"rank {self.rank} waited {self.timeout:g} s for rank {rank}, which did not answer "
                f"({first_line(error)}). Look at that process; distributed.timeout says how long to wait."
            ) from error

    def tell(self, error: BaseException) -> None:
        """Say why this process fails, for the others; marks the error when another process has said it already."""
        if self._told:
            return
        self._told = True
        if self.rank and isinstance(error, errors.Interrupted):  # all stop at one step; rank 0 says so
            error.shown = True
            return
        described = _described(error)
        try:
            first = self.store.compare_set("failure", "", json.dumps({**described, "rank": self.rank})).decode()
        except RuntimeError:  # the store went with the process that held it
            return
        known = json.loads(first)
        if not isinstance(error, PlaitError):  # a stranger's, which every rank has met alike
            if known["rank"] != self.rank and known["message"] == described["message"]:
                error.shown = True  # type: ignore[attr-defined]
            return
        if known["rank"] != self.rank:
            error.shown = known["message"] == described["message"] or error.echo
        if self.rank and not error.shown and error.args:
            error.args = (f"rank {self.rank}: {error.args[0]}", *error.args[1:])

    def _explained(self, error: Exception, step: int) -> PlaitError:
        """The reason behind a broken exchange of tensors."""
        before, others = self._beats(), [rank for rank in range(self.world) if rank != self.rank]
        with contextlib.suppress(RuntimeError):
            self.store.set(f"waited/{self.rank}", "")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if (failure := self._failure()) is not None:
                return _rebuilt(failure, echo=True)
            time.sleep(0.1)
        after = self._beats()
        self._lost = {rank for rank in others if before and after.get(rank) == before.get(rank)}
        slow = [rank for rank in others if rank in after and not self.store.check([f"waited/{rank}"])]
        if self._lost:
            named = ", ".join(map(str, sorted(self._lost)))
            what = f"rank {named} of {self.world} was lost (killed, out of memory, or its machine is gone)"
        elif slow:
            named = ", ".join(f"{rank} (at step {after[rank][1]})" for rank in slow)
            what = f"rank {named} did not keep up: distributed.timeout = {self.timeout:g} s ran out"
        elif not before:
            what = f"rank 0 of {self.world} was lost: what it holds for the others does not answer any more"
        else:
            what = f"the exchange with the other of the {self.world} processes broke"
        said = f"torch.distributed said: {first_line(error)}"
        reason = RunFailed(f"step {step}: {what}. The last checkpoint is kept. {said}")
        reason.echo = True  # the first of several survivors tells
        return reason

    def leave(self) -> None:
        """End together: rank 0, which may hold the store, stays until the others have read what they must."""
        try:
            self.store.set(f"left/{self.rank}", "")
            if self.rank == 0:
                others = [f"left/{rank}" for rank in range(1, self.world) if rank not in self._lost]
                self.store.wait(others, timedelta(seconds=2 * PATIENCE))
        except RuntimeError:  # one that was lost, or the store itself
            return

    def _failure(self) -> dict[str, Any] | None:
        """What another process has told of its failure."""
        try:
            told = json.loads(self.store.get("failure").decode()) if self.store.check(["failure"]) else None
        except (RuntimeError, ValueError):
            return None
        return None if told is None or told["rank"] == self.rank else told

    @contextlib.contextmanager
    def alive(self, step: Callable[[], int]) -> Iterator[None]:
        """While inside, say every second that this process lives, and at which step; explain a broken exchange.

        When another process has failed and this one still waits for it (an exchange of tensors cannot be broken off),
        the process ends.
        """
        if self.world == 1:
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            patience = PATIENCE * (1 if self.rank else 4)  # rank 0 has to write down what happened
            since: float | None = None
            for count in itertools.count():
                try:
                    self.store.set(f"alive/{self.rank}", f"{count} {step()}")
                except RuntimeError:
                    return
                if (failure := self._failure()) is not None:
                    since = since if since is not None else time.monotonic()
                    if time.monotonic() - since > patience:
                        if self.rank == 0:
                            print(f"error: {_rebuilt(failure)}", file=sys.stderr, flush=True)
                        with contextlib.suppress(RuntimeError):
                            self.store.set(f"left/{self.rank}", "")
                        os._exit(int(failure["code"]))
                if ended.wait(BEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            if not broken_exchange(error):
                raise
            raise self._explained(error, step()) from error
        finally:
            ended.set()
            thread.join(timeout=5)

    def _beats(self) -> dict[int, tuple[int, int]]:
        """rank -> (how often it has shown a sign of life, its step); empty when the store is gone."""
        beats = {}
        with contextlib.suppress(RuntimeError):
            for rank in range(self.world):
                if self.store.check([f"alive/{rank}"]):
                    count, step = self.store.get(f"alive/{rank}").decode().split()
                    beats[rank] = (int(count), int(step))
            return beats
        return {}


@contextlib.contextmanager
def together(accelerator: Accelerator, timeout: float) -> Iterator[Ranks]:
    """The conversation of the processes that Accelerate has brought together; they fail and end together."""
    # every run of a process has keys of its own
    shared = HashStore() if accelerator.num_processes == 1 else _get_default_store()
    store = PrefixStore(f"plait/{next(_counter)}", shared)
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, store, timeout)
    try:
        yield ranks
    except PlaitError as error:
        ranks.tell(error)
        raise
    finally:
        ranks.leave()


def broken_exchange(error: BaseException) -> bool:
    """Whether an error is torch.distributed's way to say that other processes did not answer."""
    if isinstance(error, torch.distributed.DistError):
        return True
    lost = ("Connection closed by peer", "Connection reset", "Broken pipe", "remote worker", "pair closure")
    words = ("gloo", "nccl", "NCCL", "Timed out waiting", *lost)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def differences(mine: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted place, value, other value) wherever two trees of JSON values differ."""
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        for key in sorted({*mine, *other}):
            inner = f"{place}.{key}" if place else str(key)
            yield from differences(mine.get(key), other.get(key), inner)
    elif mine != other:
        yield place, mine, other


def _difference(different: list[tuple[str, Any, Any]], rank: int) -> str:
    place, mine, other = min(different, key=lambda item: not item[0].startswith("versions"))
    kind, _, name = place.partition(".")
    if kind == "versions":
        return f"{name} is {mine or 'not installed'} on rank 0 and {other or 'not installed'} on rank {rank}."
    if kind == "sources":
        return f"the source files of {name} differ between rank 0 and rank {rank}."
    return f"{name or kind} is {mine!r} on rank 0 and {other!r} on rank {rank}."


def _described(error: BaseException) -> dict[str, Any]:
    message = str(error) if isinstance(error, PlaitError) else f"{type(error).__name__}: {first_line(error)}"
    return {"kind": type(error).__name__, "message": message, "code": getattr(error, "exit_code", 1)}


def _rebuilt(described: Mapping[str, Any], *, shown: bool = False, echo: bool = False) -> PlaitError:
    """The error of another process, as an error of this one."""
    rank = described.get("rank", 0)
    kind = getattr(errors, str(described["kind"]), RunFailed)
    plain = isinstance(kind, type) and issubclass(kind, PlaitError) and kind is not errors.Refused
    rebuilt = (kind if plain else RunFailed)(f"rank {rank}: {described['message']}" if rank else described["message"])
    rebuilt.exit_code, rebuilt.shown, rebuilt.echo = int(described["code"]), shown, echo
    return rebuilt
