"""The woven step in the caller's own loop: `weave` judges a set of plugins and puts them around a model and its
optimizer; the loop, the data and the files stay the caller's.

`plait.run` drives the same engine, `plait.training.trainer.Trainer`, from its own loop.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Data, DataInfo, Split
from plait.data.batches import Parts, in_parts
from plait.data.conversion import as_split, mended
from plait.data.fields import FieldReader, Passes, Renamed, Sample
from plait.declare.recipe import Recipe, assemble
from plait.declare.results import Metric, Plot, Table
from plait.declare.rules import Implementation
from plait.distributed.ranks import differences
from plait.distributed.world import World
from plait.errors import BadCheckpoint, BadInput, PlaitError, Refusal, Refused, RunFailed, blame, first_line, nearest
from plait.planning.needs import judge_needs
from plait.planning.plan import Plan, make_plan
from plait.storage import checkpoints
from plait.storage.directory import RunDirectory
from plait.storage.progress import Silent
from plait.storage.recorder import Recorder
from plait.training.forward import Forward
from plait.training.frozen import evaluating, frozen_buffers
from plait.training.objectives import default_objective
from plait.training.random_state import random_state, set_random_state
from plait.training.trainer import Trainer
from plait.training.woven import LossReport

if TYPE_CHECKING:
    from accelerate import Accelerator

BATCHES = "loop:batches"
"""What stands in a plan where a run has the name of its data."""

LOSS = "weave(loss=...)"

SAVED_ROWS = 8
"""Of the example, in the file of a saved step: enough for plugins to trace the model with."""

logger = logging.getLogger("plait")


class Record(Recorder):
    """What plugins say in a loop that has no run directory: notes are kept and logged, of scalars the latest."""

    def __init__(self) -> None:
        super().__init__(RunDirectory(Path()), Silent(), writes=False)
        self.notes: list[str] = []
        self.values: dict[str, float] = {}

    def event(self, kind: str, **values: Any) -> None:
        """Keep the scalars."""
        if kind == "scalars":
            self.values |= values["values"]

    def note(self, text: str) -> None:
        """Keep and log a line."""
        self.notes.append(text)
        logger.info(text)


class WovenStep:
    """A model and its optimizer with plugins woven around them; `weave` makes it.

    Attributes:
        plan: the judged plan; ``print(woven.plan)`` shows what ``plait plan`` shows.
        trainer: what the plugins see; its members are on the contract's page.
        read: from a batch as the loop has it to a `plait.Batch`; see `plait.data.fields.FieldReader`.
        notes: lines that plugins had to say.
        values: the latest scalars that plugins logged, ``<plugin>/<name>`` -> number.
    """

    def __init__(self, plan: Plan, trainer: Trainer, record: Record, read: FieldReader) -> None:
        self.plan, self.trainer, self.read = plan, trainer, read
        self.notes, self.values = record.notes, record.values

    @property
    def model(self) -> nn.Module:
        """The caller's model, trained in place."""
        return self.trainer.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The caller's optimizer."""
        return self.trainer.optimizer

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self.trainer.step

    def step(self, *batches: Any) -> LossReport:
        """One whole step: the plugins' passes, the update of the weights, the masks. No ``zero_grad`` is needed.

        Args:
            batches: one batch, or the micro-batches of this step, at most ``accumulate`` of them. Each is a mapping of
                tensors [B, ...] or a tuple (input, label).

        Returns:
            The loss (a scalar on the device), each example's [B], and the plugins' terms.

        Raises:
            BadInput: a batch without a field that a plugin needs, or too many micro-batches.
            RunFailed: a loss that is not finite, naming where it came from; the weights are not to be used then.
        """
        return self.trainer.train_step(self._batch(batches))

    def gradients(self, *batches: Any, **options: Any) -> LossReport:
        """Gradients of the composed loss in ``p.grad``, without an update; may be called again and again.

        Args:
            batches: as of `step`.
            options: as of `plait.training.woven.Woven.gradients`.
        """
        return self.trainer.gradients(self._batch(batches), **options)

    def evaluate(
        self, batches: Iterable[Any], *, views: Sequence[str] | None = None, model: nn.Module | None = None
    ) -> dict[str, Metric | Table | Plot]:
        """The plugins' figures, ``<plugin>/<name>``, as a run has them.

        Args:
            batches: the whole test set in batches (a ``DataLoader``), on each process the same; read once for each
                view, so an iterator that can be read only once is kept in memory.
            views: names of the views to look at; a plugin that asks for another one gives no figures. Default: all.
            model: another than the trained one, e.g. what `export` gave.

        Raises:
            BadInput: a view that no plugin registers.
        """
        known = self.trainer.views()
        for name in views or ():
            if name not in known:
                raise BadInput(f"no view {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
        passes: Any = Passes(batches, self.read)
        chosen = {
            name: view if view.split is not None else dataclasses.replace(view, split=passes)
            for name, view in known.items()
            if views is None or name in views
        }
        return self.trainer.evaluate(model if model is not None else self.model, chosen, partly=views is not None)

    def export(self) -> nn.Module:
        """What is deployed: a copy of the model in eval mode after every plugin's ``export``; training can go on."""
        self.trainer.masks.hold()
        return self.trainer.exported()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the step needs to go on with the same bits: weights, optimizer, masks, plugins, generators.

        Tensors, numbers, strings, lists and dicts only. The place in the data, and a schedule of the learning rate, are
        the caller's to keep.

        Raises:
            RunFailed: a step was broken off in its middle, where weights may be perturbed.
        """
        if self.trainer.in_step:
            raise RunFailed(f"step {self.steps} was broken off in its middle; its weights are not worth keeping.")
        return {"recipe": _dumped(self.plan.recipe), "task": self.trainer.info.task, **self.trainer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, in the same or a fresh process. Sets the global random generators, too.

        Raises:
            BadCheckpoint: the state of another model, or of plugins with other options.
        """
        if other := next(differences(state["recipe"], _dumped(self.plan.recipe)), None):
            place, before, now = other
            raise BadCheckpoint(f"the saved step was woven with {place} = {before!r}, this one with {now!r}.")
        self.trainer.load_state_dict(state)
        self.trainer.in_step = False

    def save(self, path: Path | str) -> None:
        """Write the state to one safetensors file, whole or not at all; `load_woven` reads it. Nothing is pickled."""
        sample = {name: value for name, value in self._example().items() if isinstance(value, Tensor)}
        checkpoints.save(Path(path), {**self.state_dict(), "example": sample})

    def _example(self) -> Any:
        test = self.trainer.data.test
        return test.__getitems__(torch.arange(min(SAVED_ROWS, len(test))))

    def _batch(self, batches: Sequence[Any]) -> Any:
        if torch.is_autocast_enabled(self.trainer.device.type):
            # its cache keeps the cast weights of one pass for the next, whatever the weights are by then
            raise BadInput("take the step out of torch.autocast, and give weave(precision='bf16') instead.")
        if len(batches) == 1:
            batch = self.read(batches[0])
        else:
            most = self.plan.recipe.train.accumulate
            if not batches or len(batches) > most:
                raise BadInput(f"a step of {len(batches)} micro-batches; weave(accumulate={most}) takes 1 to {most}.")
            batch = Parts([self.read(part) for part in batches])
        return batch if self.trainer.device.type == "cpu" else batch.to(self.trainer.device)


def weave(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    plugins: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    total_steps: int,
    example: Any,
    task: str = "classification",
    loss: Callable[..., Tensor] | None = None,
    fields: Sequence[str] | Mapping[str, str] | None = None,
    train: Any = None,
    names: Mapping[str, Sequence[str]] | None = None,
    prepare: Callable[[Any], Any] | None = None,
    forward: Callable[[Callable[..., Any], Any], Any] | None = None,
    readout: Callable[[Any, Any], Any] | None = None,
    accumulate: int = 1,
    batch_size: int | None = None,
    clip_norm: float | None = None,
    precision: str = "fp32",
    compile: bool = False,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> WovenStep:
    """Weave plugins around a model and its optimizer, for a loop of the caller's own.

    Args:
        model: the plain module on its device (never a DDP or compiled wrapper), with the weights to begin from.
        optimizer: any of torch that steps without a closure, over the trained parameters. Its learning rate stays the
            caller's; give a scheduler this optimizer after weaving.
        plugins: names, or name -> options.
        total_steps: the optimizer steps of the whole training; the plugins' schedules end there.
        example: a batch as the loop has it; plugins trace the model with it.
        task: ``classification``, ``multilabel``, ``regression`` or ``causal-lm``: the loss and the figures.
        loss: ``loss(outputs, batch)`` -> [B], the loss of each example, in the place of the task's.
        fields: names of a tuple's fields in order, default ``("input", "label")`` (``target`` for regression), or old
            name -> plait's name of a mapping's.
        train: what plugins ask for of the training set: columns over all of it, name -> tensor [n], for those that
            count (``label``, ``group``); the data set, for those that draw batches of their own.
        names: human names, e.g. ``{"group": ["light", "dark"]}``.
        prepare, forward, readout: as in `plait.data.Data`. By default the model is called with ``input``; a model of
            transformers with all fields that it takes but the labels, and its ``logits`` are the outputs.
        accumulate: parts in which the batch of a step is computed, or micro-batches that `WovenStep.step` may get.
        batch_size: examples of a step over all processes, for plugins that count work; default as many as in the
            example on each process.
        clip_norm: largest global norm of the gradient that is applied.
        precision: ``fp32`` or ``bf16`` (autocast; weights stay as they are).
        compile: ``torch.compile`` the forward pass.
        seed: of the plugins' random choices.
        accelerator: Accelerate's, where several processes train together; it must not have prepared the model.

    Raises:
        BadInput: an unknown plugin or option, a batch or model that cannot be used.
        Refused: the plugins cannot work together or not outside plait's own run, with what to change.
    """
    _must_be_plain(model, optimizer)
    device = next(model.parameters()).device
    main_input = getattr(model, "main_input_name", None)
    read = FieldReader(fields, "target" if task == "regression" else "label", main_input)
    whole = read(example)
    batch = in_parts(whole)[0]
    processes = accelerator.num_processes if accelerator is not None else 1
    size = batch_size if batch_size is not None else whole.size * processes
    plan = _judged(
        {
            "seed": seed,
            "precision": precision,
            "compile": compile,
            "data": {"name": BATCHES},
            "model": {"name": f"{type(model).__module__}:{type(model).__qualname__}"},
            "train": {"steps": total_steps, "batch_size": size, "accumulate": accumulate},
            "optimizer": {"lr": float(optimizer.param_groups[0]["lr"]), "clip_norm": clip_norm},
            "scheduler": {"name": "constant"},
        },
        plugins,
        loss,
    )
    world = World(device, accelerator)
    way = Forward.of(world, precision, task, model, prepare, forward, readout)
    shown = _training_set(train, batch, read)
    own = loss is None and bool(plan.composed["objective"])
    info = _shown(task, loss, way, model, batch, shown, judged=not own)
    read.needed = needed_fields(plan)
    _judge_shown(plan, info, model, read.needed)

    record = Record()
    trainer = Trainer(plan.recipe, plan.plugins, plan.composed, world, record)
    sample = Sample(batch, {name: value for name, value in batch.items() if isinstance(value, Tensor)})
    data = Data(info, shown, sample, sample, None, prepare, way.forward, way.readout, names=names or {})
    trainer.stopping, trainer.lower_rate = "These weights are not to be used.", "Try a smaller learning rate."
    trainer.data, trainer.identity = _unchanged_data(trainer, data), {}
    _unchanged_model(trainer, model)
    trainer.take(model, info, way, total_steps, optimizer)
    return WovenStep(plan, trainer, record, read)


def load_woven(
    path: Path | str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    example: Any = None,
    **again: Any,
) -> WovenStep:
    """Weave as `WovenStep.save` says, around a fresh model and optimizer, and go on with the same bits.

    Args:
        path: the file.
        model: built as the first time; its weights are replaced.
        optimizer: likewise.
        example: a batch; default the one in the file.
        again: what a file cannot hold, as it was given to `weave`: ``loss``, ``train``, ``forward``, ``accelerator``.

    Raises:
        BadCheckpoint: the file is damaged, or of another model.
    """
    state = checkpoints.load(Path(path))
    if "recipe" not in state:
        raise BadCheckpoint(f"{path} is no file of woven.save(); a run's checkpoint is resumed with plait.resume.")
    recipe = Recipe.parse(state["recipe"], str(path))
    woven = weave(
        model,
        optimizer,
        plugins=recipe.plugins,
        total_steps=recipe.train.steps or 0,
        example=example if example is not None else state["example"],
        accumulate=recipe.train.accumulate,
        batch_size=recipe.train.batch_size,
        clip_norm=recipe.optimizer.clip_norm,
        precision=recipe.precision,
        compile=recipe.compile,
        seed=recipe.seed,
        **{"task": state["task"], **again},
    )
    woven.load_state_dict(state)
    return woven


# ---- judging ---------------------------------------------------------------------------------------------------------
def _must_be_plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse wrappers, and an optimizer that does not train just this model."""
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise BadInput(
            f"weave takes the plain module, not {kind}: give model.module, and accelerator=... for processes."
        )
    if hasattr(model, "_orig_mod"):
        raise BadInput("weave takes the plain module, not a compiled one: weave(model, optimizer, compile=True, ...).")
    spread = any(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in model.parameters())
    if spread or "deepspeed" in kind or "FullyShardedDataParallel" in kind:
        raise BadInput(
            f"{kind} spreads its parameters over processes (FSDP, DeepSpeed); masks and norms need whole ones. Use DDP "
            "through weave(accelerator=...), or plait.run with distributed.strategy = 'fsdp'."
        )
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise BadInput(
            f"weave needs an optimizer of torch that steps without a closure, not {type(optimizer).__name__}."
        )
    if type(optimizer).__module__.startswith("accelerate"):
        raise BadInput("the optimizer was prepared by Accelerate; give the plain one, and accelerator=... to weave.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise BadInput(
                f"the optimizer does not hold {name!r}, which requires gradients: add it, or freeze it with "
                "requires_grad_(False)."
            )
    if foreign := len(held - {id(p) for p in model.parameters()}):
        raise BadInput(f"the optimizer holds {foreign} parameters that are not of this model.")


def _judged(values: Mapping[str, Any], plugins: Sequence[str] | Mapping[str, Mapping[str, Any]], loss: Any) -> Plan:
    """The plan of a loop, with the refusals that declarations alone give."""
    recipe = assemble(values, plugins=plugins)
    plan = make_plan(recipe)
    # what plugins suggest is for a run that leaves it open; here all of it is the caller's
    plan.recipe = recipe.model_copy(update={"plugins": plan.recipe.plugins})
    strategy, objective = plan.composed["fit"].owner(), plan.composed["objective"]
    if strategy is not None:
        name = strategy.plugin
        message = f"{name!r} replaces the training loop (fit), so it cannot be woven into another one."
        plan.refusals.append(Refusal("weave", (name,), message, _own_run(name)))
    if loss is not None:
        if (owner := objective.owner()) is not None:
            message = f"{owner.plugin!r} replaces the loss, and so does {LOSS}."
            plan.refusals.append(Refusal("one", (owner.plugin,), message, "Leave one of them out."))
        objective.implementations.append(Implementation(LOSS, "objective", loss, ("outputs", "batch")))
    return plan


def _own_run(name: str) -> str:
    return f"Train with plait's own run, plait.run(plugins=[{name!r}], ...), or leave {name!r} out."


def _training_set(train: Any, batch: Any, read: FieldReader) -> Split:
    """What the loop shows of its training set."""
    if train is None:
        return Sample(batch)
    if isinstance(train, Mapping) and "input" not in train:
        return Sample(batch, mended(train, read.integers))
    return Renamed(as_split(train, "weave(train=...)", read.order[1], read.integers), read)


def needed_fields(plan: Plan) -> dict[str, str]:
    """Field -> the plugin that needs it in every batch."""
    given = frozenset().union(*(plugin.provides() for plugin in plan.plugins.values())) | {"field:index"}
    words = [(word, name) for name, plugin in plan.plugins.items() for word in sorted(plugin.needs() - given)]
    return {word.removeprefix("field:"): name for word, name in words if word.startswith("field:")}


def _judge_shown(plan: Plan, info: DataInfo, model: nn.Module, needed: Mapping[str, str]) -> None:
    """Judge the needs by what the example and the model show.

    Raises:
        Refused: with every refusal of the plan.
    """
    for name, plugin in needed.items():
        if name not in info.fields:
            message = (
                f"{plugin!r} needs a field {name!r} in every batch; the example has {', '.join(sorted(info.fields))}."
            )
            fix = f"Give mappings that have it, or name a tuple's fields: weave(fields=('input', 'label', {name!r}))."
            plan.refusals.append(Refusal("needs", (plugin,), message, fix))
    shown = dataclasses.replace(info, fields=info.fields | needed.keys() | {"index"})
    refusals, plan.unchecked = judge_needs(plan.recipe, plan.plugins, shown, model)
    for refusal in refusals:
        fix = f"Give weave a model and batches that have it, or leave {' or '.join(map(repr, refusal.plugins))} out."
        plan.refusals.append(dataclasses.replace(refusal, fix=fix))
    plan.raise_if_refused()


def _shown(
    task: str,
    loss: Callable[..., Tensor] | None,
    way: Forward,
    model: nn.Module,
    batch: Any,
    train: Split,
    judged: bool,
) -> DataInfo:
    """What a pass over the example shows of data and model; it leaves no trace in the model or the generators.

    Where a plugin gives the objective, the loss is not ``judged`` here.

    Raises:
        BadInput: the model cannot take the example, or the loss cannot take its outputs.
    """
    noise, there = random_state(way.world.device), batch.to(way.world.device)
    try:
        with torch.no_grad(), evaluating(model), frozen_buffers(model), way.autocast():
            outputs = way(model, there)
    except PlaitError:
        raise
    except Exception as error:  # the caller's model may raise anything
        shapes = ", ".join(f"{n} {tuple(v.shape)} {v.dtype}" for n, v in batch.items() if isinstance(v, Tensor))
        raise BadInput(f"the model cannot take the example ({shapes}): {type(error).__name__}: {error}") from error
    finally:
        set_random_state(noise, way.world.device)
    classes = outputs.shape[-1] if isinstance(outputs, Tensor) and outputs.ndim == 2 and task != "regression" else 0
    columns: Mapping[str, Tensor] = getattr(train, "fields", {})
    groups = int(columns["group"].max()) + 1 if "group" in columns else 0
    shape = tuple(batch["input"].shape[1:]) if isinstance(batch.get("input"), Tensor) else ()
    info = DataInfo(task, shape, classes, groups, frozenset(batch) - {"index"})
    if not judged:
        return info
    try:
        each = loss(outputs, there) if loss is not None else default_objective(info, outputs, there)
    except PlaitError:
        raise
    except Exception as error:
        raise BadInput(f"the loss cannot take the example: {type(error).__name__}: {error}") from error
    if not isinstance(each, Tensor) or each.shape != (batch.size,):
        given = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
        whose = f"{LOSS} must return" if loss is not None else f"give {LOSS}, which returns"
        raise BadInput(f"{whose} the loss of each example, shape [{batch.size}] here, not {given}.")
    return info


def _unchanged_data(trainer: Trainer, data: Data) -> Data:
    """Ask every ``transform_data``, and refuse one that has something to change: the loop has its data already."""
    for implementation in trainer.composed["transform_data"].implementations:
        before, name = dict(vars(data)), implementation.plugin
        message = f"{name!r} changes the training data (transform_data), which are the caller's here."
        try:
            result = implementation({"trainer": trainer, "data": data})
        except Exception as error:  # whatever it looked for in data that are not there
            raise Refused([Refusal("weave", (name,), f"{message} ({first_line(error)})", _own_run(name))]) from error
        if result is not data or any(before[key] is not value for key, value in vars(data).items()):
            raise Refused([Refusal("weave", (name,), message, _own_run(name))])
    return data


def _unchanged_model(trainer: Trainer, model: nn.Module) -> None:
    """Let ``transform_model`` work in place (initialise, say); other parameters would escape the optimizer."""
    parameters = list(model.parameters())
    for implementation in trainer.composed["transform_model"].implementations:
        name = implementation.plugin
        with blame(name):
            result = implementation({"trainer": trainer, "model": model, "data": trainer.data})
        same = len(parameters) == len(list(model.parameters())) and all(map(is_, parameters, model.parameters()))
        if result is not model or not same:
            message = (
                f"{name!r} replaces the model or its parameters (transform_model), which the optimizer holds already."
            )
            raise Refused([Refusal("weave", (name,), message, _own_run(name))])


def _dumped(recipe: Recipe) -> dict[str, Any]:
    """What must be alike where a saved step goes on."""
    apart: Any = {"device": True, "distributed": True, "model": True, "optimizer": {"lr"}}
    return recipe.model_dump(mode="json", exclude_none=True, exclude=apart)
