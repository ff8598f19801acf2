"""The trainer: the woven step with a data set, a record and the loop. Plugins receive it in every hook of a run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.data import Data, Split
from plait.data.batches import in_parts
from plait.data.seeds import seed_noise, seed_of
from plait.data.streams import Stream, in_order
from plait.declare.recipe import Recipe
from plait.declare.results import Metric, Plot, Table
from plait.declare.rules import Composed, Implementation
from plait.declare.words import TASKS
from plait.distributed.world import World
from plait.errors import BadInput, Interrupted, blame, failing, first_line
from plait.storage import checkpoints
from plait.storage.directory import RunDirectory
from plait.storage.progress import Silent
from plait.storage.recorder import Recorder
from plait.training import evaluation
from plait.training.forward import Forward
from plait.training.frozen import evaluating, frozen_buffers
from plait.training.random_state import global_random_state, set_global_random_state
from plait.training.woven import Woven


class Trainer(Woven):
    """One training run in memory.

    Args:
        recipe, plugins, composed, world: as of `plait.training.woven.Woven`.
        recorder: where the run is written down.

    Attributes:
        data: the data after every ``transform_data``.
        folder: the run directory, for files of a plugin; write only where ``writes``.
        writes: whether this process writes files (rank 0 does).
        best: the best state on validation so far, when the recipe selects by it.
        identity: what a checkpoint remembers of the data (`plait.data.Data.identity`) and its batches per epoch.
    """

    def __init__(
        self,
        recipe: Recipe,
        plugins: Mapping[str, Any],
        composed: Mapping[str, Composed],
        world: World,
        recorder: Recorder,
    ) -> None:
        super().__init__(recipe, plugins, composed, world)
        self._recorder = recorder
        self.folder: Path = recorder.directory.path
        self.writes = recorder.writes
        self.best: dict[str, Any] | None = None
        self._streams: dict[str, Stream] = {}
        self._waiting["streams"] = {}
        self._notes: set[str] = set()
        acting = ("optimizer_step", "objective", "example_weights", "loss_terms")
        self._acting = list(dict.fromkeys(i.plugin for hook in acting for i in composed[hook].implementations))

    def build(self, data: Data, model: nn.Module) -> None:
        """Put data and model together; the plugins transform both, then set themselves up.

        Raises:
            BadInput: lazy layers that two training rows do not bring into shape.
        """
        self.data: Data = self.composed["transform_data"].chain("data", trainer=self, data=data)
        self.info = self.data.info
        way = (self.data.prepare, self.data.forward, self.data.readout, self.data.keep)
        materialise(model, Forward.of(World(torch.device("cpu")), "fp32", self.info.task, model, *way), self.data.train)
        model = self.composed["transform_model"].chain("model", trainer=self, model=model, data=self.data)
        model.to(self.device)
        if not model.training:  # as Hugging Face gives them; parts that the builder put into eval mode stay so
            model.train()
        self.train_stream = self.stream("train")
        train, per_epoch = self.recipe.train, self.train_stream.batches_per_epoch
        steps = train.steps if train.steps is not None else per_epoch * (train.epochs or 0)
        strategy = self.composed["fit"].owner()
        if strategy is not None:
            with blame(strategy.plugin):
                steps = self.plugins[strategy.plugin].budget(steps, per_epoch)
        self.identity = {**self.data.identity(), "batches_per_epoch": per_epoch}
        forward = Forward.of(self._world, self.recipe.precision, self.info.task, model, *way)
        self.take(model, self.data.info, forward, steps)

    def stream(self, name: str, split: str = "train", batch_size: int | None = None) -> Stream:
        """An endless, resumable stream of batches; every name shuffles differently.

        A split may bring a ``stream`` of its own, called with the arguments of `plait.data.streams.Stream` but the
        split.

        Args:
            name: part of the shuffling's seed.
            split: ``train``, ``validation`` or ``test``.
            batch_size: examples over all ranks; default the recipe's.
        """
        if name not in self._streams:
            chosen = getattr(self.data, split)
            plain = functools.partial(Stream, chosen, drop_last=self.recipe.train.drop_last)
            make = getattr(chosen, "stream", None) or plain
            self._streams[name] = make(
                name,
                self.recipe.seed,
                batch_size or self.recipe.train.batch_size,
                augment=self.data.augment if split == "train" else None,
                rank=self.rank,
                world=self.world,
                workers=self.recipe.train.workers,
            )
            if name in self._waiting["streams"]:
                self._streams[name].load_state_dict(self._waiting["streams"].pop(name))
        return self._streams[name]

    def fit(self) -> None:
        """Train for the budget, or as the strategy plugin does it."""
        owner = self.composed["fit"].owner()
        if owner is not None:
            owner({"trainer": self})
        else:
            self.train_until(self.total_steps)

    def train_until(self, last_step: int) -> None:
        """Ordinary steps until ``last_step`` is done, with logging, validation and checkpoints on the way.

        Raises:
            Interrupted: a signal asked for a stop; a checkpoint is written.
            RunFailed: as `train_step`, or a plugin's ``ValueError``.
        """
        stream, every = self.train_stream, self.recipe.train.log_every
        checkpoint_every = self.recipe.checkpoint.every_steps
        while self.step < last_step:
            if self.world > 1:
                self.share = stream.share(stream.drawn)
                seed_noise(self.recipe.seed, self.rank, self.step)  # a resumed run draws the dropout of an unbroken one
            epoch = stream.epoch
            batch = next(stream)
            with failing(self.step + 1, *self._acting):
                report = self.train_step(batch if self.device.type == "cpu" else batch.to(self.device))
            self._recorder.advance(self.step, report.loss)
            if self.step % every == 0:
                terms = {name: self._world.mean(value, self.share) for name, value in report.terms.items()}
                self.log({"train/loss": self._world.mean(report.loss, self.share), "train/lr": self.lr, **terms})
            ended = stream.epoch > epoch
            if (ended and stream.epoch % self.recipe.train.evaluate_every == 0) or self.step == self.total_steps:
                self.validate()
            stop = self._recorder.stop_requested
            if self.world > 1:  # all agree, every `log_every` steps
                stop = self.step % every == 0 and self._world.any_true(stop)
            if stop:
                self.checkpoint()
                raise Interrupted(f"stopped after step {self.step} of {self.total_steps}.")
            if self.step < self.total_steps and (self.step % checkpoint_every == 0 if checkpoint_every else ended):
                self.checkpoint()

    def checkpoint(self) -> None:
        """Write a checkpoint; call it between two steps.

        Raises:
            RunFailed: weights that are not finite, or a file that could not be written; older ones are intact.
        """
        self.require_finite_weights()
        self._recorder.checkpoint(self.step, self.state_dict(), self.recipe.checkpoint.keep)

    def log(self, values: Mapping[str, float]) -> None:
        """Record scalars of this step: to ``metrics.jsonl``, to the loggers, and to the report's curves."""
        self._recorder.event("scalars", step=self.step, values=dict(values))

    def note(self, text: str) -> None:
        """Show the user a line, once, and keep it for the report."""
        if text not in self._notes:
            self._notes.add(text)
            self._recorder.note(text)

    def say(self, text: str) -> None:
        """Show the user a line above the progress bar; it is not kept."""
        self._recorder.progress.say(text)

    def begin_phase(self, steps: int, *, fresh: bool = False, weights: Mapping[str, Tensor] | None = None) -> None:
        """As of `Woven`; the choice of the best state on validation starts anew, too."""
        super().begin_phase(steps, fresh=fresh, weights=weights)
        self.best = None

    def end_phase(self) -> None:
        """Put back the best state of this phase, if the recipe selects by validation and the phase was validated."""
        if self.recipe.train.select == "best" and self.best is not None:
            self.restore_model(self.best["model"])

    def validate(self) -> None:
        """The figures on the validation split; remembers the best state if the recipe selects by it."""
        if not len(self.data.validation):
            return
        self.masks.hold()
        figures = self.split_figures(self.data.validation)
        self.log({f"validation/{name}": metric.value for name, metric in figures.items()})
        if self.recipe.train.select == "best" and all(p.selectable(self) for p in self.plugins.values()):
            value = evaluation.score(figures)
            if self.best is None or value > self.best["score"]:
                self.best = {"score": value, "step": self.step, "model": self.snapshot_model()}

    @torch.no_grad()
    def split_figures(self, split: Split) -> dict[str, Metric]:
        """What the model's predictions on a split are worth; of an unusual task the mean of the plugin's objective."""
        if self.info.task in TASKS:
            return evaluation.split_figures(self.data, *evaluation.predict(self.forward, self.model, split))
        losses = []
        with evaluating(self.model):
            for batch in (part for given in in_order(split, evaluation.BATCH) for part in in_parts(given)):
                there = batch.to(self.device)
                losses.append(self.objective(self.call(self.model, there), there).float().cpu())
        return {"loss": Metric(float(torch.cat(losses, dim=-1).mean()), "", "lower")}

    def views(self) -> dict[str, evaluation.View]:
        """``clean`` (the test split as it is) and the active plugins' views.

        Raises:
            BadInput: two plugins register one name.
        """
        views = {"clean": evaluation.View("the test split as it is")}
        owner = {"clean": "plait"}
        for plugin, given in self.composed["views"].named(trainer=self):
            for name, view in given.items():
                if name in views:
                    both = f"both {owner[name]!r} and {plugin!r}"
                    raise BadInput(f"the evaluation view {name!r} is registered by {both}.")
                views[name], owner[name] = view, plugin
        return views

    def evaluate(
        self,
        model: nn.Module,
        views: Mapping[str, evaluation.View],
        *,
        of_views: bool = False,
        partly: bool = False,
    ) -> dict[str, Metric | Table | Plot]:
        """Every active plugin's figures of a model as ``<plugin>/<name>``.

        With ``partly`` without a plugin that asks for another view; with ``of_views`` also without one that asks for
        none: no split changes its figures.

        Raises:
            BadInput: as `figures`.
        """
        predictions = evaluation.Predictions(self.forward, model, views, self.data.test)
        merged: dict[str, Metric | Table | Plot] = {}
        for implementation in self.composed["evaluate"].implementations:
            asked = predictions.used
            try:
                results = self.figures(implementation, predictions)
            except evaluation.NoSuchView:
                if not of_views and not partly:
                    raise
                continue
            if not of_views or predictions.used > asked:
                merged |= results
        return merged

    def figures(
        self, evaluate: Implementation, predictions: evaluation.Predictions
    ) -> dict[str, Metric | Table | Plot]:
        """One plugin's figures of a model as ``<plugin>/<name>``.

        Raises:
            BadInput: it returned something else than metrics, tables and plots.
        """
        plugin = evaluate.plugin
        with blame(plugin):
            results = evaluate({"trainer": self, "predictions": predictions})
        if not isinstance(results, Mapping):
            kind = type(results).__name__
            raise BadInput(f"plugin {plugin!r}: evaluate returned {kind}; return a mapping of metrics.")
        for name, value in results.items():
            if not isinstance(value, (Metric, Table, Plot)):
                given = f"a {type(value).__name__} for {name!r}"
                raise BadInput(f"plugin {plugin!r}: evaluate gave {given}; wrap it in plait.Metric.")
        return {f"{plugin}/{name}": value for name, value in results.items()}

    def evaluate_validation(self) -> dict[str, Metric | Table | Plot]:
        """The plugins' figures on the validation split, for choices that must not see the test; one view, ``clean``."""
        if not len(self.data.validation):
            return {}
        views = {"clean": evaluation.View("the validation split as it is", split=self.data.validation)}
        return self.evaluate(self.model, views, of_views=True)

    def select(self) -> None:
        """At the end: the state that is delivered, the best one where the recipe says so; masked weights are zero."""
        if self.recipe.train.select == "best" and self.best is not None:
            self.restore_model(self.best["model"])
            self._recorder.event("selected", step=self.best["step"], score=self.best["score"])
        self.masks.hold()

    def exported(self) -> nn.Module:
        """What is delivered: a copy of the model after every plugin's ``export``, in eval mode."""
        model: nn.Module = self.composed["export"].chain("model", trainer=self, model=self.whole_model())
        return model.eval()

    @contextlib.contextmanager
    def untouched(self, folder: Path) -> Iterator[None]:
        """Before the first step: what is computed inside leaves no trace in the run, and nothing of it is recorded.

        Random numbers, streams, plugins, shadows, buffers and the attributes of layers are what they were. The
        wrapped network is not used, so that neither a compiler nor the averaging over ranks learns from these passes.

        Args:
            folder: where the files of plugins go that they would write into the run directory.
        """
        random = global_random_state(self.device)
        plugins = {name: checkpoints.as_read(plugin.state_dict()) for name, plugin in self.plugins.items()}
        streams = {name: stream.state_dict() for name, stream in self._streams.items()}
        generators = {name: generator.get_state() for name, generator in self._generators.items()}
        roots = (self.model, *(module for module, _ in self._modules.values()))
        attributes = [(module, dict(vars(module))) for root in roots for module in root.modules()]
        own = (self.data, self.network, self.folder, self._recorder, self._notes)
        self.folder, self._notes = folder, set()
        self._recorder = Recorder(RunDirectory(folder), Silent(), writes=False)
        self.network = self.model if not self.sharded else self.network
        with contextlib.ExitStack() as frozen:
            for root in roots:
                frozen.enter_context(frozen_buffers(root))
            yield
        self.data, self.network, self.folder, self._recorder, self._notes = own
        for module, before in attributes:  # the mode, and what a stranger's forward pass counts or keeps
            vars(module).clear()
            vars(module).update(before)
        for name, plugin in self.plugins.items():
            if checkpoints.digest(plugin.state_dict()) != checkpoints.digest(plugins[name]):
                plugin.load_state_dict(plugins[name])
        for name, stream in self._streams.items():
            if stream.state_dict() != streams.get(name, {"drawn": 0}):
                stream.load_state_dict(streams.get(name, {"drawn": 0}))
        for name, generator in self._generators.items():
            if name in generators:
                generator.set_state(generators[name])
            else:
                generator.manual_seed(seed_of(self.recipe.seed, "generator", name))
        self._shadows.begin()
        set_global_random_state(random, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, between two steps."""
        streams = {name: stream.state_dict() for name, stream in self._streams.items()}
        waiting = self._waiting["streams"]
        return {**super().state_dict(), "data": self.identity, "streams": waiting | streams, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(state)
        for name, stream in self._streams.items():
            stream.load_state_dict(self._waiting["streams"].pop(name))
        self.best = state["best"]


@torch.no_grad()
def materialise(model: nn.Module, forward: Forward, split: Split) -> None:
    """Bring lazy layers into shape by the rows of a split, on the CPU; a model without any is left as it is.

    Raises:
        BadInput: the model fails on these rows.
    """
    lazy = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if nn.parameter.is_lazy(t)]
    if not lazy:
        return
    try:
        with evaluating(model):
            forward(model, split.__getitems__(torch.arange(min(2, len(split)))))
    except Exception as error:  # a stranger's model may raise anything
        what = f"the model's lazy {lazy[0]!r} takes its shape from two training rows, on which the model fails"
        raise BadInput(f"{what}: {type(error).__name__}: {first_line(error)}") from error
