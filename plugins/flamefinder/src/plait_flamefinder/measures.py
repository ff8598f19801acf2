"""How well flames are told from the rest, and how well the classes are separated in the latent space. Card, "Metrics".

A measure that is not defined is None, and the reason stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

__all__ = ["MOST_POINTS", "Measured", "detection", "separation"]

DETECTION = ("accuracy", "balanced_accuracy", "f1", "recall", "auc", "hot_fpr")
SEPARATION = ("silhouette", "davies_bouldin", "calinski_harabasz", "intra_inter")
MOST_POINTS = 5000
"""Points that the silhouette takes; of more a stratified part, chosen by a fixed seed."""

Measured = tuple[dict[str, float | None], str]
"""Name -> value, and why some are None."""


def detection(score: npt.NDArray[Any], label: npt.NDArray[Any], hot: npt.NDArray[Any] | None = None) -> Measured:
    """Accuracy and its kin of a binary score [n] that says flame above 0, by labels 0 or 1, [n].

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``f1``, ``recall`` and, with ``hot``, ``hot_fpr`` in %, ``auc`` 0 to 1;
        with one class alone only the accuracy, with fewer than two examples nothing.
    """
    values: dict[str, float | None] = dict.fromkeys(DETECTION if hot is not None else DETECTION[:-1])
    if len(label) < 2:
        return values, f"{len(label)} examples"
    said, flame = score > 0, label == 1
    values["accuracy"] = 100 * float((said == flame).mean())
    if flame.all() or not flame.any():
        return values, f"all {len(label)} examples are {'flame' if flame.any() else 'no flame'}"
    recall, specificity = float(said[flame].mean()), float((~said[~flame]).mean())
    hits = int((said & flame).sum())
    values["balanced_accuracy"] = 50 * (recall + specificity)
    values["f1"] = 200 * hits / (int(said.sum()) + int(flame.sum()))
    values["recall"] = 100 * recall
    values["auc"] = float(metrics.roc_auc_score(flame, score))
    reason = ""
    if hot is not None:
        distractors = hot.astype(bool) & ~flame
        if distractors.any():
            values["hot_fpr"] = 100 * float(said[distractors].mean())
        else:
            reason = "no hot distractors"
    return values, reason


def separation(z: npt.NDArray[Any], label: npt.NDArray[Any], names: Sequence[str] = SEPARATION) -> Measured:
    """How far apart the true classes [n] of vectors [n, d] lie, for their spread, whatever the scale of z.

    Returns:
        ``silhouette`` (-1 to 1, higher is better), ``davies_bouldin`` (lower), ``calinski_harabasz`` (higher) and
        ``intra_inter``, the classes' mean distance to their mean over the mean distance of the means (lower).
    """
    undefined: dict[str, float | None] = dict.fromkeys(names)
    classes, counts = np.unique(label, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        return undefined, "it takes two classes with two examples each"
    z = z.astype(np.float64)  # which scikit-learn would do again for every block of pairs
    means = np.stack([z[label == one].mean(0) for one in classes])
    between = np.linalg.norm(means[:, None] - means[None], axis=-1)[np.triu_indices(len(classes), 1)]
    if not (between > 0).all():
        return undefined, "two classes have one mean"
    spreads = [np.linalg.norm(z[label == one] - mean, axis=1).mean() for one, mean in zip(classes, means, strict=True)]
    rows = _stratified(label)
    measures: Mapping[str, Callable[[], float]] = {
        "silhouette": lambda: metrics.silhouette_score(z[rows], label[rows]),
        "davies_bouldin": lambda: metrics.davies_bouldin_score(z, label),
        "calinski_harabasz": lambda: metrics.calinski_harabasz_score(z, label),
        "intra_inter": lambda: np.mean(spreads) / between.mean(),
    }
    part = "silhouette" in names and len(rows) < len(label)
    note = f"silhouette of {len(rows)} points, each class in proportion" if part else ""
    return {name: float(measures[name]()) for name in names}, note


def standardised(z: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """z with each feature of mean 0 and standard deviation 1; a constant one becomes 0."""
    if not len(z):
        return z
    spread = z.std(0)
    return np.asarray((z - z.mean(0)) / np.where(spread > 0, spread, 1))


def _stratified(label: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if len(label) <= MOST_POINTS:
        return np.arange(len(label))
    order = np.random.default_rng(0).permutation(len(label))
    parts: Mapping[int, npt.NDArray[Any]] = {int(one): order[label[order] == one] for one in np.unique(label)}
    chosen = [rows[: max(2, round(MOST_POINTS * len(rows) / len(label)))] for rows in parts.values()]
    return np.sort(np.concatenate(chosen))
