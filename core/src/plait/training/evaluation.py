"""Evaluation: named views of the test data, predictions made once per view, and the figures of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Data, Split
from plait.data.batches import in_parts
from plait.data.streams import in_order
from plait.declare.results import Metric, Plot, Table
from plait.declare.words import TASKS
from plait.training.forward import Forward
from plait.training.frozen import evaluating
from plait.training.objectives import fitting

BATCH = 512
"""Examples per forward pass in evaluation, where the split does not say how many it takes at once."""


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
    """The model's outputs on one view: ``outputs`` [E, ...] float32 on the CPU, and every field but the input.

    Of causal-lm ``outputs`` is what `plait.training.objectives.token_losses` gives [E, 2], and fields with a value for
    each token are left out.
    """

    view: View
    outputs: Any
    fields: Mapping[str, Any]


class NoSuchView(KeyError):
    """A plugin asked for a view that this evaluation has not (on the validation split there is only ``clean``)."""


class Predictions(Mapping[str, Predicted]):
    """View name -> predictions, computed at first use and kept, so several plugins share one forward pass.

    ``test`` is the split of the views that bring none of their own, ``used`` how often a view was asked for; a plugin
    that asked for none has figures that no split changes.
    """

    def __init__(self, forward: Forward, model: torch.nn.Module, views: Mapping[str, View], test: Split) -> None:
        self.model, self.views = model, views
        self._forward, self._test = forward, test
        self.used = 0
        self._done: dict[str, Predicted] = {}

    def __getitem__(self, name: str) -> Predicted:
        if name not in self.views:
            raise NoSuchView(name)
        self.used += 1
        if name not in self._done:
            view = self.views[name]
            split = view.split if view.split is not None else self._test
            outputs, fields = predict(self._forward, self.model, split, view.transform)
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
    forward: Forward, model: torch.nn.Module, split: Split, transform: Callable[[Any], Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Outputs of a model in eval mode over a whole split: tensors joined to [E, ...], other outputs as a list.

    A split that is iterated by itself (a loop's batches) is passed through batch by batch on every rank. Of another one
    several ranks share the rows, and every rank has the results of all. Outputs that are no tensors with one row for
    each example cannot be shared: then every rank computes everything.
    """
    if isinstance(split, Iterable):
        return _predict(forward, model, split, transform)
    size, world, rows = getattr(split, "at_once", BATCH), forward.world, len(split)
    if world.size > 1:
        world.equal_buffers(model)
    if 1 < world.size <= rows:
        parts = world.parts(rows, size)
        outputs, fields = _predict(forward, model, (split.__getitems__(part) for part in parts), transform)
        mine, results = sum(len(part) for part in parts), (outputs, *fields.values())
        if world.all_true(all(isinstance(v, Tensor) and v.ndim > 0 and len(v) == mine for v in results)):
            return world.joined(outputs), {name: world.joined(fields[name]) for name in sorted(fields)}
    return _predict(forward, model, in_order(split, size), transform)


def _predict(
    forward: Forward, model: torch.nn.Module, batches: Iterable[Any], transform: Callable[[Any], Any] | None
) -> tuple[Any, dict[str, Any]]:
    outputs: list[Any] = []
    fields: dict[str, list[Any]] = {}
    keep = getattr(forward, "keep", None)
    with evaluating(model):
        for batch in (part for given in batches for part in in_parts(given)):
            batch = transform(batch) if transform else batch
            there = batch.to(forward.world.device)
            with forward.autocast():
                out = forward(model, there)
            if keep is not None:
                out = keep(out, there)
            outputs.append(out.float().cpu() if isinstance(out, Tensor) else out)
            for name, value in (batch if isinstance(batch, Mapping) else batch.to_dict()).items():
                if name != "input" and (keep is None or getattr(value, "ndim", 1) == 1):
                    fields.setdefault(name, []).append(value)
    return _join(outputs), {name: _join(values) for name, values in fields.items()}


def _join(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if all(isinstance(p, Tensor) for p in parts) else parts


def task_metrics(data: Data, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
    """The figures of `split_figures` on ``clean``: the loss, then those that are to be high."""
    if data.info.task not in TASKS:
        return {}
    figures = split_figures(data, predictions["clean"].outputs, predictions["clean"].fields)
    return dict(sorted(figures.items(), key=lambda item: item[0] != "loss"))


def split_figures(data: Data, outputs: Any, fields: Mapping[str, Any]) -> dict[str, Metric]:
    """What a split's predictions are worth: the data's own ``figures``, then those of its task.

    Accuracy in % and cross-entropy in nats (classification), binary cross-entropy in nats, the mean over the labels
    (multilabel), mean squared error (regression), perplexity over all tokens and those of each group and the loss in
    nats a token (causal-lm). By the first figure the best state is chosen. ``outputs`` and ``fields`` are of `predict`.
    """
    own = {} if data.figures is None else data.figures(outputs, fields)
    if data.keep is not None:
        return dict(own)
    return {**own, **{n: figure for n, figure in _figures(data, outputs, fields).items() if n not in own}}


def score(figures: Mapping[str, Metric]) -> float:
    """The first figure, as a number of which more is better."""
    first = next(iter(figures.values()))
    return -first.value if first.better == "lower" else first.value


def _figures(data: Data, outputs: Any, fields: Mapping[str, Any]) -> dict[str, Metric]:
    info = data.info
    if info.task == "causal-lm":
        return _perplexities(outputs.double(), fields.get("group"), data.names.get("group", ()))
    if info.task == "regression":
        return {"loss": Metric(float(functional.mse_loss(outputs, fitting(outputs, fields["target"]))), "", "lower")}
    label = fields["label"]
    if info.task == "multilabel":
        wrong = functional.binary_cross_entropy_with_logits(outputs, label.to(outputs.dtype))
        return {"loss": Metric(float(wrong), "nats", "lower")}
    accuracy = 100 * float((outputs.argmax(1) == label).double().mean())
    loss = float(functional.cross_entropy(outputs, label))
    return {"accuracy": Metric(accuracy, "%", "higher"), "loss": Metric(loss, "nats", "lower")}


def _perplexities(costs: Tensor, groups: Tensor | None, names: Sequence[str]) -> dict[str, Metric]:
    """Of costs [E, 2], summed nats and tokens of each text, over all tokens: a long text counts more than a short."""
    summed, tokens = costs.unbind(1)
    loss = summed.sum() / tokens.sum()
    figures = {"perplexity": Metric(float(loss.exp()), "", "lower")}
    for number in [] if groups is None else sorted(set(groups.tolist())):
        inside, name = groups == number, names[number] if number < len(names) else number
        mean = summed[inside].sum() / tokens[inside].sum()
        figures[f"perplexity_{name}"] = Metric(float(mean.exp()), "", "lower")
    return {**figures, "loss": Metric(float(loss), "nats", "lower")}
