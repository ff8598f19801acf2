"""Tiny runs, with which the conformance kit and the matrix try plugins: one recipe, run here or in a forked process."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait.declare.recipe import Recipe, assemble
from plait.declare.rules import Implementation
from plait.errors import PlaitError, first_line
from plait.planning import discovery
from plait.planning.plan import Plan, make_plan
from plait.run import execute
from plait.storage import places
from plait_authoring.kill import forked

STEPS = 12
SETTINGS: Mapping[str, Any] = {
    "device": "cpu",
    "train.batch_size": 32,
    "train.log_every": 1,
    "checkpoint.keep": 1000,
}
WHOLE = 100_000
"""A suggested batch of so many rows means all of them, and is left: in small batches its epochs would be long."""
DATA: Mapping[str, Any] = {"data.train": 128}
"""Options of the generated data: four batches an epoch."""


def interval(steps: int) -> int:
    """Steps between checkpoints: two on the way, and of a dozen steps none falls on an epoch's end."""
    return max(1, 5 * steps // STEPS)


def tiny_recipe(
    plugins: Mapping[str, Mapping[str, Any]],
    *,
    data: str | None,
    model: str | None,
    steps: int = STEPS,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a tiny run.

    Args:
        plugins: name -> options, in the order of the recipe.
        data, model: a registered name, an import path, or None for what the plugins suggest.
        steps: the budget.
        settings: dotted keys that differ.

    Raises:
        BadInput: unknown names, or options that cannot be used.
    """
    chosen = {**SETTINGS, "checkpoint.every_steps": interval(steps), "train.steps": steps}
    for name in plugins:
        suggested = getattr(discovery.find_plugin(name).plugin, "suggests", None)
        size = suggested.get("train.batch_size") if isinstance(suggested, Mapping) else None
        if isinstance(size, int) and size >= WHOLE:
            chosen["train.batch_size"] = size
    chosen |= {**(DATA if data == discovery.FALLBACK["data_sources"] else {}), **(settings or {})}
    return assemble(plugins=plugins, data=data, model=model, settings=chosen)


def around(plan: Plan, watched: Callable[[Implementation], Implementation]) -> None:
    """Put something around every implementation of a plan."""
    for composed in plan.composed.values():
        composed.implementations = [watched(implementation) for implementation in composed.implementations]


@contextmanager
def steady() -> Iterator[None]:
    """One thread, and the global generators as they were afterwards."""
    import torch

    from plait.training.random_state import global_random_state, set_global_random_state

    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    before = global_random_state(cpu)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_global_random_state(before, cpu)


def described(error: BaseException) -> str:
    """An error for people: plait's own by message, others with their type and the last line of the plugin's code."""
    if isinstance(error, (PlaitError, AssertionError)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


# ---- in a process of its own -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TinyRun:
    """A run in a process of its own, and how it ended.

    Attributes:
        path: its directory.
        code: exit code, negative for the signal that ended it.
        error: why it stopped, in words.
        trained: whether a step began, or its rehearsal before the training.
    """

    path: Path
    code: int
    error: str
    trained: bool


def apart(
    recipe: Recipe, path: Path, *, fresh: bool = True, checkpoint: str | None = None, kill_after: int | None = None
) -> TinyRun:
    """Run in a forked process; where forking is not safe, in this one, with the kill as an exception.

    Args:
        recipe: what to run.
        path: the run directory.
        fresh, checkpoint: as of `plait.run.execute`.
        kill_after: kill the process (SIGKILL) when this step has changed the weights.
    """
    note, began = path.with_name(f"{path.name}.error"), path.with_name(f"{path.name}.began")
    note.unlink(missing_ok=True)
    began.unlink(missing_ok=True)

    def inside() -> None:
        try:
            with steady():
                plan = make_plan(recipe)
                _mark_steps(plan, began, kill_after)
                execute(plan, places.at(path), fresh=fresh, checkpoint=checkpoint, artifacts=False)
        except Exception as error:
            note.write_text(described(error), encoding="utf-8")
            raise

    if can_fork():
        code = forked(inside)
    else:
        try:
            inside()
            code = 0
        except Killed:
            code = -signal.SIGKILL
        except PlaitError as error:
            code = error.exit_code
        except Exception:
            code = 1
    return TinyRun(path, code, note.read_text(encoding="utf-8") if note.exists() else "", began.exists())


class Killed(BaseException):
    """In the place of SIGKILL where a process cannot be forked."""


def can_fork() -> bool:
    """Forking after threads of a GPU or of macOS' own libraries were started is not safe."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def _mark_steps(plan: Plan, began: Path, kill_after: int | None) -> None:
    """As the outermost wrapper of every step: leave a mark when the first one begins, and kill the process in one.

    The loss is computed once before, in the run's rehearsal: what fails there fails in a step.
    """

    def marking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began.touch()
            return function(*arguments)

        return call

    for hook in ("objective", "example_weights", "loss_terms"):
        composed = plan.composed[hook]
        composed.implementations = [replace(i, function=marking(i.function)) for i in composed.implementations]

    def step(trainer: Any, proceed: Callable[[], Any]) -> Any:
        began.touch()
        report = proceed()
        if trainer.step == kill_after:
            if can_fork():
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed
        return report

    last = list(plan.plugins)[-1]  # errors of a step name the plugins that act in it: name no other
    wrapper = Implementation(last, "optimizer_step", step, ("trainer", "proceed"))
    plan.composed["optimizer_step"].implementations.insert(0, wrapper)
