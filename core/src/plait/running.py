"""A run from start to end, resumed, and read back."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait import composition, progress, registry
from plait.directory import RunDirectory, default_path
from plait.errors import BadCheckpoint, BadInput, Interrupted, PlaitError, Refused, RunFailed
from plait.recipe import Recipe, assemble

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from plait.recorder import Recorder
    from plait.trainer import Trainer


class Run:
    """A finished (or interrupted) run.

    Attributes:
        path: its directory.
        recipe: the resolved recipe.
        metrics: ``<plugin>/<metric>`` -> value; ``...@export`` for the exported model, ``...@validation`` for the
            trained one on the validation split; NaN where undefined.
        details: ``<plugin>/<metric>`` -> {value, unit, better, note}.
        finished: whether it reached its end.
    """

    def __init__(self, directory: RunDirectory, model: nn.Module | None = None) -> None:
        self.directory, self.path = directory, directory.path
        self.recipe = directory.recipe()
        result = directory.result()
        self.finished = result is not None
        self.details: dict[str, dict[str, Any]] = dict(result["details"]) if result else {}
        for name, detail in (result or {}).get("validation", {}).items():
            self.details[f"{name}@validation"] = detail
        self.metrics = {k: float("nan") if d["value"] is None else d["value"] for k, d in self.details.items()}
        self._model = model

    @property
    def export(self) -> Path:
        """The folder of the exported model."""
        return self.directory.export

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory.report

    @property
    def model(self) -> nn.Module:
        """The exported model in eval mode, rebuilt from the run directory when this process did not train it.

        Raises:
            BadCheckpoint: the run has no checkpoint yet.
        """
        if self._model is None:
            self._model = _rebuild(self.directory)
        return self._model

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, finished={self.finished})"


def run(
    recipe: Recipe | Path | str | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    progress: Any = False,
    **changes: Any,
) -> Run:
    """Train, evaluate, export and report.

    Args:
        recipe: a recipe, a TOML file, a nested mapping, or nothing.
        out: the run directory; default ``runs/<time>-<plugins>-s<seed>``.
        progress: True for a progress bar on stderr.
        changes: as in `plait.recipe.assemble`: plugins, data, model, settings, epochs, steps, seed, device.

    Raises:
        BadInput: a bad name, option or file.
        Refused: the plugins cannot work together.
        RunFailed: something went wrong while running; the last checkpoint is kept.
        Interrupted: stopped by a signal, after writing a checkpoint.
    """
    plan = composition.make_plan(assemble(recipe, **changes))
    plan.raise_if_refused()
    directory = RunDirectory(out if out is not None else default_path(plan.recipe))
    return _execute(plan, directory, progress, fresh=True)


def resume(path: Path | str, *, checkpoint: str | None = None, progress: Any = False) -> Run:
    """Go on with a run that was killed or interrupted; a finished one is only read back.

    Args:
        path: the run directory.
        checkpoint: a checkpoint's name; default the newest. Without any checkpoint the run starts over.
        progress: True for a progress bar on stderr.

    Raises:
        BadCheckpoint: the checkpoint is damaged, foreign, or of another model (an intact older one is named).
    """
    directory = RunDirectory.existing(path)
    if directory.result() is not None and checkpoint is None:
        return Run(directory)
    plan = composition.make_plan(directory.recipe())
    plan.raise_if_refused()
    return _execute(plan, directory, progress, fresh=False, checkpoint=checkpoint)


def load_run(path: Path | str) -> Run:
    """Read a run directory back."""
    return Run(RunDirectory.existing(path))


# ---- inside ------------------------------------------------------------------------------------------------------
def _execute(
    plan: composition.Plan, directory: RunDirectory, bar: Any, *, fresh: bool, checkpoint: str | None = None
) -> Run:
    from plait.recorder import Recorder

    if fresh and directory.recipe_file.exists():
        directory.create()  # refuses, before anything slow
    accelerator = make_accelerator(plan.recipe, directory)
    main = accelerator.is_main_process
    mine = fresh and main and not directory.path.exists()
    if fresh and main:
        directory.create()
    shown = progress.make(bar if main else False)
    if not main:
        model = _train(plan, Recorder(directory, shown, None, writes=False), accelerator, fresh, checkpoint)
        accelerator.wait_for_everyone()
        return Run(directory, model)
    with directory.locked():
        recorder = Recorder(directory, shown, accelerator)
        if fresh:
            _write_start(plan, directory, recorder, accelerator)
        try:
            model = _train(plan, recorder, accelerator, fresh, checkpoint)
        except PlaitError as error:
            shown.stop()
            if mine and isinstance(error, (BadInput, Refused)) and not directory.saved_checkpoints():
                shutil.rmtree(directory.path)  # nothing was trained: leave nothing behind
                raise
            if isinstance(error, Interrupted):
                recorder.event("interrupted", step=_last_step(directory))
                error = Interrupted(f"{error} Go on with: plait resume {directory.path}")
            else:
                _try_event(recorder, error)
            _write_report(directory)
            raise error from None
        except Exception as error:
            _try_event(recorder, error)
            raise
        finally:
            shown.stop()
            recorder.close()
        _write_report(directory)
    accelerator.wait_for_everyone()
    return Run(directory, model)


def _train(
    plan: composition.Plan, recorder: Recorder, accelerator: Accelerator, fresh: bool, checkpoint: str | None
) -> nn.Module:
    from plait.loading import build_model, load_data
    from plait.trainer import Trainer

    recipe = plan.recipe
    seed_everything(recipe.seed)
    data = load_data(recipe.data, recipe.seed)
    for note in data.notes:
        recorder.note(note)
    check_needs(plan, data)
    trainer = Trainer(plan, accelerator, recorder)
    trainer.build(data, build_model(recipe.model, data.info))
    seed_noise(recipe.seed, trainer.rank)
    if not fresh:
        _load_checkpoint(trainer, recorder, checkpoint)
    recorder.progress.start(trainer.total_steps, trainer.step, "+".join(recipe.plugins) or "plain")
    with recorder.signals():
        trainer.fit()
        if trainer.step or not recorder.directory.saved_checkpoints():
            recorder.checkpoint(trainer)
    return _finish(trainer, recorder)


def _finish(trainer: Trainer, recorder: Recorder) -> nn.Module:
    from plait import evaluation, exporting

    recorder.progress.say("evaluating ...")
    if trainer.recipe.train.select == "best" and trainer.best is not None:
        trainer.restore_model(trainer.best["model"])
        recorder.event("selected", step=trainer.best["step"], score=trainer.best["score"])
    trainer.masks.hold()
    views = evaluation.collect_views(trainer)
    results = evaluation.evaluate(trainer, trainer.model, views)
    validation = {name: asdict(metric) for name, metric in evaluation.evaluate_validation(trainer).items()}
    model: nn.Module = copy.deepcopy(trainer.model).eval()
    if trainer.composed["export"]:
        model = trainer.composed["export"].chain("model", trainer=trainer, model=model).eval()
        after = evaluation.evaluate(trainer, model, views)
        results |= {f"{name}@export": value for name, value in after.items()}
    if recorder.writes:
        exporting.write(trainer, model.cpu(), recorder.directory.export)
    recorder.event("result", step=trainer.step, **_result(results), validation=validation)
    return model


def _result(results: Mapping[str, Any]) -> dict[str, Any]:
    from plait.evaluation import Metric, Plot, Table

    return {
        "details": {n: asdict(v) for n, v in results.items() if isinstance(v, Metric)},
        "tables": {n: asdict(v) for n, v in results.items() if isinstance(v, Table)},
        "plots": {n: asdict(v) for n, v in results.items() if isinstance(v, Plot)},
    }


def check_needs(plan: composition.Plan, data: Any) -> None:
    """Check what could not be checked from declarations, once the data is loaded.

    Raises:
        Refused: a needed field or task is missing.
    """
    from plait.rules import Refusal

    provided = {f"field:{name}" for name in data.info.fields} | {f"task:{data.info.task}"}
    refusals = []
    for name, plugin in plan.plugins.items():
        for word in sorted(plugin.needs()):
            others = set().union(*(p.provides() for p in plan.plugins.values()))
            if word.startswith(("field:", "task:")) and word not in provided | others:
                message = f"{name!r} needs {word}; data {plan.recipe.data.name} provides none."
                refusals.append(Refusal("needs", (name,), message, "Use data that has it (`plait plugins`)."))
    if refusals:
        raise Refused(refusals)


def make_accelerator(recipe: Recipe, directory: RunDirectory) -> Accelerator:
    """Accelerate's view of device, precision and ranks.

    Raises:
        BadInput: a device that is not here, or a logger that is not installed.
    """
    import torch
    from accelerate import Accelerator

    device = recipe.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device here; use --device cpu.")
    if device.startswith("cuda:"):
        if int(device[5:]) >= torch.cuda.device_count():
            raise BadInput(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices.")
        torch.cuda.set_device(device)
    if device == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--device mps: torch sees no MPS device here; use --device cpu.")
    torch.backends.cudnn.deterministic = True
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        made = Accelerator(
            cpu=device == "cpu",
            mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision],
            log_with=list(recipe.loggers) or None,
            project_dir=str(directory.path),
        )
    except (ValueError, ImportError) as error:
        raise BadInput(f"device {device}, precision {recipe.precision}: {error}") from error
    if recipe.loggers:
        if not made.trackers and set(map(str, made.log_with)) < set(recipe.loggers):
            raise BadInput(f"loggers {list(recipe.loggers)}: not installed; pip install {' '.join(recipe.loggers)}.")
        made.init_trackers("plait", config={"seed": recipe.seed, "plugins": " ".join(recipe.plugins)})
    return made


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python for building data and model."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_noise(seed: int, rank: int) -> None:
    """Seed what is drawn during training (dropout), differently on every rank."""
    import torch

    from plait.data import seed_of

    torch.manual_seed(seed_of(seed, "noise", rank))


def _load_checkpoint(trainer: Trainer, recorder: Recorder, name: str | None) -> None:
    from plait import checkpoints

    path = recorder.directory.checkpoint(name)
    if path is None:
        recorder.rewind(0)
        recorder.event("plan", **trainer.plan.as_dict())
        return
    try:
        state = checkpoints.load(path)
    except BadCheckpoint as error:
        older = [p.stem for p in recorder.directory.saved_checkpoints() if p != path]
        hint = f" Intact older ones may be: {', '.join(older)} (--checkpoint {older[-1]})." if older else ""
        raise BadCheckpoint(f"{error}{hint}") from None
    try:
        trainer.load_state_dict(state)
        size = int(state["events_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, PlaitError):
            raise
        raise BadCheckpoint(f"{path} does not fit this run: {type(error).__name__}: {error}.") from error
    recorder.rewind(size)
    recorder.event("resumed", step=trainer.step)


def _write_start(plan: composition.Plan, directory: RunDirectory, recorder: Recorder, accelerator: Accelerator) -> None:
    from plait import environment, files

    distributions = ["plait-core", *(i.distribution for i in registry.installed() if i.name in plan.plugins)]
    described = environment.describe(str(accelerator.device), distributions, accelerator.num_processes)
    files.write_text(directory.environment_file, json.dumps(described, indent=2))
    files.write_text(directory.recipe_file, plan.recipe.to_toml())
    recorder.event("plan", **plan.as_dict())


def _write_report(directory: RunDirectory) -> None:
    from plait.report import write_report

    try:
        write_report(directory)
    except (OSError, RunFailed) as error:  # the run itself is complete; `plait report RUN` can repeat this
        print(f"the report could not be written: {error}", file=sys.stderr)


def _last_step(directory: RunDirectory) -> int:
    newest = directory.checkpoint()
    return int(newest.stem.removeprefix("step-")) if newest else 0


def _try_event(recorder: Recorder, error: Exception) -> None:
    try:
        recorder.event("failed", error=str(error) or type(error).__name__)
    except RunFailed:
        return


def _rebuild(directory: RunDirectory) -> nn.Module:
    from plait import checkpoints
    from plait.loading import build_model, load_data
    from plait.recorder import Recorder
    from plait.trainer import Trainer

    plan = composition.make_plan(directory.recipe())
    path = directory.checkpoint()
    if path is None:
        raise BadCheckpoint(f"{directory.path} has no checkpoint to load a model from.")
    recorder = Recorder(directory, progress.Silent(), None, writes=False)
    seed_everything(plan.recipe.seed)
    data = load_data(plan.recipe.data, plan.recipe.seed)
    trainer = Trainer(plan, make_accelerator(plan.recipe.model_copy(update={"loggers": ()}), directory), recorder)
    trainer.build(data, build_model(plan.recipe.model, data.info))
    trainer.load_state_dict(checkpoints.load(path))
    if plan.recipe.train.select == "best" and trainer.best is not None:
        trainer.restore_model(trainer.best["model"])
    model: nn.Module = copy.deepcopy(trainer.model).eval()
    model = trainer.composed["export"].chain("model", trainer=trainer, model=model)
    return model.eval().cpu()
