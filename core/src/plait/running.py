"""A run from start to end, resumed, and read back."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait import composition, ending, progress, starting
from plait.devices import make_accelerator, seed_everything, seed_noise
from plait.directory import RunDirectory, default_path
from plait.errors import BadCheckpoint, BadInput, PlaitError, Refused, RunFailed
from plait.recipe import Recipe, assemble
from plait.scale.processes import here
from plait.scale.ranks import Alone, join

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from plait.data import Data
    from plait.evaluation import View
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
        return f"Run({self.directory.shown!r}, finished={self.finished})"


def run(
    recipe: Recipe | Path | str | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    go_on: bool | None = None,
    progress: Any = False,
    **changes: Any,
) -> Run:
    """Train, evaluate, export and report.

    Under a launcher (torchrun, ``accelerate launch``) every process calls this alike, and they make one run together.

    Args:
        recipe: a recipe, a TOML file, a nested mapping, or nothing.
        out: the run directory; default ``runs/<time>-<plugins>-s<seed>``. Several processes need it given.
        go_on: if ``out`` holds a run of this very recipe, go on with it; default: only when a launcher starts its
            processes again after one was lost.
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
    place = here()
    if out is None and not place.alone:
        raise BadInput(f"{place.world} processes make one run together: say where, with --out DIR (out=... in Python).")
    directory = RunDirectory.at(out if out is not None else default_path(plan.recipe))
    return _execute(plan, directory, progress, fresh=True, go_on=go_on)


def resume(path: Path | str, *, checkpoint: str | None = None, device: str | None = None, progress: Any = False) -> Run:
    """Go on with a run that was killed or interrupted; a finished one is only read back.

    Args:
        path: the run directory.
        checkpoint: a checkpoint's name; default the newest. Without any checkpoint the run starts over. Newer ones
            are set aside as ``superseded-...``.
        device: another device than the recipe's.
        progress: True for a progress bar on stderr.

    Raises:
        BadCheckpoint: the checkpoint is damaged, foreign, or of another model (an intact older one is named).
    """
    directory = RunDirectory.existing(path)
    if directory.result() is not None and checkpoint is None:
        return Run(directory)
    plan = composition.make_plan(assemble(directory.recipe(), device=device))
    plan.raise_if_refused()
    return _execute(plan, directory, progress, fresh=False, checkpoint=checkpoint)


def load_run(path: Path | str) -> Run:
    """Read a run directory back."""
    return Run(RunDirectory.existing(path))


# ---- inside ------------------------------------------------------------------------------------------------------
def _execute(
    plan: composition.Plan,
    directory: RunDirectory,
    bar: Any,
    *,
    fresh: bool,
    checkpoint: str | None = None,
    go_on: bool | None = None,
) -> Run:
    if fresh and go_on is None and not directory.launched_by(here()):
        directory.must_be_free()  # before anything slow
    accelerator = make_accelerator(plan.recipe, directory)
    ranks = join(accelerator, plan.recipe.distributed.timeout)
    shown = progress.make(bar if accelerator.is_main_process else False)
    try:
        ranks.compare(starting.started_with(plan) if ranks.world > 1 else {})
        mine = fresh and not directory.path.exists()
        start = ranks.decide("start", lambda: starting.begin(plan, directory, fresh, go_on))
        if not directory.shared and ranks.world > 1:
            if here().local == 0 and not accelerator.is_main_process and start != "fresh":
                directory.fetch()
            accelerator.wait_for_everyone()
        if start == "finished":
            return Run(directory)
        with directory.locked() if accelerator.is_main_process else contextlib.nullcontext():
            model = _record(plan, directory, accelerator, ranks, shown, start == "fresh", checkpoint, mine)
        ranks.decide("written", lambda: None)
    except PlaitError as error:
        ranks.tell(error)
        raise
    finally:
        ranks.leave()
    return Run(directory, model)


def _record(
    plan: composition.Plan,
    directory: RunDirectory,
    accelerator: Accelerator,
    ranks: Alone,
    shown: progress.Silent,
    fresh: bool,
    checkpoint: str | None,
    mine: bool,
) -> nn.Module:
    """Train, and write down how it went; rank 0 is the only one that writes."""
    from plait.recorder import Recorder

    main = accelerator.is_main_process
    recorder = Recorder(directory, shown, accelerator if main else None, writes=main)
    if fresh and main:
        starting.write_start(plan, directory, recorder, accelerator)
    failure: Exception | None = None
    try:
        model = _train(plan, recorder, accelerator, ranks, fresh, checkpoint)
    except Exception as error:
        shown.stop()
        ranks.tell(error)
        if mine and main and isinstance(error, (BadInput, Refused)) and not directory.saved_checkpoints():
            shutil.rmtree(directory.path)  # nothing was trained: leave nothing behind
            raise
        failure = ending.noted(recorder, error)
    finally:
        shown.stop()
        recorder.close()
    if main:
        ending.write_report(directory)
        with contextlib.suppress(RunFailed) if failure is not None else contextlib.nullcontext():
            directory.publish()
    if isinstance(failure, PlaitError):
        raise failure from None
    if failure is not None:
        raise failure
    return model


def _train(
    plan: composition.Plan,
    recorder: Recorder,
    accelerator: Accelerator,
    ranks: Alone,
    fresh: bool,
    checkpoint: str | None,
) -> nn.Module:
    from plait.trainer import Trainer

    trainer = Trainer(plan, accelerator, recorder)
    with ranks.alive(lambda: trainer.step):
        try:
            return _fitted(trainer, ranks, fresh, checkpoint)
        except Exception as error:
            reason = ranks.explain(error, trainer.step)
            if reason is error:
                raise
            raise reason from error


def _fitted(trainer: Trainer, ranks: Alone, fresh: bool, checkpoint: str | None) -> nn.Module:
    from plait import evaluation
    from plait.loading import build_model, load_data

    plan, recorder = trainer.plan, trainer.recorder
    recipe = plan.recipe
    seed_everything(recipe.seed)
    data = load_data(recipe.data, recipe.seed)
    for note in data.notes:
        recorder.note(note)
    model = build_model(recipe.model, data.info)
    check_needs(plan, data, model)
    trainer.build(data, model)
    views = evaluation.collect_views(trainer)  # a name given twice is refused now, not after the training
    seed_noise(recipe.seed, trainer.rank)
    if not fresh:
        _load_checkpoint(trainer, recorder, ranks, checkpoint)
    recorder.progress.start(trainer.total_steps, trainer.step, "+".join(recipe.plugins) or "plain")
    with recorder.signals():
        trainer.fit()
        if trainer.step or not recorder.directory.saved_checkpoints():
            recorder.checkpoint(trainer)
    return _finish(trainer, recorder, views)


def _finish(trainer: Trainer, recorder: Recorder, views: Mapping[str, View]) -> nn.Module:
    from plait import evaluation, exporting

    recorder.progress.say("evaluating ...")
    if trainer.recipe.train.select == "best" and trainer.best is not None:
        trainer.restore_model(trainer.best["model"])
        recorder.event("selected", step=trainer.best["step"], score=trainer.best["score"])
    trainer.masks.hold()
    results = evaluation.evaluate(trainer, trainer.model, views)
    validation = {name: asdict(metric) for name, metric in evaluation.evaluate_validation(trainer).items()}
    if trainer.sharded:
        from plait.scale import sharded

        assert trainer.plain is not None
        model = sharded.whole_model(trainer, trainer.plain).to(trainer.device).eval()
    else:
        model = copy.deepcopy(trainer.model).eval()
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


def check_needs(plan: composition.Plan, data: Data, model: nn.Module) -> None:
    """Check what could not be checked from declarations, once data and model are loaded.

    A model of the user's own that has ``channel_groups()`` provides ``model:channel-groups``; others words it may name
    in an attribute ``provides``.

    Raises:
        Refused: a needed field, task or model property is missing.
    """
    from plait.rules import Refusal

    provided = {f"field:{name}" for name in data.info.fields} | {f"task:{data.info.task}"}
    provided |= set().union(*(p.provides() for p in plan.plugins.values()))
    declared = composition.model_source(plan.recipe.model.name)
    provided |= set(declared.provides if declared else getattr(model, "provides", ()))
    provided |= {"model:channel-groups"} if callable(getattr(model, "channel_groups", None)) else set()
    needs = [(repr(name), word) for name, plugin in plan.plugins.items() for word in sorted(plugin.needs())]
    needs += [(f"model {plan.recipe.model.name}", word) for word in sorted(declared.needs if declared else ())]
    refusals = []
    for who, word in needs:
        kind = word.partition(":")[0]
        if kind in ("field", "task", "model") and word not in provided:
            what = f"model {plan.recipe.model.name}" if kind == "model" else f"data {plan.recipe.data.name}"
            message = f"{who} needs {word}; {what} provides none."
            refusals.append(Refusal("needs", (who.strip("'"),), message, f"Use another {what.split()[0]} that has it."))
    if refusals:
        raise Refused(refusals)


def _load_checkpoint(trainer: Trainer, recorder: Recorder, ranks: Alone, name: str | None) -> None:
    from plait import checkpoints

    directory = recorder.directory
    newest = ranks.decide("checkpoint", lambda: found.name if (found := directory.checkpoint(name)) else None)
    path = directory.checkpoints / newest if newest is not None else None
    if path is None:
        if recorder.writes:
            recorder.directory.tidy(None)
        recorder.rewind(0)
        recorder.event("plan", **trainer.plan.as_dict())
        return
    try:
        state = checkpoints.load(path)
    except BadCheckpoint as error:
        if not path.exists():
            raise BadCheckpoint(f"{error} Every machine of a run must see its directory.") from None
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
    if recorder.writes:
        recorder.directory.tidy(path)
    recorder.rewind(size)
    recorder.event("resumed", step=trainer.step, processes=trainer.world)


def _rebuild(directory: RunDirectory) -> nn.Module:
    from plait import checkpoints
    from plait.loading import build_model, load_data
    from plait.recorder import Recorder
    from plait.trainer import Trainer

    plan = composition.make_plan(assemble(directory.recipe(), device="cpu"))
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
