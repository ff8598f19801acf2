"""Chase woven into a plait run: the engine over the core's masks and dense gradients, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data.batches import ByShape, in_parts
from plait.data.streams import in_order
from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import Predictions
from plait_chase.channels import ChannelGroup, rounded_alive
from plait_chase.chase import initialise
from plait_chase.config import ChaseConfig
from plait_chase.engine import ChaseEngine, present_channels
from plait_chase.errors import ChaseError
from plait_chase.flops import TrainFlops, computed_weights, dense_macs, layer_costs, layer_table, sparse_macs
from plait_chase.groups import find_channel_groups
from plait_chase.options import ChaseOptions
from plait_chase.shrink import Plan, apply_shrink, bn_recalibrate, copied, shrink_plan, unwrapped, update_sizes
from plait_chase.timing import compare_throughput
from plait_chase.weights import NOT_INCLUDED, owned_weights, unreached

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

CONFIG_FIELDS = tuple(ChaseConfig.__dataclass_fields__)
TIMED_WORK = 2e9
"""MACs per timed batch; larger networks are timed on smaller batches, so that timing never takes minutes."""


def initialised(options: ChaseOptions, model: nn.Module) -> nn.Module:
    """The model out of its wrappers (``torch.compile``, data parallelism), re-initialised when the options say so."""
    model = unwrapped(model)
    if options.initialise is not None:
        initialise(model, options.initialise)
    return model


class Weave:
    """What the plugin keeps during a run.

    Args:
        options: the plugin's options.
        trainer: the run, its data and model built.

    Raises:
        ChaseError: no prunable channel, unreachable channel sparsity, intervals longer than the run.
    """

    def __init__(self, options: ChaseOptions, trainer: Trainer) -> None:
        self.options, self.trainer = options, trainer
        model = trainer.model
        self.example = example_input(trainer)
        config = ChaseConfig(**{name: getattr(options, name) for name in CONFIG_FIELDS})
        groups: tuple[ChannelGroup, ...] = ()
        if options.channel_sparsity > 0:
            groups = find_channel_groups(model, self.example, prune_residual=options.prune_residual)
        owned = owned_weights(
            model,
            groups,
            include=options.include,
            exclude=options.exclude,
            computed=computed_weights(model, self.example),
            without_gradient=_without_gradient(trainer, self.example),
        )
        for group in groups:
            layers = (*group.producers, *group.consumers)
            left_out = [n for n, why in owned.alone.items() if n.rpartition(".")[0] in layers and why == NOT_INCLUDED]
            if left_out:
                who = f"{left_out[0]!r} of the channel group {group.producer!r}"
                raise ChaseError(f"include leaves out {who}; add it, or use channel_sparsity=0")
        self.masks = trainer.masks.own("chase", owned.names)
        try:
            generator = trainer.generator("chase")
            self.engine = ChaseEngine(config, trainer.total_steps, self.masks, owned.groups, generator)
        except ChaseError as error:
            raise ChaseError("; ".join([str(error), *owned.remarks])) from error
        for remark in owned.remarks:
            trainer.note(f"chase: {remark}")
        self.engine.start()
        trainer.masks.changed()
        trainer.masks.keep_dense("chase", self.engine.needs_gradient(1))
        self.costs = layer_costs(model, self.example)
        self.work = TrainFlops(self.costs)
        self.nnz = self.engine.nnz()
        self.noted: set[str] = set()
        self.shrink_error = float("nan")
        self.original = copied(model) if options.shrink_during else None

    # ---- training -----------------------------------------------------------------------------------------------
    def update(self, trainer: Trainer) -> None:
        """What is due after the step that was just made."""
        engine, step = self.engine, trainer.step
        self.work.add(trainer.recipe.train.batch_size, self.nnz, engine.needs_gradient(step))
        parameters = dict(trainer.model.named_parameters()) if self._due(step) else {}

        def gradient(name: str) -> Tensor | None:
            """None where this step's batch gave no gradient: a branch that it did not take."""
            return None if parameters[name].grad is None else trainer.masks.dense_gradient(name)

        update = engine.update(step, parameters, gradient)
        notes = update.notes
        changed = update.changed
        if step == engine.schedule.total_steps:
            last = engine.finish(parameters)
            notes, changed = (*notes, *last.notes), True
        trainer.masks.forget_dense()
        trainer.masks.keep_dense("chase", engine.needs_gradient(step + 1))
        if changed:
            trainer.masks.changed()
            self.nnz = engine.nnz()
            self._log(trainer)
        for note in notes:
            if note not in self.noted:
                self.noted.add(note)
                trainer.note(f"chase, step {step}: {note}")
        if update.channels_removed and self.options.shrink_during:
            trainer.masks.hold_state(trainer.optimizer)
            self._slice(self._plan(trainer.model))

    def _due(self, step: int) -> bool:
        engine = self.engine
        return engine.explores(step) or engine.removes_channels(step) or step == engine.schedule.total_steps

    def _log(self, trainer: Trainer) -> None:
        values = {"chase/density": sum(self.nnz.values()) / self.engine.total}
        if self.engine.channels:
            values["chase/channels"] = float(self.engine.alive_channels)
        trainer.log(values)

    def _plan(self, model: nn.Module, present: Mapping[str, Tensor] | None = None) -> Plan:
        alive = present or rounded_alive(self.engine.alive_now(), self.options.round_channels)
        return shrink_plan(model, self.engine.groups, alive)

    def _slice(self, plan: Plan) -> None:
        if not plan:
            return
        trainer = self.trainer
        trainer.slice_tensors(plan)
        for module in {name.rpartition(".")[0] for name in plan}:
            update_sizes(trainer.model.get_submodule(module))
        self.masks = {name: trainer.masks.mask[name] for name in self.masks}
        self.engine.compact(plan, self.masks)

    def is_final(self) -> bool:
        """Whether the channels are final and the weights within the budget."""
        engine = self.engine
        final = engine.step >= engine.schedule.removal_end or not engine.config.channel_sparsity
        return final and sum(self.nnz.values()) <= engine.budget

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Engine, counted work, and which notes were shown."""
        return {
            "engine": self.engine.state_dict(),
            "work": self.work.state_dict(),
            "nnz": self.nnz,
            "noted": sorted(self.noted),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, on a freshly built trainer."""
        self.engine.load_state_dict(state["engine"])
        original = self.engine.layout.present
        present = {name: kept[original[name]] for name, kept in present_channels(state["engine"]).items()}
        if any(not bool(kept.all()) for kept in present.values()):
            self._slice(self._plan(self.trainer.model, present))
        self.work.load_state_dict(state["work"])
        self.nnz = {name: int(count) for name, count in state["nnz"].items()}
        self.noted = set(state["noted"])
        self.trainer.masks.keep_dense("chase", self.engine.needs_gradient(self.engine.step + 1))

    # ---- afterwards ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """Slice the dead channels off ``model`` (a copy), and measure by how much that changes its outputs."""
        first = next(in_order(trainer.data.test, min(256, getattr(trainer.data.test, "at_once", 256))))
        batches = in_parts(first.to(trainer.device))
        model.eval()
        wanted = [trainer.call(model, batch) for batch in batches]
        apply_shrink(model, self._plan(model))
        if self.options.bn_recalibrate:
            prepared = (_prepared(trainer, batch) for batch in in_order(trainer.data.train, 256))
            bn_recalibrate(model, prepared, trainer.device)
        model.eval()
        errors = [want - trainer.call(model, batch) for want, batch in zip(wanted, batches, strict=True)]
        self.shrink_error = max(float(error.abs().max()) for error in errors)
        return model

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """Requested against achieved; for the exported network also its exactness, its MACs and its speed."""
        engine, exported = self.engine, predictions.model is not trainer.model
        nnz = sum(engine.nnz().values())
        small = predictions.model if exported else copied(trainer.model)
        if not exported:
            apply_shrink(small, self._plan(small))
        rows = layer_table(trainer.model, self.masks, engine.layout.shapes, small)
        inside = sum(prod(dict(small.named_parameters())[row["tensor"]].shape) for row in rows)
        present = layer_costs(trainer.model, self.example) if self.options.shrink_during else self.costs
        dense, narrow = dense_macs(self.costs), dense_macs(layer_costs(small, self.example))
        figures: dict[str, Metric | Table | Plot] = {
            "density": Metric(nnz / engine.total, "", "lower", f"requested {self.options.density}"),
            "density_inside": Metric(nnz / inside, "", "neither", "of the shrunk network"),
            "nonzeros": Metric(nnz, "weights", "lower", f"K = {engine.budget} of N = {engine.total}"),
            "macs": Metric(narrow if exported else dense_macs(present), "MACs", "lower"),
            "macs_sparse": Metric(sparse_macs(present, engine.nnz()), "MACs", "lower", "if zeros were free"),
            "mac_ratio": Metric(narrow / dense, "", "lower", "dense kernels, shrunk over dense"),
            "train_work": Metric(self.work.ratio, "", "lower", "theoretical share of dense training"),
        }
        if engine.channels:
            alive = engine.alive_channels
            note = f"requested {self.options.channel_sparsity}"
            figures["channels"] = Metric(alive, "channels", "lower", f"of {engine.channels} prunable")
            figures["channel_sparsity"] = Metric(1 - alive / engine.channels, "", "neither", note)
            if alive < engine.channels:
                note = "share of the removed channels that were sparser than most of their layer"
                figures["removed_sparser"] = Metric(engine.removed_sparser, "", "neither", note)
        if exported:
            exact = "" if not self.options.bn_recalibrate else "statistics were re-estimated"
            figures["shrink_error"] = Metric(self.shrink_error, "logits", "lower", exact)
            if self.options.timing_repeats:
                figures["speed"] = self._timed(trainer, small)
        columns = list(rows[0])
        figures["layers"] = Table(
            "Layers before and after the shrink", columns, [[row[c] for c in columns] for row in rows]
        )
        return figures

    def _timed(self, trainer: Trainer, small: nn.Module) -> Table:
        dense = self.original if self.original is not None else trainer.model
        most = int(max(1, min(self.options.timing_batch, TIMED_WORK // max(1, dense_macs(self.costs)))))
        repeats = max(2, self.options.timing_repeats)
        rows: list[list[Any]] = []
        for size in dict.fromkeys((most, 1)):
            batch = self.example[:1].expand(size, *self.example.shape[1:]).contiguous()
            result = compare_throughput(dense.to(trainer.device), small, batch, repeats=repeats, warmups=5)
            for name, t in (("dense", result.dense), ("shrunk", result.shrunk)):
                times = [1e3 * t.median, 1e3 * t.quartile_low, 1e3 * t.quartile_high]
                rows.append([size, name, size / t.median, *times, result.dense.median / t.median])
        how = f"{result.threads} thread(s), {repeats} interleaved repeats after 5 warm-ups, {result.machine}"
        columns = ["batch", "network", "examples/s", "median ms", "quartile 1 ms", "quartile 3 ms", "speed-up"]
        return Table(f"Throughput and latency: {how}", columns, rows)


def example_input(trainer: Trainer) -> Tensor:
    """Two prepared test inputs on the run's device, [2, ...]."""
    return _prepared(trainer, trainer.data.test.__getitems__(torch.zeros(2, dtype=torch.int64)).to(trainer.device))


def _without_gradient(trainer: Trainer, example: Tensor) -> set[str]:
    """Parameters that the loss does not reach, tried on a few training examples.

    Where plugins bring an objective or terms of their own, which are not set up yet, whatever the model returns counts
    as the loss. Of batches that are lists by shape a few examples may take one branch only, so there what counts is
    what the model gives for an input alone, as it is traced.
    """
    train = trainer.recipe.train
    rows = torch.arange(min(8, max(1, train.batch_size // train.accumulate), len(trainer.data.train)))
    batch = trainer.data.train.__getitems__(rows).to(trainer.device)

    def outputs(model: nn.Module) -> Any:
        if isinstance(batch, ByShape):
            return model(example)
        if trainer.composed["objective"].owner() is None and not trainer.composed["loss_terms"]:
            return trainer.objective(trainer.call(model, batch), batch)
        return trainer.forward.raw(model, batch)

    return unreached(trainer.model, outputs)


def _prepared(trainer: Trainer, batch: Any) -> Tensor:
    batch = batch.to(trainer.device)
    inputs: Tensor = (trainer.data.prepare(batch) if trainer.data.prepare else batch)["input"]
    return inputs
