"""A run from start to end, resumed, and read back. Importing this imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.declare.options import load_object
from plait.declare.recipe import Recipe, assemble
from plait.declare.results import Metric, Plot, Table
from plait.distributed.processes import current
from plait.errors import BadCheckpoint, BadInput, Interrupted, PlaitError, Refused, RunFailed
from plait.planning import discovery
from plait.planning.plan import Plan, make_plan
from plait.storage import environment, files, places
from plait.storage import progress as bars
from plait.storage.directory import RunDirectory, default_path

if TYPE_CHECKING:
    from torch import nn

    from plait.distributed.ranks import Ranks
    from plait.storage.recorder import Recorder
    from plait.training.trainer import Trainer


class Run:
    """A finished (or interrupted) run.

    Attributes:
        path, export: its directory, and the folder of the exported model.
        recipe: the resolved recipe.
        metrics: ``<plugin>/<metric>`` -> value; ``...@export`` for the exported model, ``...@validation`` for the
            trained one on the validation split; NaN where undefined.
        details: ``<plugin>/<metric>`` -> {value, unit, better, note}.
        artifacts: what installed plugins made of it: name -> file (``report``: the page of plait-report).
        finished: whether it reached its end.
    """

    def __init__(self, directory: RunDirectory, model: nn.Module | None = None) -> None:
        self.directory, self.path, self.export = directory, directory.path, directory.export
        self.recipe = directory.recipe()
        self.artifacts = directory.artifacts()
        result = directory.result() or {}
        self.finished = bool(result)
        self.details: dict[str, dict[str, Any]] = dict(result.get("details", {}))
        self.details |= {f"{name}@validation": d for name, d in result.get("validation", {}).items()}
        self.metrics = {k: float("nan") if d["value"] is None else d["value"] for k, d in self.details.items()}
        self._model = model

    @property
    def model(self) -> nn.Module:
        """The exported model in eval mode, rebuilt from the run directory when this process did not train it.

        Raises:
            BadCheckpoint: the run has no checkpoint yet.
        """
        if self._model is None:
            self._model = _rebuilt(self.directory)
        return self._model

    def __repr__(self) -> str:
        return f"Run({self.directory.shown!r}, finished={self.finished})"


def run(
    recipe: Plan | Recipe | Path | str | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    go_on: bool | None = None,
    progress: Any = False,
    **changes: Any,
) -> Run:
    """Train, evaluate, export and report.

    Under a launcher (torchrun, ``accelerate launch``) every process calls this alike, and they make one run together.

    Args:
        recipe: a plan (then without ``changes``), a recipe, a TOML file, a nested mapping, or nothing.
        out: the run directory; default ``runs/<time>-<plugins>-s<seed>``. Several processes need it given.
        go_on: if ``out`` holds a run of this very recipe, go on with it; default: only when a launcher starts its
            processes again after one was lost.
        progress: True for a progress bar on stderr.
        changes: as in `plait.declare.recipe.assemble`: plugins, data, model, settings, epochs, steps, seed, device.

    Raises:
        BadInput: a bad name, option or file.
        Refused: the plugins cannot work together.
        RunFailed: something went wrong while running; the last checkpoint is kept.
        Interrupted: stopped by a signal, after writing a checkpoint.
    """
    plan = recipe if isinstance(recipe, Plan) else make_plan(assemble(recipe, **changes))
    processes = current().world
    if out is None and processes > 1:
        raise BadInput(f"{processes} processes make one run together: say where, with --out DIR (out=... in Python).")
    directory = places.at(out if out is not None else default_path(plan.recipe))
    return execute(plan, directory, go_on=go_on, progress=progress)


def resume(
    path: Path | str,
    *,
    checkpoint: str | None = None,
    device: str | None = None,
    anyway: bool = False,
    progress: Any = False,
) -> Run:
    """Go on with a run that was killed or interrupted; a finished one is only read back.

    Args:
        path: the run directory.
        checkpoint: a checkpoint's name; default the newest. Without any checkpoint the run starts over. Newer ones
            are set aside as ``superseded-...``.
        device: another device than the recipe's.
        anyway: also over data that differs from what the run began with.
        progress: True for a progress bar on stderr.

    Raises:
        BadCheckpoint: the checkpoint is damaged, foreign, or of another model (an intact older one is named), or the
            data has changed since (what differs is named). The run directory is as it was.
    """
    directory = places.existing(path)
    if directory.result() is not None and checkpoint is None:
        return Run(directory)
    plan = make_plan(assemble(directory.recipe(), device=device))
    return execute(plan, directory, fresh=False, checkpoint=checkpoint, anyway=anyway, progress=progress)


def load_run(path: Path | str) -> Run:
    """Read a run directory back.

    Raises:
        BadInput: there is none.
    """
    return Run(places.existing(path))


def execute(
    plan: Plan,
    directory: RunDirectory,
    *,
    fresh: bool = True,
    go_on: bool | None = None,
    checkpoint: str | None = None,
    anyway: bool = False,
    progress: Any = False,
    artifacts: bool = True,
) -> Run:
    """Do what a plan says, from the empty directory to the exported model.

    Args:
        plan: judged; one with refusals is refused.
        directory: where the run is written down.
        fresh: begin a new run; False: go on with the one that is there.
        go_on: of a fresh one, as in `run`.
        checkpoint: of one that goes on: from which; default the newest.
        anyway: of one that goes on: also over other data than it began with.
        progress: True for a progress bar on stderr, or a `plait.storage.progress.Silent` of the caller's own.
        artifacts: ask the installed plugins for their artifacts at the end.

    Raises:
        Refused, BadInput, RunFailed, Interrupted: as `run` and `resume`.
    """
    plan.raise_if_refused()
    recipe, process = plan.recipe, current()
    if fresh and not (directory.launched_by(process) if go_on is None else go_on):
        directory.must_be_free()  # before torch is imported and anything slow begins
    from plait import exporting
    from plait.data.seeds import seed_everything, seed_noise
    from plait.distributed.accelerator import make_accelerator
    from plait.distributed.ranks import together
    from plait.distributed.world import World
    from plait.loading import build_model, load_data
    from plait.rehearsal import rehearse
    from plait.storage.recorder import Recorder
    from plait.training.trainer import Trainer

    accelerator = make_accelerator(recipe, directory.path)
    bar = bars.make(progress if accelerator.is_main_process else False)
    with together(accelerator, recipe.distributed.timeout) as ranks:
        if ranks.world > 1:
            versions = environment.versions(["torch", "accelerate", *plan.distributions])
            sources = environment.sources_of(plan.distributions)
            ranks.compare({"versions": versions, "sources": sources, "recipe": recipe.model_dump(mode="json")})
        before = set(directory.path.iterdir()) if directory.path.exists() else None
        standing = ranks.decide("start", lambda: _begin(plan, directory, go_on) if fresh else "interrupted")
        if not directory.shared and ranks.world > 1:
            if process.local == 0 and not accelerator.is_main_process and standing != "new":
                directory.fetch()
            accelerator.wait_for_everyone()
        if standing == "finished":
            return Run(directory)

        writes = accelerator.is_main_process
        recorder = Recorder(directory, bar, accelerator if writes else None, writes=writes)
        with directory.locked() if writes else contextlib.nullcontext():
            if standing == "new" and writes:
                machine = environment.describe(str(accelerator.device), plan.distributions, ranks.world)
                files.write_text(directory.environment_file, json.dumps(machine, indent=2))
                files.write_text(directory.recipe_file, recipe.to_toml())
                recorder.event("plan", **plan.as_dict())
            trainer = Trainer(recipe, plan.plugins, plan.composed, World(accelerator.device, accelerator), recorder)
            written_down = _written_down(recorder, ranks, artifacts, before=before, new=standing == "new")
            with written_down, ranks.alive(lambda: trainer.step):
                seed_everything(recipe.seed)
                data = load_data(recipe.data, recipe.seed)
                for note in data.notes:
                    recorder.note(note)
                model = build_model(recipe.model, data.info)
                plan.judge_loaded(data.info, model)
                trainer.build(data, model)
                views = trainer.views()  # a name given twice is refused now, not after the training
                seed_noise(recipe.seed, trainer.rank)
                if standing == "new" or not _take_up(trainer, recorder, plan, ranks, checkpoint, anyway):
                    rehearse(trainer, views)

                bar.start(trainer.total_steps, trainer.step, "+".join(recipe.plugins) or "plain")
                with recorder.signals():
                    trainer.fit()
                    if trainer.step or not directory.saved_checkpoints():
                        trainer.checkpoint()

                bar.say("evaluating ...")
                trainer.select()
                results = trainer.evaluate(trainer.model, views)
                validation = trainer.evaluate_validation()
                model = trainer.exported()
                if trainer.composed["export"]:
                    exported = trainer.evaluate(model, views)
                    results |= {f"{name}@export": value for name, value in exported.items()}
                if writes:
                    exporting.write(trainer, model.cpu(), directory.export)
                kinds: dict[str, type] = {"details": Metric, "tables": Table, "plots": Plot}
                described = {name: _described(kind, results) for name, kind in kinds.items()}
                recorder.event("result", step=trainer.step, **described, validation=_described(Metric, validation))
        ranks.decide("written", lambda: None)
    return Run(directory, model)


def _begin(plan: Plan, directory: RunDirectory, go_on: bool | None) -> str:
    """How the run stands, on rank 0: ``new`` in a directory made for it, ``interrupted``, or ``finished``."""
    directory.fetch()
    if not (directory.launched_by(current()) if go_on is None else go_on) or not directory.recipe_file.exists():
        directory.create()
        directory.launched(current())
        return "new"
    from plait.distributed.ranks import differences

    recipes = (directory.recipe(), plan.recipe)
    there, here = (recipe.model_dump(mode="json", exclude={"distributed", "device"}) for recipe in recipes)
    if other := next(differences(there, here), None):
        place, before, now = other
        raise BadInput(
            f"{directory.shown} holds a run of another recipe ({place} is {before!r} there and {now!r} here): "
            f"choose another --out, or `plait resume {directory.shown}`."
        )
    directory.launched(current())
    return "finished" if directory.result() is not None else "interrupted"


def _take_up(trainer: Trainer, recorder: Recorder, plan: Plan, ranks: Ranks, name: str | None, anyway: bool) -> bool:
    """Go on from a checkpoint; False when there is none and the run starts over."""
    from plait.storage import checkpoints

    directory = recorder.directory
    newest = ranks.decide("checkpoint", lambda: saved.name if (saved := directory.checkpoint(name)) else None)
    path, size = directory.checkpoints / newest if newest else None, 0
    if path is not None:
        try:
            state = checkpoints.load(path)
        except BadCheckpoint as error:
            older = [p.stem for p in directory.saved_checkpoints() if p != path]
            hint = f" Intact older ones may be: {', '.join(older)} (--checkpoint {older[-1]})." if older else ""
            hint = hint if path.exists() else " Every machine of a run must see its directory."
            raise BadCheckpoint(f"{error}{hint}") from None
        if not anyway:
            _compare_data(state.get("data"), trainer.identity, directory, path.stem)
        try:
            trainer.load_state_dict(state)
            size = int(state["events_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PlaitError):
                raise
            raise BadCheckpoint(f"{path} does not fit this run: {type(error).__name__}: {error}.") from error
    if recorder.writes:
        directory.tidy(path)
    recorder.rewind(size)
    if path is None:
        recorder.event("plan", **plan.as_dict())
    else:
        recorder.event("resumed", step=trainer.step, processes=trainer.world)
    return path is not None


def _compare_data(there: Mapping[str, Any] | None, here: Mapping[str, Any], directory: RunDirectory, name: str) -> None:
    """Refuse to go on over other data; a checkpoint of an older plait-core says nothing of its data."""
    from plait.distributed.ranks import differences

    changes = []
    for place, before, now in differences(there, here) if there else ():
        split, _, kind = place.partition(".")
        if kind == "rows":
            changes.append(f"{split}: {before} rows there, {now} here")
        elif kind == "fingerprint":
            if there and there[split]["rows"] == here[split]["rows"]:
                changes.append(f"{split}: other values in its labels or columns of integers")
        else:
            what = kind.removeprefix("fields.").replace(".", " ")
            text = f"{before or 'nothing'} there, {now or 'nothing'} here"
            changes.append(f"{split}: {what} is {text}" if kind else f"{place}: {text}".replace("_", " "))
    if changes:
        raise BadCheckpoint(
            f"{directory.shown}: the data is not what the checkpoint {name} was trained on. {'; '.join(changes)}. Give "
            f"the data that the run began with, or go on over this one: plait resume {directory.shown} --go-on-anyway"
        )


def _described(kind: type[Metric | Table | Plot], results: Mapping[str, Metric | Table | Plot]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in results.items() if isinstance(value, kind)}


@contextlib.contextmanager
def _written_down(
    recorder: Recorder, ranks: Ranks, artifacts: bool, *, before: set[Path] | None, new: bool
) -> Iterator[None]:
    """Close the record however the run ends: note the failure, make the artifacts, publish.

    When the input is refused before anything was trained, nothing is left but what was there ``before``; a run that is
    not ``new`` is left as it was when it is refused before it went on.
    """
    directory = recorder.directory
    size = directory.events_file.stat().st_size if directory.events_file.exists() else 0
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        recorder.progress.stop()
        ranks.tell(error)
        refused = isinstance(error, (BadInput, Refused))
        if new and recorder.writes and refused and not directory.saved_checkpoints():
            if before is None:
                shutil.rmtree(directory.path)
            for entry in set(directory.path.iterdir()) - before if before is not None else ():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            raise
        if refused and not new and not recorder.goes_on:
            recorder.rewind(size)
            raise
        failure = error
        if isinstance(error, Interrupted):
            newest = directory.checkpoint()
            recorder.event("interrupted", step=int(newest.stem.removeprefix("step-")) if newest else 0)
            failure = Interrupted(f"{error} Go on with: plait resume {directory.shown}")
            failure.shown = error.shown
        else:
            with contextlib.suppress(RunFailed):  # a full disk must not hide what happened before
                recorder.event("failed", error=str(error) or type(error).__name__)
    finally:
        recorder.progress.stop()
        recorder.close()
    if recorder.writes:
        if artifacts:
            make_artifacts(directory)
        with contextlib.suppress(RunFailed) if failure is not None else contextlib.nullcontext():
            directory.publish()
    if isinstance(failure, PlaitError):
        raise failure from failure.__cause__
    if failure is not None:
        raise failure


def make_artifacts(directory: RunDirectory) -> None:
    """What installed plugins make of a run's folder, such as its page; what fails is said and costs nothing else."""
    entries, problems = discovery.collect("artifacts")
    written: dict[str, str] = {}
    for name, (plugin, path) in entries.items():
        try:
            file = load_object(str(path), f"artifact {name!r} of plugin {plugin!r}:")(directory.path)
            written[name] = os.path.relpath(file, directory.path)
        except Exception as error:  # a stranger's function may raise anything; the run itself is complete
            problems[name] = f"the {name} could not be written: {error}"
    for problem in problems.values():
        print(problem, file=sys.stderr)
    if written:
        with contextlib.suppress(RunFailed):
            files.write_text(directory.artifacts_file, json.dumps(written, indent=2))


def _rebuilt(directory: RunDirectory) -> nn.Module:
    """The exported model of a run that another process made, from its recipe and newest checkpoint, on the CPU."""
    import torch

    from plait.data.seeds import seed_everything
    from plait.distributed.world import World
    from plait.loading import build_model, load_data
    from plait.storage import checkpoints
    from plait.storage.recorder import Recorder
    from plait.training.trainer import Trainer

    path = directory.checkpoint()
    if path is None:
        raise BadCheckpoint(f"{directory.path} has no checkpoint to load a model from.")
    plan = make_plan(assemble(directory.recipe(), device="cpu"))
    recorder = Recorder(directory, bars.Silent(), None, writes=False)
    seed_everything(plan.recipe.seed)
    data = load_data(plan.recipe.data, plan.recipe.seed)
    trainer = Trainer(plan.recipe, plan.plugins, plan.composed, World(torch.device("cpu")), recorder)
    trainer.build(data, build_model(plan.recipe.model, data.info))
    trainer.load_state_dict(checkpoints.load(path))
    trainer.select()
    return trainer.exported().cpu()
