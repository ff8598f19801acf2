"""Evaluation: named views of the test data, predictions made once per view, and what plugins make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Data, DataInfo, Split, in_order
from plait.errors import BadInput, blame
from plait.scale import gathering

if TYPE_CHECKING:
    from plait.trainer import Trainer

BATCH = 512
"""Examples per forward pass in evaluation, where the split does not say how many it takes at once."""


@dataclass(frozen=True)
class Metric:
    """One figure: its value, unit (``%``, ``points``, ``MACs``, ...; empty for a pure number) and better direction."""

    value: float
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table for the terminal and the report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Plot:
    """A plot for the report: series name -> (x values, y values).

    Attributes:
        title, x, y: above it, and at its axes.
        series: what is drawn.
        kind: ``line``; ``bar``; or ``graph``: the series are kinds of nodes, each point a place in the plane, without
            axes.
        links: for a ``graph``: (x0, y0, x1, y1) of each line between two places, drawn behind the points.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]]
    kind: Literal["line", "bar", "graph"] = "line"
    links: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class View:
    """A named version of the test data.

    Attributes:
        summary: one line.
        transform: ``transform(batch) -> batch`` on raw batches (before the data's ``prepare``), or None. It treats each
            example by itself (by its ``index``): batches are cut otherwise on several ranks.
        split: another split than the test split, or None.
        tags: what it is, e.g. ``{"corruption": "shot_noise", "severity": 3}``; plugins choose views by tags.
    """

    summary: str
    transform: Callable[[Any], Any] | None = None
    split: Split | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """The model's outputs on one view: ``outputs`` [E, ...] float32 on the CPU, and every field but the input."""

    view: View
    outputs: Any
    fields: Mapping[str, Any]


class NoSuchView(KeyError):
    """A plugin asked for a view that this evaluation has not (on the validation split there is only ``clean``)."""


class Predictions(Mapping[str, Predicted]):
    """View name -> predictions, computed at first use and kept, so several plugins share one forward pass.

    Attributes:
        used: how often a view was asked for; a plugin that asked for none has figures that no split changes.
    """

    def __init__(self, trainer: Trainer, model: torch.nn.Module, views: Mapping[str, View]) -> None:
        self.trainer, self.model, self.views = trainer, model, views
        self.used = 0
        self._done: dict[str, Predicted] = {}

    def __getitem__(self, name: str) -> Predicted:
        if name not in self.views:
            raise NoSuchView(name)
        self.used += 1
        if name not in self._done:
            view = self.views[name]
            split = view.split if view.split is not None else self.trainer.data.test
            outputs, fields = predict(self.trainer, self.model, split, view.transform)
            self._done[name] = Predicted(view, outputs, fields)
        return self._done[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)

    def tagged(self, tag: str) -> dict[str, View]:
        """The views that carry a tag."""
        return {name: view for name, view in self.views.items() if tag in view.tags}


@torch.no_grad()
def predict(
    trainer: Trainer, model: torch.nn.Module, split: Split, transform: Callable[[Any], Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Outputs of a model in eval mode over a whole split: tensors joined to [E, ...], other outputs as a list.

    Several ranks share the rows, and every rank has the results of all. Outputs that are no tensors with one row for
    each example cannot be shared: then every rank computes everything.
    """
    size = getattr(split, "at_once", BATCH)
    if trainer.world == 1:
        return _predict(trainer, model, in_order(split, size), transform)
    gathering.equal_buffers(trainer, model)
    rows = len(split)
    if rows < trainer.world:
        return _predict(trainer, model, in_order(split, size), transform)
    parts = gathering.parts(rows, trainer.rank, trainer.world, size)
    outputs, fields = _predict(trainer, model, (split.__getitems__(part) for part in parts), transform)
    mine = sum(len(part) for part in parts)
    if not gathering.all_true(trainer, all(gathering.shareable(v, mine) for v in (outputs, *fields.values()))):
        return _predict(trainer, model, in_order(split, size), transform)
    names = sorted(fields)
    return gathering.joined(trainer, outputs), {n: gathering.joined(trainer, fields[n]) for n in names}


def _predict(
    trainer: Trainer, model: torch.nn.Module, batches: Iterable[Any], transform: Callable[[Any], Any] | None
) -> tuple[Any, dict[str, Any]]:
    was_training = model.training
    model.eval()
    outputs: list[Any] = []
    fields: dict[str, list[Any]] = {}
    try:
        for batch in batches:
            batch = transform(batch) if transform else batch
            with trainer.autocast():
                out = trainer.call(model, batch.to(trainer.device))
            outputs.append(out.float().cpu() if isinstance(out, Tensor) else out)
            for name, value in _fields(batch):
                if name != "input":
                    fields.setdefault(name, []).append(value)
    finally:
        model.train(was_training)
    return _join(outputs), {name: _join(values) for name, values in fields.items()}


def _fields(batch: Any) -> Iterator[tuple[str, Any]]:
    yield from (batch.items() if isinstance(batch, Mapping) else batch.to_dict().items())


def _join(parts: list[Any]) -> Any:
    if all(isinstance(p, Tensor) for p in parts):
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    return parts[0] if len(parts) == 1 else parts


def collect_views(trainer: Trainer) -> dict[str, View]:
    """``clean`` (the test split as it is) and the active plugins' views.

    Raises:
        BadInput: two plugins register one name.
    """
    views = {"clean": View("the test split as it is")}
    owner = {"clean": "plait"}
    for plugin, found in trainer.composed["views"].named(trainer=trainer):
        for name, view in found.items():
            if name in views:
                raise BadInput(f"the evaluation view {name!r} is registered by both {owner[name]!r} and {plugin!r}.")
            views[name], owner[name] = view, plugin
    return views


def evaluate(trainer: Trainer, model: torch.nn.Module, views: Mapping[str, View]) -> dict[str, Metric | Table | Plot]:
    """Every active plugin's figures as ``<plugin>/<name>``.

    Raises:
        BadInput: a plugin returned something else than metrics, tables and plots.
    """
    predictions = Predictions(trainer, model, views)
    merged: dict[str, Metric | Table | Plot] = {}
    for plugin, found in trainer.composed["evaluate"].named(trainer=trainer, predictions=predictions):
        if not isinstance(found, Mapping):
            raise BadInput(f"plugin {plugin!r}: evaluate returned {type(found).__name__}; return a mapping of metrics.")
        for name, value in found.items():
            if not isinstance(value, (Metric, Table, Plot)):
                raise BadInput(
                    f"plugin {plugin!r}: evaluate gave a {type(value).__name__} for {name!r}; wrap it in plait.Metric."
                )
            merged[f"{plugin}/{name}"] = value
    return merged


def evaluate_validation(trainer: Trainer) -> dict[str, Metric]:
    """The plugins' metrics on the validation split, for choices that must not see the test.

    There is one view, ``clean``. A plugin that asks for another view, or whose figures depend on no split, is left out.
    """
    if not len(trainer.data.validation):
        return {}
    views = {"clean": View("the validation split as it is", split=trainer.data.validation)}
    predictions = Predictions(trainer, trainer.model, views)
    merged: dict[str, Metric] = {}
    for implementation in trainer.composed["evaluate"].implementations:
        before = predictions.used
        try:
            with blame(implementation.plugin):
                found = implementation({"trainer": trainer, "predictions": predictions})
        except NoSuchView:
            continue
        if predictions.used > before:
            merged |= {f"{implementation.plugin}/{n}": v for n, v in found.items() if isinstance(v, Metric)}
    return merged


def task_metrics(data: Data, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
    """The figures of `split_figures` on ``clean``: the loss, then those that are to be high."""
    if not _has_figures(data.info):
        return {}
    found = split_figures(data, predictions["clean"].outputs, predictions["clean"].fields)
    return dict(sorted(found.items(), key=lambda item: item[0] != "loss"))


def split_figures(data: Data, outputs: Any, fields: Mapping[str, Any]) -> dict[str, Metric]:
    """What a split's predictions are worth: the data's own ``figures``, then those of its task.

    Accuracy in % and cross-entropy in nats (classification), binary cross-entropy in nats, the mean over the labels
    (multilabel), mean squared error (regression). By the first figure the best state is chosen.

    Args:
        data: its ``info`` and ``figures``.
        outputs, fields: of `predict`.
    """
    own = {} if data.figures is None else data.figures(outputs, fields)
    return {**own, **{name: found for name, found in _figures(data.info, outputs, fields).items() if name not in own}}


def score(figures: Mapping[str, Metric]) -> float:
    """The first figure, as a number of which more is better."""
    first = next(iter(figures.values()))
    return -first.value if first.better == "lower" else first.value


def validation_figures(trainer: Trainer) -> dict[str, Metric]:
    """`split_figures` on the validation split.

    A plugin that replaced the objective of an unusual task reports its own figures; here its loss is taken.
    """
    trainer.masks.hold()
    if _has_figures(trainer.info):
        return split_figures(trainer.data, *predict(trainer, trainer.model, trainer.data.validation))
    return {"loss": Metric(_objective_on(trainer, trainer.data.validation), "", "lower")}


@torch.no_grad()
def _objective_on(trainer: Trainer, split: Split) -> float:
    trainer.model.eval()
    losses = []
    for batch in in_order(split, BATCH):
        there = batch.to(trainer.device)
        losses.append(trainer.objective(trainer.call(trainer.model, there), there).float().cpu())
    trainer.model.train()
    return float(torch.cat(losses, dim=-1).mean())


def _has_figures(info: DataInfo) -> bool:
    return info.task in ("classification", "multilabel", "regression")


def _figures(info: DataInfo, outputs: Any, fields: Mapping[str, Any]) -> dict[str, Metric]:
    if info.task == "regression":
        return {"loss": Metric(float(functional.mse_loss(outputs, fields["target"])), "", "lower")}
    label = fields["label"]
    if info.task == "multilabel":
        wrong = functional.binary_cross_entropy_with_logits(outputs, label.to(outputs.dtype))
        return {"loss": Metric(float(wrong), "nats", "lower")}
    accuracy = 100 * float((outputs.argmax(1) == label).double().mean())
    loss = float(functional.cross_entropy(outputs, label))
    return {"accuracy": Metric(accuracy, "%", "higher"), "loss": Metric(loss, "nats", "lower")}
