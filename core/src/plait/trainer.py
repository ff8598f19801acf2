"""The trainer: what a run holds while it trains, and the loop. Plugins receive it in every hook."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait import evaluation, guards, optimizers, replicas, saving, step
from plait.data import Data, DataInfo, Stream, seed_of
from plait.errors import BadInput, Interrupted, blame
from plait.masks import MaskSet
from plait.scale import gathering
from plait.shadows import Shadows
from plait.step import LossReport

if TYPE_CHECKING:
    from accelerate import Accelerator

    from plait.composition import Plan
    from plait.recorder import Recorder


class Trainer:
    """One training run in memory.

    Attributes:
        recipe, plan, plugins, composed: what runs (see `plait.composition`).
        data, info: the data after every ``transform_data``.
        model: the plain module (never a DDP or compiled wrapper).
        optimizer: the base optimizer over ``parameters``.
        masks: the masks, one owner per tensor.
        step: the number of the current step, counted from 1; 0 before the first.
        total_steps: the budget.
        device, rank, world: where this process computes.
        sharded: whether each parameter is spread over the ranks (FSDP); then ``plain`` is a whole copy of the model.
        share: this rank's rows of the current batch over the mean rows of a rank.
        replicas: N of a model whose parameters carry a leading replica axis [N, ...], else None; see `plait.replicas`.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, recorder: Recorder) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.plugins, self.composed = plan.plugins, plan.composed
        self.accelerator, self.recorder = accelerator, recorder
        self.device: torch.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.accumulate = self.recipe.train.accumulate
        self.sharded = self.world > 1 and self.recipe.distributed.strategy == "fsdp"
        self.step, self.share = 0, 1.0
        self.generators: dict[str, torch.Generator] = {}
        self.streams: dict[str, Stream] = {}
        self.phase, self.in_step = (0, 0), False
        self.best: dict[str, Any] | None = None
        self.extra: dict[str, tuple[nn.Module, torch.optim.Optimizer | None]] = {}
        self._notes: set[str] = set()
        self.waiting: dict[str, dict[str, Any]] = {"streams": {}, "generators": {}, "extra": {}, "shadows": {}}
        acting = ("optimizer_step", "objective", "example_weights", "loss_terms")
        self._acting = list(dict.fromkeys(i.plugin for hook in acting for i in self.composed[hook].implementations))

    # ---- building -----------------------------------------------------------------------------------------------
    def build(self, data: Data, model: nn.Module) -> None:
        """Put data and model together; the plugins transform both, then set themselves up."""
        self.data: Data = self.composed["transform_data"].chain("data", trainer=self, data=data)
        self.info: DataInfo = self.data.info
        self.model: nn.Module = self.composed["transform_model"].chain(
            "model", trainer=self, model=model, data=self.data
        )
        self.model.to(self.device).train()
        self.plain = gathering.spread(self) if self.sharded else None
        self.replicas: int | None = getattr(self.model, "replicas", None)
        self.train_stream = self.stream("train")
        train, per_epoch = self.recipe.train, self.train_stream.batches_per_epoch
        self.total_steps = train.steps if train.steps is not None else per_epoch * (train.epochs or 0)
        strategy = self.composed["fit"].owner()
        if strategy is not None:
            with blame(strategy.plugin):
                self.total_steps = self.plugins[strategy.plugin].budget(self.total_steps, per_epoch)
        self.phase = (0, self.total_steps)
        self.masks = MaskSet(self.model)
        self.shadows = Shadows(self.model, self.masks)
        self.optimizer = optimizers.make_optimizer(self.recipe.optimizer, self.model.parameters())
        self.refresh()
        for plugin in self.plugins.values():
            with blame(plugin.name):
                plugin.setup(self)
        self.masks.hold()
        self.shadows.begin()

    def refresh(self) -> None:
        """Gather the parameters and the wrapped network again, after parameters were replaced."""
        self.parameters: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters += [p for module, _ in self.extra.values() for p in module.parameters()]
        network: nn.Module = self.model
        if self.world > 1 and not self.sharded:
            # not moved: a move from "cpu" to "cpu:0" copies, and masks would hold what no longer is the weights
            network = self.accelerator.prepare_model(self.model, device_placement=False)
            # its precision wrapper would stay on the plain module and in exports; `autocast` does its work
            for patched in ("forward", "_original_forward"):
                self.model.__dict__.pop(patched, None)
        self.network = torch.compile(network) if self.recipe.compile else network

    def add_module(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Train a plugin's own module along (class centres, scores) and keep it in checkpoints.

        Args:
            name: unique, e.g. ``flamefinder.centres``.
            module: moved to the run's device.
            optimizer: its own optimizer; None adds its parameters to the run's optimizer.
        """
        module.to(self.device)
        if optimizer is None:
            self.optimizer.add_param_group(
                {"params": list(module.parameters()), "initial_lr": self.recipe.optimizer.lr}
            )
        self.extra[name] = (module, optimizer)
        self.refresh()
        if name in self.waiting["extra"]:
            self.load_extra(name, self.waiting["extra"].pop(name))
        return module

    def load_extra(self, name: str, saved: Mapping[str, Any]) -> None:
        """Take back a module of `add_module` and its optimizer."""
        module, own = self.extra[name]
        optimizers.load_weights(module, saved["module"])
        if own is not None:
            optimizers.tree_to_state(own, saved["optimizer"])

    def group_parameters(self, names: Iterable[str], **settings: float) -> None:
        """Give parameters of the model settings of their own in the run's optimizer.

        Args:
            names: as in ``model.named_parameters()``.
            settings: ``lr`` (peak; the schedule acts on it too), ``weight_decay``, or another of the optimizer's.

        Raises:
            BadInput: a parameter that the model does not have.
        """
        optimizers.regroup(self.optimizer, self.model, names, settings)

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator of this run, seeded by (seed, name) and kept in checkpoints."""
        if name not in self.generators:
            self.generators[name] = torch.Generator().manual_seed(seed_of(self.recipe.seed, "generator", name))
            if name in self.waiting["generators"]:
                self.generators[name].set_state(self.waiting["generators"].pop(name))
        return self.generators[name]

    def shadow(self, name: str) -> dict[str, Tensor]:
        """A tensor for each parameter of the model, by its name, to be changed in place; see `plait.shadows`.

        It begins as a copy of the weights, is zero where a mask is, and goes along when the network is sliced, saved,
        resumed, or put back to a snapshot.

        Args:
            name: unique, e.g. the plugin's.
        """
        shadow = self.shadows.take(name)
        if name in self.waiting["shadows"]:
            self.shadows.load(name, self.waiting["shadows"].pop(name))
        return shadow

    def stream(self, name: str, split: str = "train", batch_size: int | None = None) -> Stream:
        """An endless, resumable stream of batches; every name shuffles differently.

        A split may bring a ``stream`` of its own, called with the arguments of `plait.data.Stream` but the split.
        """
        if name not in self.streams:
            chosen = getattr(self.data, split)
            make = getattr(chosen, "stream", None) or functools.partial(Stream, chosen)
            self.streams[name] = make(
                name,
                self.recipe.seed,
                batch_size or self.recipe.train.batch_size,
                augment=self.data.augment if split == "train" else None,
                rank=self.rank,
                world=self.world,
                workers=self.recipe.train.workers,
            )
            if name in self.waiting["streams"]:
                self.streams[name].load_state_dict(self.waiting["streams"].pop(name))
        return self.streams[name]

    # ---- one step -----------------------------------------------------------------------------------------------
    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The run's precision for a forward pass."""
        if self.recipe.precision == "fp32":
            return step.NOTHING
        context: contextlib.AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Passes inside do not average gradients over the ranks."""
        context: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self.network)
        return context

    def raw(self, model: Callable[..., Any], batch: Any) -> Any:
        """All that a model computes for a batch, with the data's ``prepare`` and ``forward``."""
        if self.data.prepare is not None:
            batch = self.data.prepare(batch)
        return self.data.forward(model, batch) if self.data.forward is not None else model(batch["input"])

    def readout(self, raw: Any, batch: Any) -> Any:
        """The outputs of the batch's examples out of all that was computed, by the data's ``readout``."""
        return raw if self.data.readout is None else self.data.readout(raw, batch)

    def call(self, model: Callable[..., Any], batch: Any) -> Any:
        """A model's outputs on the examples of a batch."""
        return self.readout(self.raw(model, batch), batch)

    def objective(self, outputs: Any, batch: Any) -> Tensor:
        """Per-example loss [B] (or [N, B]), by the plugin that replaces it or by the task.

        Raises:
            BadInput: a result that is not per example, naming the plugin.
        """
        owner = self.composed["objective"].owner()
        if owner is None:
            return optimizers.default_objective(self.info, outputs, batch)
        result = owner({"trainer": self, "outputs": outputs, "batch": batch})
        if not isinstance(result, Tensor) or result.ndim == 0:
            raise BadInput(
                f"plugin {owner.plugin!r}: its objective is one number; return the loss of each example, shape [B], "
                "so that other plugins can weight examples."
            )
        return result

    def gradients(self, batch: Any, **options: Any) -> LossReport:
        """See `plait.step.gradients`."""
        return step.gradients(self, batch, **options)

    def apply_gradients(self) -> None:
        """One update from ``p.grad``; masked weights stay exactly zero."""
        if self.world > 1:
            for module, _ in self.extra.values():
                for p in module.parameters():  # outside DDP, which averages the model's own
                    p.grad = None if p.grad is None else self.sum_over_ranks(p.grad) / self.world
        if self.recipe.optimizer.clip_norm is not None:
            replicas.clip_norm(self.parameters, self.recipe.optimizer.clip_norm, self.replicas)
        self.optimizer.step()
        for _, own in self.extra.values():
            if own is not None:
                own.step()
        if self.masks:
            self.masks.hold()

    def train_step(self, batch: Any) -> LossReport:
        """One whole step on a batch that is on the device: step wrappers, update, masks."""
        self.step += 1
        optimizers.set_lr(self.optimizer, self.recipe.scheduler, self.step - 1 - self.phase[0], self.phase[1])
        self.in_step = True

        def innermost() -> LossReport:
            report = step.gradients(self, batch)
            self.apply_gradients()
            return report

        steps = self.composed["optimizer_step"]
        report: LossReport = steps.wrap(innermost, trainer=self, batch=batch) if steps else innermost()
        if not isinstance(report, LossReport):
            names = " or ".join(repr(i.plugin) for i in steps.implementations)
            raise BadInput(f"plugin {names}: optimizer_step returned {type(report).__name__}; return the LossReport.")
        self.in_step = False
        if self.device.type == "cpu" or self.step % self.recipe.train.log_every == 0:
            loss = report.loss.item()
            if not math.isfinite(loss):
                step.refuse_non_finite(self, batch, report)
        for implementation in self.composed["update_masks"].implementations:
            with guards.failing(self, implementation.plugin):
                implementation({"trainer": self})
        if self.masks:
            if self.world > 1 and self.masks.dirty:
                guards.require_equal_masks(self)
            self.masks.hold_state(self.optimizer)
        return report

    # ---- the loop -----------------------------------------------------------------------------------------------
    def fit(self) -> None:
        """Train for the budget, or as the strategy plugin does it."""
        owner = self.composed["fit"].owner()
        if owner is not None:
            owner({"trainer": self})
        else:
            self.train_until(self.total_steps)

    def train_until(self, last_step: int) -> None:
        """Ordinary steps until ``last_step`` is done, with logging, validation and checkpoints on the way."""
        stream, every = self.train_stream, self.recipe.train.log_every
        checkpoint_every = self.recipe.checkpoint.every_steps
        while self.step < last_step:
            if self.world > 1:
                gathering.prepare_step(self, stream)
            epoch = stream.epoch
            batch = next(stream)
            with guards.failing(self, *self._acting):
                report = self.train_step(batch if self.device.type == "cpu" else batch.to(self.device))
            self.recorder.advance(self.step, report)
            if self.step % every == 0:
                terms = {name: gathering.mean(self, value) for name, value in report.terms.items()}
                self.log({"train/loss": gathering.mean(self, report.loss), "train/lr": self.lr, **terms})
            ended = stream.epoch > epoch
            if (ended and stream.epoch % self.recipe.train.evaluate_every == 0) or self.step == self.total_steps:
                self.validate()
            if guards.stop_requested(self):
                self.recorder.checkpoint(self)
                raise Interrupted(f"stopped after step {self.step} of {self.total_steps}.")
            if self.step < self.total_steps and (self.step % checkpoint_every == 0 if checkpoint_every else ended):
                self.recorder.checkpoint(self)

    def validate(self) -> None:
        """The figures on the validation split; remembers the best state if the recipe selects by it."""
        if not len(self.data.validation):
            return
        figures = evaluation.validation_figures(self)
        self.log({f"validation/{name}": found.value for name, found in figures.items()})
        if self.recipe.train.select == "best" and all(p.selectable(self) for p in self.plugins.values()):
            score = evaluation.score(figures)
            if self.best is None or score > self.best["score"]:
                self.best = {"score": score, "step": self.step, "model": self.snapshot_model()}

    def log(self, values: Mapping[str, float]) -> None:
        """Record scalars of this step: to ``metrics.jsonl``, to the loggers, and to the report's curves."""
        self.recorder.event("scalars", step=self.step, values=dict(values))

    def note(self, text: str) -> None:
        """Show the user a line, once, and keep it for the report."""
        if text not in self._notes:
            self._notes.add(text)
            self.recorder.note(text)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks (itself on one process)."""
        if self.world == 1:
            return value
        total: Tensor = self.accelerator.reduce(value.to(self.device), "sum")
        return total.to(value.device)

    @property
    def lr(self) -> float:
        """The present learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    # ---- state --------------------------------------------------------------------------------------------------
    def snapshot_model(self) -> dict[str, Any]:
        """A copy of weights, buffers, masks and shadows."""
        return {
            "weights": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
            "masks": self.masks.state_dict(),
            "shadows": self.shadows.state_dict(),
        }

    def restore_model(self, snapshot: Mapping[str, Any]) -> None:
        """Put back what `snapshot_model` took; masked weights are zeroed."""
        self.model.load_state_dict(snapshot["weights"])
        self.masks.load_state_dict(snapshot["masks"])
        for name, saved in snapshot.get("shadows", {}).items():
            self.shadows.load(name, saved)
        self.masks.hold_state(self.optimizer)

    def begin_phase(self, steps: int, *, fresh: bool = False) -> None:
        """Start anew over the next ``steps`` steps (rounds, fine-tuning): the learning-rate schedule, and the choice of
        the best state on validation.

        Args:
            steps: length of the phase.
            fresh: also forget the optimizer's state (momentum, moments).
        """
        self.phase, self.best = (self.step, steps), None
        if fresh:
            self.optimizer.state.clear()

    def end_phase(self) -> None:
        """Put back the best state of this phase, if the recipe selects by validation and the phase was validated."""
        if self.recipe.train.select == "best" and self.best is not None:
            self.restore_model(self.best["model"])

    def slice_tensors(self, plan: Mapping[str, Sequence[tuple[int, Tensor]]]) -> None:
        """Shrink parameters, buffers, masks, shadows and optimizer state physically, in the middle of a run.

        Args:
            plan: tensor name -> (dimension, kept positions int64) pairs. Module attributes that repeat a size
                (``out_channels``) are the caller's to set.
        """
        if self.world > 1:
            gathering.release(self)
        optimizers.slice_tensors(self.model, self.optimizer, self.masks, plan)
        self.shadows.slice_tensors(plan)
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, between two steps; see `plait.saving`."""
        return saving.state_dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        saving.load_state_dict(self, state)
