"""BiFP woven into a plait run: the engine over the core's masks and gradients, and the fairness term in both losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Data
from plait.data.batches import Subset
from plait.data.streams import Stream, column, in_order
from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import Predictions, predict
from plait.woven import BATCHES

from . import figures, importance
from .batches import FairSplit
from .channels import Channels
from .engine import BiFPEngine, MaskGradients
from .errors import FairpruneError
from .lagrangian import DualAscent
from .measures import GroupFigures, group_figures
from .options import FairpruneOptions
from .relaxation import GapPenalty
from .units import Units, Weights, prunable_weights

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


def divided(options: FairpruneOptions, trainer: Trainer, data: Data) -> Data:
    """The data with a training split that is drawn from in proportion, or in the two parts of the paper's protocol.

    Raises:
        FairpruneError: the paper's protocol over batches that are the caller's, or that have a sampler of their own.
    """
    paper = options.protocol == "paper" and options.dense_share > 0
    sampled = trainer.recipe.data.name == BATCHES or hasattr(data.train, "stream")
    if sampled and paper:
        raise FairpruneError(
            "protocol = 'paper' divides the training split, and these batches are drawn by somebody else: take"
            " protocol = 'scratch', or dense_share = 0 with a network that is trained already"
        )
    if sampled or not (options.stratify or paper):
        return data
    share = options.pruning_share if paper else None
    drop_last = trainer.recipe.train.drop_last
    split = FairSplit(data.train, data.info.num_classes, options.stratify, share, trainer.recipe.seed, drop_last)
    return replace(data, train=split)


class Weave:
    """What the plugin keeps during a run.

    Args:
        options: the plugin's options.
        trainer: the run, its data divided and its model built.

    Raises:
        FairpruneError: nothing to prune, a sparsity that cannot be reached, groups that the measure cannot compare, or
            a recipe under which the penalty is not what it says.
    """

    def __init__(self, options: FairpruneOptions, trainer: Trainer) -> None:
        self.options, self.trainer = options, trainer
        self.fair = bool(options.of_mask or options.of_weights or options.of_dense or options.dual_rate)
        _refuse(options, trainer, self.fair)
        data, info = trainer.data, trainer.info
        groups, labels = column(data.train, "group"), column(data.train, "label")
        self.num_groups = info.num_groups or int(groups.max()) + 1
        self.names = list(data.names.get("group", ())) or [str(group) for group in range(self.num_groups)]
        empty = torch.bincount(groups * info.num_classes + labels, minlength=self.num_groups * info.num_classes) == 0
        if self.fair and bool(empty.any()):
            group, label = divmod(int(empty.nonzero()[0]), info.num_classes)
            trainer.note(
                f"fairprune: no training example of group {group} has label {label}; the groups differ by that"
            )
        total = trainer.sum_over_ranks if trainer.world > 1 else None
        self.penalty = GapPenalty.of(options, labels, groups, info.num_classes, self.num_groups, total, trainer.world)
        weights = dict(trainer.model.named_parameters())
        self.channels: Channels | None = None
        if options.structure == "channels":
            self.channels = Channels.of(trainer.model, self._example(), options.include, options.exclude)
        units: Units = self.channels or Weights(
            {name: weights[name].shape for name in prunable_weights(trainer.model, options.include, options.exclude)}
        )
        masks = trainer.masks.own("fairprune", units.names)
        generator = trainer.generator("fairprune")
        self.engine = BiFPEngine(options, trainer.total_steps, units, weights, masks, generator)
        self.schedule = self.engine.schedule
        self.draws = bool(self.schedule.events) and (self.engine.learns or options.scores in ("snip", "fairgrape"))
        self.stream: Stream | None = trainer.stream("fairprune") if self.draws else None
        self.curve_steps = self._curve_steps()
        self.curve: list[list[float]] = []
        self.dense: dict[str, list[float]] = {}
        self.ascent = None
        if options.dual_rate:
            self.ascent = DualAscent(options.of_weights, options.dual_rate, trainer.device)
        self.strength: float | None = None
        self.batch: Any = None
        self.rows: Tensor | None = None
        if isinstance(data.train, FairSplit):
            data.train.dense_steps = self.schedule.start if options.protocol == "paper" else 0
        elif options.protocol == "paper" and options.dense_share:
            raise FairpruneError(
                "the training split was divided for protocol = 'paper', and another plugin replaced it after that: name"
                " that plugin before fairprune"
            )
        if self._phases and self.schedule.start:
            trainer.begin_phase(self.schedule.start)

    @property
    def _phases(self) -> bool:
        """Whether the learning-rate schedule starts anew when the weights are pruned."""
        return bool(self.schedule.events) and (self.options.protocol == "paper" or self.options.rewind)

    # ---- training -----------------------------------------------------------------------------------------------
    def terms(self, trainer: Trainer, outputs: Tensor, batch: Any) -> dict[str, Tensor]:
        """``gap``: lambda of the problem in hand times the penalty; nothing where lambda is 0."""
        options = self.options
        pruning = trainer.step > self.schedule.start or not self.schedule.events
        strength = self.strength
        ascent = self.ascent if pruning and strength is None else None
        if strength is None:
            strength = options.of_weights if pruning else options.of_dense
        if not strength and ascent is None:
            return {}
        if self.strength is None:
            self._refuse_parts(batch)
        penalty = self.penalty(outputs, batch["label"], batch["group"], trainer.share, below=ascent is not None)
        if ascent is not None:
            return {"gap": ascent.term(penalty)}
        return {"gap": penalty if strength == 1 else strength * penalty}

    def before(self, trainer: Trainer, batch: Any) -> None:
        """Before a weight step: the first mask step where there is no dense phase; the batch of the implicit term."""
        self.rows = batch["index"]
        implicit = self.options.hypergradient == "ig"
        if trainer.step == 1 and self.engine.due(0):
            self.batch = batch if implicit else None
            self._begin(trainer)
            self._select(trainer, 0)
        self.batch = batch if implicit and self.engine.due(trainer.step) else None

    def _refuse_parts(self, batch: Any) -> None:
        """Raise `FairpruneError` for a part of the step's batch: the gap of one group alone is no gap."""
        rows = self.rows
        if rows is None or len(batch["group"]) >= len(rows) or not bool(torch.isin(batch["index"], rows).all()):
            return
        raise FairpruneError(
            f"another plugin computes the loss on {len(batch['group'])} of the batch's {len(rows)} examples, on which"
            " the gap between the groups is another one: take a way of that plugin that looks at whole batches"
            " (per_group_whole, say), or weight_strength = 0"
        )

    def update(self, trainer: Trainer) -> None:
        """After a weight step: what is due of dual ascent, mask step and measurement."""
        step = trainer.step
        if self.ascent is not None:
            self.ascent.step()
        if self.engine.due(step):
            if step == self.schedule.start:
                self._begin(trainer)
            self._select(trainer, step)
        self.batch = None
        if step in self.curve_steps:
            self._measure(trainer, step)

    def _begin(self, trainer: Trainer) -> None:
        """What is known of the dense network when pruning begins."""
        if self.options.protocol != "paper" or trainer.recipe.data.name == BATCHES:
            return
        for name in ("validation", "test"):
            split = getattr(trainer.data, name)
            if len(split):
                outputs, fields = predict(trainer.forward, trainer.model, split)
                self.dense[name] = self._figures(outputs, fields).accuracy.tolist()
        if self.options.measure == "degradation":
            rows = getattr(trainer.data.train, "pruning_rows", torch.arange(len(trainer.data.train)))
            outputs, fields = predict(trainer.forward, trainer.model, Subset(trainer.data.train, rows))
            self.penalty.remember(outputs, fields["label"], fields["group"])

    def _select(self, trainer: Trainer, step: int) -> None:
        """One mask step."""
        gradients = self._gradients(trainer) if self.engine.learns else None
        update = self.engine.update(step, gradients, partial(self._importance, trainer))
        trainer.masks.changed()
        trainer.log(
            {
                "fairprune/kept": update.kept / self.schedule.size,
                "fairprune/churn": update.changed / self.schedule.size,
            }
        )
        for note in update.notes:
            trainer.note(f"fairprune: {note}")
        if self._phases and (step == self.schedule.start or self.options.rewind):
            later = [event for event in self.schedule.events if event > step]
            end = later[0] if later and self.options.rewind else trainer.total_steps
            trainer.begin_phase(end - step, fresh=True)

    def _gradients(self, trainer: Trainer) -> MaskGradients:
        assert self.stream is not None
        upper = self._dense_gradients(trainer, self._draw(trainer), self.options.of_mask)
        lower = None
        if self.batch is not None:
            self.strength = self.options.of_weights if self.ascent is None else self.ascent.value
            report = trainer.gradients(self.batch, probe=True, freeze_statistics=True)
            self.strength = None
            lower = self._of_units(trainer, report.gradients or [])
        return MaskGradients(upper, lower)

    def _draw(self, trainer: Trainer) -> Any:
        """The next batch of the mask's own stream."""
        assert self.stream is not None
        return next(self.stream).to(trainer.device)

    def _dense_gradients(
        self, trainer: Trainer, batch: Any, strength: float, rows: Tensor | None = None
    ) -> list[Tensor]:
        """The gradient of the loss with this lambda at the masked weights, at every position."""
        with self._mask_pass(trainer, strength):
            report = trainer.gradients(batch, rows=rows, probe=True, freeze_statistics=True)
        return self._of_units(trainer, report.gradients or [])

    def _of_units(self, trainer: Trainer, gradients: list[Tensor | None]) -> list[Tensor]:
        """Those of the units' tensors; zeros where the loss does not reach one."""
        by_tensor = {id(p): gradient for p, gradient in zip(trainer.parameters, gradients, strict=True)}
        parameters = dict(trainer.model.named_parameters())
        of_units = [(parameters[name], by_tensor.get(id(parameters[name]))) for name in self.engine.units.names]
        return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in of_units]

    @contextmanager
    def _mask_pass(self, trainer: Trainer, strength: float) -> Iterator[None]:
        """This lambda, this stream's share of the rows, and masks of ones, so that gradients show everywhere.

        Pruned weights are zero all the same, so the network is the masked one.
        """
        masks, share = [mask.clone() for mask in self.engine.masks], trainer.share
        for mask in self.engine.masks:
            mask.fill_(1)
        if self.stream is not None and trainer.world > 1:
            trainer.share = self.stream.share(self.stream.drawn - 1)
        self.strength = strength
        try:
            yield
        finally:
            self.strength, trainer.share = None, share
            torch._foreach_copy_(self.engine.masks, masks)

    def _importance(self, trainer: Trainer) -> Tensor:
        """The score [d] of a baseline."""
        engine, options = self.engine, self.options
        theta = engine.dense()
        if options.scores == "fpgm":
            assert self.channels is not None
            return importance.fpgm(self.channels.filters(trainer.model))
        batches = [self._draw(trainer) for _ in range(options.importance_batches)]
        if options.scores == "snip":
            return importance.snip(theta, [self._dense_gradients(trainer, batch, 0.0) for batch in batches])
        by_group = [
            [
                self._dense_gradients(trainer, batch, 0.0, (batch["group"] == group).nonzero().flatten())
                for batch in batches
                if bool((batch["group"] == group).any())
            ]
            for group in range(self.num_groups)
        ]
        return importance.fairgrape(theta, by_group, list(engine.units.layers.values()))

    # ---- measurements -------------------------------------------------------------------------------------------
    def _curve_steps(self) -> frozenset[int]:
        """Steps after which the validation split is looked at."""
        start, total, points = self.schedule.start, self.trainer.total_steps, self.options.curve_points
        if not points or self.trainer.recipe.data.name == BATCHES or not len(self.trainer.data.validation):
            return frozenset()
        return frozenset(max(1, start + round(number * (total - start) / points)) for number in range(1, points + 1))

    def _measure(self, trainer: Trainer, step: int) -> None:
        outputs, fields = predict(trainer.forward, trainer.model, trainer.data.validation)
        now = self._figures(outputs, fields)
        sparsity = 100 * (1 - int(self.engine.kept.sum()) / self.schedule.size)
        self.curve.append([step, sparsity, now.overall, now.worst, now.accuracy_gap])
        said = {"fairprune/validation_gap": now.accuracy_gap, "fairprune/validation_worst": now.worst}
        trainer.log(said if self.ascent is None else said | {"fairprune/multiplier": self.ascent.value})

    def _figures(self, outputs: Tensor, fields: Mapping[str, Tensor]) -> GroupFigures:
        return group_figures(
            outputs.argmax(1), fields["label"], fields["group"], self.num_groups, self.trainer.info.num_classes
        )

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """Card section 4, with every group by name."""
        clean = predictions["clean"]
        now = self._figures(clean.outputs, clean.fields)
        which = "test" if clean.view.split is None else "validation"
        dense = torch.tensor(self.dense[which], dtype=torch.float64) if which in self.dense else None
        if now.constant:
            trainer.note(
                f"fairprune: {now.largest_class:.1f} % of the predictions are one class; its gaps mean nothing"
            )
        given: dict[str, Metric | Table | Plot] = {}
        given |= figures.fairness(now, dense)
        given |= figures.sparsity(self.engine, predictions.model)
        if self.options.protocol == "paper" and self.curve_steps:
            given["steps_to_dense_gap"] = self._steps_to_dense_gap()
        if self.channels is not None and predictions.model is not trainer.model:
            given["export_error"] = Metric(self.channels.error, "logits", "lower", "narrowed against masked network")
        given |= figures.tables(self.engine, now, self.names, dense)
        return given | figures.plots(self.engine, self.curve, self.names, now, dense)

    def _steps_to_dense_gap(self) -> Metric:
        """Steps since pruning began until the validation gap is within a point of the dense network's, and stays."""
        dense = self.dense.get("validation")
        value, why = nan, "never"
        if dense:
            limit = max(dense) - min(dense) + 1
            for step, _, _, _, gap in reversed([entry for entry in self.curve if self.engine.final(int(entry[0]))]):
                if gap > limit:
                    break
                value, why = step - self.schedule.start, f"looked at {self.options.curve_points} times"
        return Metric(float(value), "steps", "lower", why)

    # ---- afterwards ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """With whole channels the copy without the removed ones; with single weights the copy as it is."""
        if self.channels is None:
            return model
        batch = next(in_order(trainer.data.test, 256)).to(trainer.device)
        wanted = trainer.call(model.eval(), batch)
        narrow = self.channels.narrowed(model, self._example(), self.engine.kept)
        self.channels.error = float((wanted - trainer.call(narrow.eval(), batch)).abs().max())
        return narrow

    def _example(self) -> Tensor:
        """Two prepared test inputs on the run's device, [2, ...]."""
        trainer = self.trainer
        batch = trainer.data.test.__getitems__(torch.zeros(2, dtype=torch.int64)).to(trainer.device)
        inputs: Tensor = (trainer.data.prepare(batch) if trainer.data.prepare else batch)["input"]
        return inputs

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The engine, lambda, and what was measured."""
        return {
            "engine": self.engine.state_dict(),
            "curve": [list(entry) for entry in self.curve],
            "dense": {name: list(values) for name, values in self.dense.items()},
            "reference": self.penalty.reference,
            "multiplier": None if self.ascent is None else self.ascent.value,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, on a freshly built trainer."""
        self.engine.load_state_dict(state["engine"])
        self.curve = [[float(value) for value in entry] for entry in state["curve"]]
        self.dense = {name: [float(value) for value in values] for name, values in state["dense"].items()}
        self.penalty.reference = state["reference"]
        if self.ascent is not None:
            self.ascent.load(float(state["multiplier"]))


def _refuse(options: FairpruneOptions, trainer: Trainer, fair: bool) -> None:
    """Refuse recipes under which the method is not what it says.

    Raises:
        FairpruneError: naming the option.
    """
    parts = trainer.recipe.train.accumulate
    if fair and parts > 1:
        raise FairpruneError(
            "the fairness term is a gap between groups of the whole batch, not a mean over examples, so a batch cannot"
            f" be computed in parts: leave out train.accumulate={parts} (a smaller train.batch_size saves memory too),"
            " or set strength = 0"
        )
    if options.scores == "fairgrape" and trainer.world > 1:
        raise FairpruneError(
            "scores = 'fairgrape' looks at each group by itself, and a process may hold none of one: run one process"
        )
    if options.measure == "degradation" and trainer.recipe.data.name == BATCHES:
        raise FairpruneError(
            "measure = 'degradation' looks at the dense network's predictions on the training data, which a caller's"
            " loop does not show: take measure = 'accuracy', or plait's own run"
        )
    strategy = trainer.composed["fit"].owner()
    if strategy is not None and (options.protocol == "paper" or options.rewind):
        what = "protocol = 'paper'" if options.protocol == "paper" else "rewind = true"
        raise FairpruneError(
            f"{what} divides the training into phases, and so does plugin {strategy.plugin!r}: take protocol ="
            " 'scratch' without rewind, or one of the two plugins"
        )
