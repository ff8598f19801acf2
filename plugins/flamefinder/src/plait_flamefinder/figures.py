"""What a run reports: every decision on every bucket, the separation of the classes, and pictures of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from plait.data.batches import Split
from plait.data.streams import column, in_order
from plait.declare.results import Metric, Plot, Table

from .centres import DECISIONS, decided
from .measures import DETECTION, detection, separation, standardised
from .options import Decision, FlamefinderOptions

__all__ = ["Tested", "brightness", "mosaic", "numbers", "pictures", "worst"]

Figures = dict[str, Metric | Table | Plot]
Series = dict[str, tuple[Sequence[Any], Sequence[float]]]

CELSIUS = 80.0
"""Degrees of the control that calls a patch flame by its hottest pixel, where there are degrees."""
PERCENT = ("accuracy", "balanced_accuracy", "f1", "recall", "hot_fpr")
LOWER = ("hot_fpr", "davies_bouldin", "intra_inter", "davies_bouldin_standardised", "davies_bouldin_logit")


@dataclass(frozen=True)
class Tested:
    """What a network said of a split: latent vectors z [n, d], the classifier's logits [n, K], the true labels [n].

    Of the split's other ``fields``, ``bucket``, ``hot`` and ``celsius_max`` are read. ``centres`` are ``running`` and
    ``mean``, [K, d] or None; ``buckets`` the names of the buckets, without any everything is one.
    """

    z: Tensor
    logits: Tensor
    label: Tensor
    fields: Mapping[str, Any]
    centres: Mapping[str, Tensor | None]
    buckets: Sequence[str]
    num_classes: int

    def rows(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Bucket -> which examples are in it."""
        if "bucket" not in self.fields or not self.buckets:
            return {"all": np.ones(len(self.label), bool)}
        bucket = self.fields["bucket"].numpy()
        return {name: bucket == number for number, name in enumerate(self.buckets)}

    def decisions(self) -> dict[tuple[Decision, str], npt.NDArray[np.float32]]:
        """(rule, centres) -> its outputs [n, K], for the rules that there are centres for."""
        outputs = {("head", ""): self.logits}
        for which, centres in self.centres.items():
            for decision in DECISIONS[1:]:
                if centres is not None:
                    outputs[decision, which] = decided(decision, self.logits, self.z, centres)
        return {key: value.numpy() for key, value in outputs.items()}  # type: ignore[misc]


def numbers(tested: Tested, options: FlamefinderOptions) -> Figures:
    """Metrics by bucket, of the classifier and of the chosen rule, and a table of all rules on all buckets."""
    label, given = tested.label.numpy(), Figures()
    hot = tested.fields["hot"].numpy() if "hot" in tested.fields else None
    outputs = tested.decisions()
    chosen = (options.decision, "" if options.decision == "head" else options.centers)
    if chosen not in outputs and options.decision != "head":
        chosen = (options.decision, "mean")  # no centre was trained: the class means are what is exported
    names = DETECTION[: 5 if hot is None else 6]
    columns = ["bucket", "decision", "centres", "examples", "flame %", *names]
    table: list[list[Any]] = []
    for bucket, rows in tested.rows().items():
        share = 100 * float((label[rows] > 0).mean()) if rows.any() else None
        for (decision, which), values in outputs.items():
            measured, reason = _detected(values[rows], label[rows], None if hot is None else hot[rows])
            table.append([bucket, decision, which, int(rows.sum()), share, *(measured[name] for name in names)])
            if decision == "head":
                given |= _named(bucket, measured, reason)
            if (decision, which) == chosen and decision != "head":
                brief = {name: measured[name] for name in ("accuracy", "balanced_accuracy", "auc")}
                given |= _named(f"{bucket}_{decision}", brief, reason)
        given[f"{bucket}_examples"] = Metric(int(rows.sum()), "examples")
        if "celsius_max" in tested.fields:
            given |= _control(f"{bucket}_celsius", tested.fields["celsius_max"].numpy()[rows] - CELSIUS, label[rows])
        z = tested.z.numpy()[rows]
        given |= _named(bucket, *separation(z, label[rows]))
        for name, space in (("standardised", standardised(z)), ("logit", outputs["head", ""][rows])):
            measured, reason = separation(space, label[rows], ("davies_bouldin",))
            given |= _named(bucket, {f"davies_bouldin_{name}": measured["davies_bouldin"]}, reason)
    given["decisions"] = Table("Every decision on every bucket", columns, table)
    return given


def _detected(
    outputs: npt.NDArray[Any], label: npt.NDArray[Any], hot: npt.NDArray[Any] | None
) -> tuple[dict[str, float | None], str]:
    """`detection` of two classes; of more only the accuracy."""
    if outputs.shape[1] == 2:
        return detection(outputs[:, 1] - outputs[:, 0], label, hot)
    values: dict[str, float | None] = dict.fromkeys(DETECTION[: 5 if hot is None else 6])
    if len(label):
        values["accuracy"] = 100 * float((outputs.argmax(1) == label).mean())
    return values, f"{outputs.shape[1]} classes"


def _named(prefix: str, values: Mapping[str, float | None], reason: str) -> Figures:
    given = Figures()
    for name, value in values.items():
        unit = "%" if name in PERCENT else ""
        better: Literal["lower", "higher"] = "lower" if name in LOWER else "higher"
        given[f"{prefix}_{name}"] = Metric(nan if value is None else value, unit, better, reason)
    return given


def _control(prefix: str, score: npt.NDArray[Any], label: npt.NDArray[Any]) -> Figures:
    measured, reason = detection(score, label)
    return _named(prefix, {name: measured[name] for name in ("accuracy", "auc")}, reason)


def pictures(
    tested: Tested, options: FlamefinderOptions, shares: Sequence[Sequence[float]], losses: Sequence[str]
) -> Figures:
    """The latent space in two dimensions, ROC curves by bucket, the losses' gradient shares."""
    given = Figures()
    if shares:
        steps = [entry[0] for entry in shares]
        series = Series()
        for place, name in enumerate(losses, 1):
            percent = [100 * entry[place] for entry in shares]
            series[name] = (steps, percent)
            share = Metric(float(np.mean(percent)), "%", "neither", f"mean of {len(steps)}")
            given[f"gradient_share_{name.lower()}"] = share
        given["gradient_share"] = Plot("Which loss moves the latent vectors", "step", "% of the gradients", series)
    if tested.num_classes == 2:
        given["roc"] = Plot("ROC of the classifier", "false positives %", "true positives %", _roc(tested))
    if options.latent_points >= 4 and len(tested.label) >= 4:
        given |= _planes(tested, options.latent_points)
    return given


def worst(tested: Tested, count: int = 10) -> tuple[npt.NDArray[np.int64], Table]:
    """The test examples that the classifier is most wrong about: their rows, false alarms first, and a table."""
    score, label = (tested.logits[:, 1] - tested.logits[:, 0]).numpy(), tested.label.numpy()
    wrong = np.where(label == 1, -score, score)
    of_class = [np.flatnonzero(label == truth) for truth in (0, 1)]
    rows = np.concatenate([of[np.argsort(-wrong[of], kind="stable")[: count // 2]] for of in of_class])
    named = [name for name in ("bucket", "frame", "patch") if name in tested.fields]
    columns = [tested.fields[name].numpy() for name in named]
    lines = [[int(r), *(int(column[r]) for column in columns), int(label[r]), float(score[r])] for r in rows]
    title = "Patches that the classifier is most wrong about (flamefinder-worst.png: false alarms, missed flames)"
    return rows, Table(title, ["row", *named, "flame", "logit"], lines)


def mosaic(patches: npt.NDArray[Any], cells: int = 16) -> Plot:
    """The worst patches in the report's page, false alarms first, each in cells of its own range, dark ones left out.

    Args:
        patches: [n, P, P] in [0, 1].
        cells: of a patch in a row.
    """
    cells = min(cells, patches.shape[1])
    step = patches.shape[1] // cells
    means = patches[:, : cells * step, : cells * step].reshape(len(patches), cells, step, cells, step).mean((2, 4))
    low, high = means.min((1, 2), keepdims=True), means.max((1, 2), keepdims=True)
    means = (means - low) / np.maximum(high - low, 1e-6)
    across = -(-len(patches) // 2)
    levels = ("25 to 50 % of the patch's own range", "50 to 75 %", "75 to 100 %")
    series = Series()
    for quarter, name in enumerate(levels, 1):
        number, row, column = np.nonzero(np.minimum(4 * means, 3).astype(int) == quarter)
        x, y = (number % across) * (cells + 2) + column, -(number // across) * (cells + 2) - row
        series[name] = (x.tolist(), y.tolist())
    edges, height = (cells + 2) * np.arange(across + 1) - 1.5, 2 * (cells + 2)
    links = [(float(x), 1.5, float(x), 1.5 - height) for x in edges]
    links += [(float(edges[0]), 1.5 - y, float(edges[-1]), 1.5 - y) for y in (0.0, height / 2, float(height))]
    title = "The worst patches, thermal: false alarms above, missed flames below"
    return Plot(title, "", "", series, "graph", links)


def brightness(tested: Tested, train: Split, test: Split) -> Figures:
    """The control: a logistic regression on the largest and the mean value of a patch."""
    from sklearn.linear_model import LogisticRegression

    def features(split: Split) -> npt.NDArray[Any]:
        flat = [batch["input"].flatten(1) for batch in in_order(split, 512)]
        return np.concatenate([np.stack([part.amax(1).numpy(), part.mean(1).numpy()], 1) for part in flat])

    model = LogisticRegression(class_weight="balanced").fit(features(train), column(train, "label").numpy())
    score, label = model.decision_function(features(test)), tested.label.numpy()
    given = Figures()
    for bucket, rows in tested.rows().items():
        given |= _control(f"{bucket}_brightness", score[rows], label[rows])
    return given


def _roc(tested: Tested) -> Series:
    from sklearn.metrics import roc_curve

    score, label = (tested.logits[:, 1] - tested.logits[:, 0]).numpy(), tested.label.numpy()
    curves = Series()
    for bucket, rows in tested.rows().items():
        if 0 < label[rows].sum() < rows.sum():
            false, true, _ = roc_curve(label[rows], score[rows])
            places = np.linspace(0, 1, 101)
            curves[bucket] = ((100 * places).tolist(), (100 * np.interp(places, false, true)).tolist())
    return curves


def _planes(tested: Tested, points: int) -> Figures:
    """PCA and t-SNE of as many test patches, drawn by a fixed seed."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.sort(np.random.default_rng(0).permutation(len(tested.label))[:points])
    z, label = tested.z.numpy()[rows], tested.label.numpy()[rows]
    kinds = {bucket: inside[rows] for bucket, inside in tested.rows().items()}
    given = Figures()
    perplexity = min(30.0, (len(rows) - 1) / 3)
    for name, way in (("PCA", PCA(2)), ("t-SNE", TSNE(2, perplexity=perplexity, init="pca", random_state=0))):
        if z.shape[1] < 2 or not z.std():
            continue
        place = way.fit_transform(z)
        series = Series()
        for bucket, inside in kinds.items():
            for number in np.unique(label):
                of_kind = place[inside & (label == number)]
                title = f"{'flame' if number else 'no flame'}, {bucket}" if tested.num_classes == 2 else str(number)
                if len(of_kind):
                    series[title] = (of_kind[:, 0].tolist(), of_kind[:, 1].tolist())
        key = f"latent_{name.lower().replace('-', '')}"
        given[key] = Plot(f"Latent space, {name} of {len(rows)} test patches", "", "", series, "graph")
    return given
