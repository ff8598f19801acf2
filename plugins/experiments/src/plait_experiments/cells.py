"""Cells: one recipe at one seed, as a job for a worker, with a key that says when an old result still answers it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

import plait
from plait.declare.options import load_object
from plait.declare.recipe import Recipe
from plait.errors import BadCheckpoint, BadInput, Interrupted, PlaitError
from plait.hooks import CONTRACT_VERSION
from plait.planning import discovery
from plait.planning.plan import make_plan
from plait.storage.environment import describe, sources_of
from plait.storage.files import write_text

KEY_LENGTH = 24
RESULT = "cell.json"


@dataclass(frozen=True)
class Job:
    """What a worker must do; plain values only, so that it travels to any process or machine.

    Attributes:
        key: hash of everything that can change the result.
        folder: where; an ordinary run directory, unless a function makes something else of it.
        arm, seed, point: what it is, for messages; the point is what was varied beside the seed.
        recipe: the resolved recipe.
        function, options: instead of a run.
        measure: after the run.
        versions: distributions that the key counts.
        sources: hash of the sources of editable installs, which have no version of their own.
        threads: of torch, instead of the worker's one; the key must tell such a job from the others.
    """

    key: str
    folder: str
    arm: str
    seed: int
    point: dict[str, Any]
    recipe: dict[str, Any]
    function: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    measure: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    threads: int | None = None

    @property
    def label(self) -> str:
        """``sam rho=0.05 seed 3``."""
        point = "".join(f" {key.rpartition('.')[2]}={value}" for key, value in self.point.items())
        return f"{self.arm}{point} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        key: the job's.
        status: ``done``, ``failed``, ``unavailable`` (its data is not here) or ``interrupted``.
        metrics: as in ``run.metrics``; None where undefined.
        seconds: wall-clock time of the (last part of the) work.
        error: why it is not done.
        environment: device, commit and versions.
        sources: of the job that made it.
    """

    key: str
    status: str
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


# ---- the cache ---------------------------------------------------------------------------------------------------
class Cache:
    """A folder of cells.

    Args:
        folder: default ``plait/verify`` in the user's cache folder (``~/.cache`` on Linux, or ``$XDG_CACHE_HOME``).
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else platformdirs.user_cache_path("plait", False) / "verify"
        self._sources: dict[str, str] = {}

    def job(
        self,
        recipe: Recipe,
        arm: str = "run",
        point: Mapping[str, Any] | None = None,
        *,
        function: str | None = None,
        options: Mapping[str, Any] | None = None,
        measure: str | None = None,
        plugin: str = "",
    ) -> Job:
        """The cell of a recipe.

        Args:
            recipe: what to run; the key counts it as planned.
            arm, point, function, options, measure: as in `Job`.
            plugin: whose version counts although the recipe may not use it.

        Raises:
            BadInput: a bad key or value, or something that is not installed.
            Refused: plugins that cannot work together.
        """
        plan = make_plan(recipe)
        plan.raise_if_refused()
        versions = _involved(plan.recipe, plugin)
        unknown = dict.fromkeys(versions.keys() - self._sources.keys(), "")
        self._sources |= unknown | sources_of(unknown)
        parts = {
            "recipe": plan.recipe.model_dump(mode="json", exclude={"distributed"}),  # a cell is one process
            "plugins": list(plan.recipe.plugins),  # their order counts, which a sorted dump would lose
            "versions": versions,
            "contract": CONTRACT_VERSION,
            "function": function,
            "options": dict(options or {}),
            "measure": measure,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]
        return Job(
            key,
            str(self.folder / key),
            arm,
            plan.recipe.seed,
            dict(point or {}),
            plan.recipe.model_dump(mode="json", exclude_none=True),
            function,
            dict(options or {}),
            measure,
            versions,
            {name: self._sources[name] for name in versions if self._sources[name]},
        )


def _involved(recipe: Recipe, plugin: str) -> dict[str, str]:
    """Distribution -> version of everything that takes part: the core, torch, plugins, data, model, and ``plugin``."""
    usable = discovery.active_registry()
    names = {discovery.BUILTIN, plugin, *recipe.plugins}
    for hook, component in (("data_sources", recipe.data.name), ("models", recipe.model.name)):
        entry = discovery.collect(hook)[0].get(component or "")
        if entry is not None:
            names.add(entry[0])
    versions = {usable[n].distribution: usable[n].version for n in names if n in usable}
    return dict(sorted({**versions, "torch": version("torch")}.items()))


def stored(job: Job) -> Outcome | None:
    """The finished result of a cell, or None."""
    try:
        values = json.loads((Path(job.folder) / RESULT).read_text(encoding="utf-8"))
        return Outcome(**values) if values["status"] == "done" and values["key"] == job.key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(job: Job, outcome: Outcome) -> None:
    """Keep a finished result.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    write_text(Path(job.folder) / RESULT, json.dumps(asdict(outcome), indent=1, allow_nan=False))


def discard(job: Job, keep_as: str = "") -> None:
    """Forget a cell; with ``keep_as`` its folder stays under that suffix, for looking into."""
    folder = Path(job.folder)
    if keep_as and folder.exists():
        kept = folder.with_name(f"{folder.name}.{keep_as}")
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(folder, kept)
    shutil.rmtree(folder, ignore_errors=True)


# ---- the work, in a worker ---------------------------------------------------------------------------------------
def execute(job: Job) -> Outcome:
    """Do a job, or go on with it where it stopped; never raises but for signals.

    Two verifications may share a cache: the second to reach a cell waits for the first and takes its result.
    """
    folder = Path(job.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (before := stored(job)) is not None:
            return before
        try:
            with _threads(job.threads):
                metrics, environment = _work(job, folder)
            seconds = round(time.monotonic() - start, 3)
            done = Outcome(job.key, "done", _plain(metrics), seconds, "", environment, job.sources)
            store(job, done)
            return done
        except Interrupted:
            return Outcome(job.key, "interrupted")
        except Exception as error:
            return _failed(job, error, time.monotonic() - start)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(job: Job, folder: Path) -> tuple[Mapping[str, float], dict[str, Any]]:
    recipe = Recipe.parse(job.recipe, job.label)
    if job.function is not None:
        folder.mkdir(parents=True, exist_ok=True)
        measured = load_object(job.function, "function")(recipe, folder, **job.options)
        return measured, describe("cpu" if recipe.device == "auto" else recipe.device, [])
    try:
        run = plait.run(recipe, out=folder, go_on=True)
    except BadCheckpoint:  # what a crash of the machine may leave; nobody but this cell needs it
        shutil.rmtree(folder)
        run = plait.run(recipe, out=folder)
    metrics = dict(run.metrics)
    if job.measure is not None:
        metrics |= load_object(job.measure, "measure")(run)
    return metrics, run.directory.environment()


def _failed(job: Job, error: Exception, seconds: float) -> Outcome:
    if isinstance(error, BadInput) and (reason := _without_data(job)):
        discard(job)
        return Outcome(job.key, "unavailable", error=reason)
    text = str(error) if isinstance(error, PlaitError) else f"{type(error).__name__}: {error}{_place(error)}"
    try:
        (Path(job.folder) / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        discard(job, keep_as="failed")
    except OSError:
        pass  # the error itself is what counts
    return Outcome(job.key, "failed", seconds=round(seconds, 3), error=text)


def _without_data(job: Job) -> str:
    """Why the data of a recipe cannot be loaded here; empty when it can, and something else is wrong."""
    from plait.loading import load_data  # imports torch

    recipe = Recipe.parse(job.recipe, job.label)
    try:
        load_data(recipe.data, recipe.seed)
    except BadInput as error:
        return str(error)
    except Exception:
        return ""
    return ""


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics that JSON can hold: what is undefined is None."""
    values = {str(name): None if value is None else float(value) for name, value in metrics.items()}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
