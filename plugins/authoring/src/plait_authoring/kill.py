"""Kill a run for real, resume it, and compare bits.

Runs are forked from the testing process, so a kill costs no import of torch. A kill comes either after some seconds or
at an exact call of a system function (``os.fsync``, ``os.replace``, ...), which is how the inside of a checkpoint write
is hit for certain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plait
from plait.declare.options import load_object
from plait.errors import BadInput, PlaitError
from plait.planning import discovery
from plait.storage.directory import RunDirectory


def preload() -> None:
    """Import what every run imports, once in the parent, so that forks start at once."""
    import accelerate  # noqa: F401
    import torch

    import plait.exporting
    import plait.loading
    import plait.training.trainer  # noqa: F401

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # the first optimizer imports two seconds of torch
    for _, path in discovery.collect("artifacts")[0].values():
        with contextlib.suppress(BadInput):  # the run says so
            load_object(path, "artifact")


def forked(
    action: Callable[[], object],
    *,
    kill_after: float | None = None,
    kill_at: tuple[str, int] | None = None,
    number: int = signal.SIGKILL,
) -> int:
    """Run ``action`` in a forked process and return its exit code, negative for the signal that ended it.

    Args:
        action: what to run; an exception gives exit code 1 and its traceback on stderr.
        kill_after: send ``number`` after so many seconds.
        kill_at: ``("os.replace", 3)``: the process kills itself in the place of the third call.
        number: the signal.
    """
    preload()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill_at is not None:
                _arm(*kill_at)
            action()
            code = 0
        except PlaitError as error:
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _arm(function: str, call: int) -> None:
    """In the child, which ends with it: an audit hook would not do, as ``os.fsync`` raises no audit event."""
    name = function.removeprefix("os.")
    original, calls = getattr(os, name), 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, name, counting)


def final_state(path: Path, *, generators: bool = True) -> dict[str, Any]:
    """Everything in the last checkpoint that must not depend on kills.

    Args:
        path: the run directory.
        generators: also the state of the global generators, from which an import may draw in the process that makes it
            first.
    """
    from plait.storage import checkpoints

    newest = RunDirectory(path).checkpoint()
    assert newest is not None, f"{path} has no checkpoint"
    state = checkpoints.load(newest)
    without = {"events_bytes"} if generators else {"events_bytes", "random"}
    return {name: value for name, value in state.items() if name not in without}


def first_difference(left: Any, right: Any, place: str = "") -> str | None:
    """Where two trees of tensors and values differ in any bit, or None."""
    import torch

    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        same = isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and left.dtype == right.dtype
        return None if same and torch.equal(left, right) else place
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if left.keys() != right.keys():
            return f"{place}: keys {sorted(left.keys() ^ right.keys())}"
        pairs = [(left[key], right[key], f"{place}/{key}") for key in left]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(a, b, f"{place}/{i}") for i, (a, b) in enumerate(zip(left, right, strict=True))]
    else:
        return None if left == right or (left != left and right != right) else place
    inside = (first_difference(a, b, below) for a, b, below in pairs)
    return next((difference for difference in inside if difference is not None), None)


def resume_until_done(path: Path, recipe: Mapping[str, Any]) -> None:
    """Resume a killed run in a fork; a run killed before it wrote its recipe is started anew.

    Raises:
        AssertionError: it did not come to its end.
    """
    begun = RunDirectory(path).recipe_file.exists()
    code = forked(lambda: plait.resume(path) if begun else plait.run(recipe, out=path))
    if code != 0:
        raise AssertionError(f"resuming {path} ended with exit code {code}")
