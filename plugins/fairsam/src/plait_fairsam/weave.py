"""FairSAM woven into a plait run: the library's step over the core's repeatable gradients, and its figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.data import Batch, Data
from plait.data.streams import column, in_order
from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import Predicted, Predictions, View
from plait.training.woven import LossReport

from .baselines import GroupDRO, group_gap_penalty
from .corruptions import Corruption, check_images
from .errors import FairsamError
from .metrics import FairnessReport, collapse_warnings, fairness_report, gap, group_rate
from .options import FairsamOptions
from .sam import FairSAM, Losses
from .weights import AdaptiveWeights, TableWeights, cell_counts, weight_table

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

UNITS: Mapping[str, tuple[str, Any]] = {
    "clean_accuracy": ("%", "higher"),
    "clean_accuracy_worst_group": ("%", "higher"),
    "clean_gap": ("points", "lower"),
    "corrupted_accuracy": ("%", "higher"),
    "corrupted_accuracy_worst_group": ("%", "higher"),
    "corrupted_gap": ("points", "lower"),
    "mcdd": ("points", "lower"),
    "relative_degradation": ("", "lower"),
    "cdd_signed": ("points", "neither"),
    "equal_opportunity_difference": ("points", "lower"),
    "demographic_parity_difference": ("points", "lower"),
}


class Weave:
    """What the plugin keeps during a run.

    Args:
        options: the plugin's options.
        trainer: the run, its data transformed and its model built.

    Raises:
        FairsamError: a single group in the training split, labels or groups out of range, an unknown corruption, test
            data that cannot be corrupted.
    """

    def __init__(self, options: FairsamOptions, trainer: Trainer) -> None:
        self.options = options
        if options.penalty and trainer.recipe.train.accumulate > 1:
            raise FairsamError(
                f"penalty={options.penalty:g} is a gap between groups of the whole batch, not a mean over examples, so"
                f" a batch cannot be computed in parts: leave out train.accumulate={trainer.recipe.train.accumulate}"
                " (a smaller train.batch_size saves memory too) or the penalty"
            )
        if options.penalty and trainer.world > 1:
            trainer.note(
                "fairsam: the penalty is a gap between the groups of each process's own part of the batch, averaged"
                f" over {trainer.world} processes; one process gives other figures"
            )
        for name in options.corruptions:
            Corruption(name, options.severities[0])
        info, train = trainer.info, trainer.data.train
        fields = getattr(train, "fields", None) or train.__getitems__(torch.zeros(1, dtype=torch.int64))
        self.grouped, self.classes = "group" in fields, info.task == "classification" and "label" in fields
        if options.corruptions and corruptible(trainer):
            require_images(trainer.data)
        groups = column(train, "group") if self.grouped else torch.zeros(len(train), dtype=torch.int64)
        labels, num_classes = torch.zeros_like(groups), 1
        if self.classes:
            labels, num_classes = column(train, "label"), info.num_classes
        least = 2 if options.by_group else 1
        counts = cell_counts(groups, labels, num_groups=info.num_groups or None, num_classes=num_classes, least=least)
        self.num_groups = counts.shape[0]
        if self.grouped and not info.num_groups:
            require_groups(trainer.data, self.num_groups)
        self.names = list(trainer.data.names.get("group", ())) or [str(a) for a in range(self.num_groups)]
        self.rule: TableWeights | AdaptiveWeights
        reduce = trainer.sum_over_ranks if trainer.world > 1 else None
        if options.weights == "adaptive":
            per_group = counts.sum(1)
            self.rule = AdaptiveWeights(per_group, eta_q=options.eta_q, start=options.adaptive_start, reduce=reduce)
        elif options.weights == "groupdro":
            self.rule = GroupDRO(counts.sum(1), eta_q=options.eta_q, reduce=reduce)
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.rule = TableWeights(weight_table(counts, options.weights, power=options.weights_power))
            for warning in caught:
                trainer.note(f"fairsam: {warning.message}")
        self.sam = FairSAM(
            trainer.parameters,
            None,
            rho=options.rho,
            perturbation=options.perturbation,
            asam=options.asam,
            eta=options.eta,
            interval=options.interval,
            replicas=trainer.replicas,
        )
        self.passes = 0
        self.focus: tuple[Tensor, float] | None = None

    def weights(self, batch: Any) -> Tensor:
        """v_i, [B] float32; in a pass that looks at one group only, weights that make the loss that group's mean."""
        if self.focus is not None:
            group, factor = self.focus  # by group and not by row: an accumulating run passes parts of the batch
            inside: Tensor = batch["group"] == group
            return inside * factor
        known = ("group", self.grouped), ("label", self.classes)
        groups, labels = (batch[name] if there else torch.zeros_like(batch["index"]) for name, there in known)
        return self.rule(groups, labels)

    def penalty(self, batch: Any, per_example: Tensor) -> dict[str, Tensor]:
        """``group_gap``: penalty x gap between the groups' mean losses, or nothing."""
        if not self.options.penalty or self.focus is not None:
            return {}
        return {"group_gap": self.options.penalty * group_gap_penalty(per_example, batch["group"], self.num_groups)}

    def step(self, trainer: Trainer, batch: Any) -> LossReport:
        """One FairSAM step on the core's gradients, then the update."""
        if len(self.sam.parameters) != len(trainer.parameters):
            self.sam.rebind(trainer.parameters)
        passes = _Passes(self, trainer, batch)
        report = self.sam.step(passes, groups=batch["group"] if self.grouped else None, apply=False)
        if isinstance(self.rule, AdaptiveWeights):
            losses = passes.first if isinstance(self.rule, GroupDRO) else report.per_example
            assert losses is not None
            if len(losses) == len(batch["group"]):
                self.rule.update(losses, batch["group"])
        self.passes += report.evaluations
        trainer.apply_gradients()
        assert passes.last is not None
        passes.last.loss, passes.last.per_example = report.loss, report.per_example
        return passes.last

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """The card's section 4 on the corruption views, with every group by name."""
        if not (self.grouped and self.classes):  # no accuracies of groups: the task's own figures say how it went
            return {"passes_per_step": Metric(self.passes / max(1, trainer.step), "passes", "lower")}
        clean = predictions["clean"]
        cells = {
            (str(view.tags["corruption"]), int(view.tags["severity"])): predictions[name].outputs.argmax(1)
            for name, view in predictions.tagged("corruption").items()
        }
        if not cells:
            return self._clean(trainer, clean)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = fairness_report(
                clean.outputs.argmax(1),
                cells,
                clean.fields["label"],
                clean.fields["group"],
                num_groups=self.num_groups,
                num_classes=trainer.info.num_classes,
            )
        notes = [str(w.message) for w in caught] + collapse_warnings(report.clean, trainer.info.num_classes)
        for note in notes:
            trainer.note(f"fairsam: {note}")
        figures: dict[str, Metric | Table | Plot] = {}
        for name, value in report.summary().items():
            unit, better = UNITS.get(name, ("%", "higher"))
            figures[name] = Metric(value, unit, better, "; ".join(notes) if name == "mcdd" else "")
        figures["passes_per_step"] = Metric(self.passes / max(1, trainer.step), "passes", "lower")
        return figures | self._tables(report)

    def _clean(self, trainer: Trainer, clean: Predicted) -> dict[str, Metric | Table | Plot]:
        """The figures that need no corrupted view (on the validation split), to choose rho by."""
        hits, groups = clean.outputs.argmax(1), clean.fields["group"]
        accuracy = group_rate(hits == clean.fields["label"], groups, self.num_groups)
        figures = {
            "clean_accuracy": float(accuracy.mean()),
            "clean_accuracy_worst_group": float(accuracy.amin()),
            "clean_gap": float(gap(accuracy)),
        }
        figures |= {f"clean_accuracy_group_{a}": float(value) for a, value in enumerate(accuracy)}
        return {name: Metric(value, *UNITS.get(name, ("%", "higher"))) for name, value in figures.items()}

    def _tables(self, report: FairnessReport) -> dict[str, Table | Plot]:
        accuracy = [f"accuracy {name} %" for name in self.names]
        rows: list[list[Any]] = [["clean", 0, *report.clean.tolist(), None]]
        for cell, values, disparity in zip(report.cells, report.corrupted.tolist(), report.cdd.tolist(), strict=True):
            rows.append([*cell, *values, disparity])
        title = f"Accuracy per corruption and group (weights {self.options.weights}, rho {self.options.rho})"
        series = {
            name: ([f"{c} {s}" for c, s in report.cells], report.corrupted[:, a].tolist())
            for a, name in enumerate(self.names)
        }
        return {
            "cells": Table(title, ["corruption", "severity", *accuracy, "CDD points"], rows),
            "groups": Plot("Corrupted accuracy per group", "corruption", "accuracy %", series, "bar"),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, step counter and passes."""
        return {"weights": self.rule.state_dict(), "sam": self.sam.state_dict(), "passes": self.passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.rule.load_state_dict(state["weights"])
        self.sam.load_state_dict(state["sam"])
        self.passes = int(state["passes"])


class _Passes:
    """The library's `Gradients` over ``trainer.gradients`` on one batch."""

    def __init__(self, weave: Weave, trainer: Trainer, batch: Any) -> None:
        self.weave, self.trainer, self.batch = weave, trainer, batch
        self.sync = weave.options.sync_perturbation
        self.first: Tensor | None = None
        self.last: LossReport | None = None
        self._noise: LossReport | None = None

    def __call__(
        self,
        *,
        weighted: bool,
        rows: Tensor | None,
        probe: bool,
        accumulate: bool,
        scale: float,
        replay: bool,
        freeze_statistics: bool,
        focus: Tensor | None = None,
    ) -> Losses:
        if focus is not None:
            groups = self.batch["group"]
            self.weave.focus = (groups[focus[0]], len(groups) / len(focus))
        try:
            report = self.trainer.gradients(
                self.batch,
                rows=rows,
                without=() if weighted or focus is not None else ("fairsam",),
                probe=probe,
                accumulate=accumulate,
                scale=scale,
                replay=self._noise if replay else None,
                freeze_statistics=freeze_statistics,
                sync=self.sync if probe else True,
            )
        finally:
            self.weave.focus = None
        if not replay:
            self._noise = report
        if self.first is None:
            self.first = report.per_example
        if not probe:
            self.last = report
        return Losses(report.loss, report.per_example, report.gradients)


def corruptible(trainer: Trainer) -> bool:
    """Whether there are inputs to corrupt, and groups and classes to compare on them."""
    return {"input", "group"} <= set(trainer.info.fields) and trainer.info.task == "classification"


def require_images(data: Data) -> None:
    """Refuse, before training, test inputs that the views could not corrupt; of splits in files the first batch only.

    Raises:
        FairsamError: they are no float images, or lie outside [0, 1].
    """
    in_memory = getattr(data.test, "in_memory", False)
    for batch in in_order(data.test, 256 if in_memory else 8):
        try:
            check_images(batch["input"])
        except FairsamError as error:
            raise FairsamError(
                f"the test split cannot be corrupted: {error}. Without such views: --set fairsam.corruptions=[]"
            ) from error
        if not in_memory:
            return


def require_groups(data: Data, num_groups: int) -> None:
    """Refuse, before training, groups that the training split has not; for data that do not say their number.

    Raises:
        FairsamError: the group and its split are named.
    """
    for part in ("validation", "test"):
        highest = int(column(getattr(data, part), "group").max())
        if highest >= num_groups:
            raise FairsamError(
                f"group {highest} is in the {part} split and not in the training split, whose groups are "
                f"0..{num_groups - 1}: leave its rows out, or count it in DataInfo's num_groups to measure it as well"
            )


def corruption_views(options: FairsamOptions, trainer: Trainer) -> dict[str, View]:
    """One view per corruption and severity; the noise depends on nothing but names, seed and image index.

    Data without images to corrupt (nodes of a graph, texts) has none: the figures are of the clean split alone then.
    """
    views: dict[str, View] = {}
    if options.corruptions and not corruptible(trainer):
        trainer.note("fairsam: no images of groups to corrupt, so the figures are of the clean test split alone")
        return views
    for name in options.corruptions:
        for severity in options.severities:
            corruption = Corruption(name, severity, base_seed=options.corruption_seed)
            tags = {"corruption": name, "severity": severity}
            views[f"{name}-{severity}"] = View(
                f"{name}, severity {severity}", partial(_corrupted, corruption), tags=tags
            )
    return views


def _corrupted(corruption: Corruption, batch: Any) -> Batch:
    return Batch({**batch, "input": corruption(batch["input"], int(batch["index"][0]))})


def corrupt_training(options: FairsamOptions, data: Data) -> Data:
    """Add fresh noise of ``train_corruption`` to every training batch, after the data's own augmentation."""
    if options.train_corruption is None:
        return data
    name, _, severity = options.train_corruption.partition(":")
    Corruption(name, int(severity))
    before = data.augment

    def augment(batch: Any, generator: torch.Generator) -> Batch:
        batch = before(batch, generator) if before is not None else batch
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return Batch({**batch, "input": Corruption(name, int(severity), base_seed=seed)(batch["input"])})

    return replace(data, augment=augment)
