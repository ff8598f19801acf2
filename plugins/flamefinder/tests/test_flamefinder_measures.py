"""Metrics against loops over pairs and against definitions, and what has none."""

from __future__ import annotations

import numpy as np
import pytest

from plait_flamefinder import measures
from plait_flamefinder.measures import detection, separation, standardised

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)


def test_detection_against_counting() -> None:
    score, label, hot = RNG.normal(size=60).round(1), RNG.integers(0, 2, 60), RNG.integers(0, 2, 60)
    values, reason = detection(score, label, hot)
    positive, negative = score[label == 1], score[label == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    assert values["auc"] == pytest.approx(np.mean(pairs))
    hits, alarms = sum(positive > 0), sum(negative > 0)
    assert values["recall"] == pytest.approx(100 * hits / len(positive))
    assert values["f1"] == pytest.approx(100 * 2 * hits / (2 * hits + alarms + len(positive) - hits))
    assert values["balanced_accuracy"] == pytest.approx(50 * (hits / len(positive) + 1 - alarms / len(negative)))
    assert values["accuracy"] == pytest.approx(100 * np.mean((score > 0) == (label == 1)))
    distractors = (hot == 1) & (label == 0)
    assert values["hot_fpr"] == pytest.approx(100 * np.mean(score[distractors] > 0))
    assert not reason


@pytest.mark.parametrize(
    ("label", "defined", "reason"),
    [
        ([1, 1, 1], {"accuracy"}, "all 3 examples are flame"),
        ([0, 0], {"accuracy"}, "no flame"),
        ([1], set(), "1 example"),
    ],
)
def test_what_a_bucket_cannot_say(label: list[int], defined: set[str], reason: str) -> None:
    values, why = detection(np.ones(len(label)), np.array(label))
    assert {name for name, value in values.items() if value is not None} == defined
    assert reason in why
    assert set(separation(np.ones((len(label), 2)), np.array(label))[0].values()) == {None}


def test_separation_by_definition() -> None:
    z, label = RNG.normal(size=(40, 3)), RNG.integers(0, 2, 40)
    z[label == 1] += 1.5
    values, _ = separation(z, label)
    means = [z[label == k].mean(0) for k in (0, 1)]
    spreads = [np.linalg.norm(z[label == k] - means[k], axis=1).mean() for k in (0, 1)]
    apart = np.linalg.norm(means[0] - means[1])
    assert values["davies_bouldin"] == pytest.approx(sum(spreads) / apart)
    assert values["intra_inter"] == pytest.approx(sum(spreads) / 2 / apart)
    distances = np.linalg.norm(z[:, None] - z, axis=-1)
    each = []
    for i in range(40):
        same = [distances[i, j] for j in range(40) if label[j] == label[i] and j != i]
        other = [distances[i, j] for j in range(40) if label[j] != label[i]]
        each.append((np.mean(other) - np.mean(same)) / max(np.mean(other), np.mean(same)))
    assert values["silhouette"] == pytest.approx(np.mean(each))
    between = sum((label == k).sum() * np.sum((means[k] - z.mean(0)) ** 2) for k in (0, 1))
    within = sum(np.sum((z[label == k] - means[k]) ** 2) for k in (0, 1))
    assert values["calinski_harabasz"] == pytest.approx(between / within * 38)
    scaled, _ = separation(100 * z + 7, label)  # a common scale fakes nothing
    for name, value in values.items():
        assert scaled[name] == pytest.approx(value)


def test_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_POINTS", 50)
    label = np.repeat([0, 1], [300, 100])
    rows = measures._stratified(label)
    assert np.bincount(label[rows]).tolist() == [38, 12]
    assert np.array_equal(rows, measures._stratified(label))
    values, reason = separation(RNG.normal(size=(400, 2)) + label[:, None], label)
    assert values["silhouette"] is not None
    assert "silhouette of 50 points" in reason


def test_degenerate_spaces() -> None:
    assert separation(np.zeros((6, 2)), np.array([0, 1] * 3))[1] == "two classes have one mean"
    z = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert standardised(z).tolist() == [[-1, 0], [1, 0]]
