"""The worked examples, brute force, and fairlearn."""

import math

import pytest
import torch

from plait_fairsam.errors import FairsamError, FairsamWarning
from plait_fairsam.metrics import (
    cdd,
    cdd_signed,
    collapse_warnings,
    degradation,
    demographic_parity_difference,
    equal_opportunity_difference,
    fairness_report,
    group_accuracy,
    relative_degradation,
)


def points(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_worked_examples():
    assert degradation(points(95, 90), points(85, 60)).tolist() == [10, 30]
    assert float(cdd(points(95, 90), points(85, 60))) == 20
    assert degradation(points(90, 80), points(92, 70)).tolist() == [-2, 10]
    assert float(cdd(points(90, 80), points(92, 70))) == 12
    assert float(cdd_signed(points(95, 90), points(85, 60))) == 20
    assert float(cdd_signed(points(90, 95), points(60, 85))) == -20
    assert float(cdd(points(90, 80, 70), points(80, 79, 40))) == 29


def test_grids_broadcast_and_relative_guards_zero():
    grid = torch.stack([points(85, 60), points(90, 89)])
    assert cdd(points(95, 90), grid).tolist() == [20, 4]
    relative = relative_degradation(points(50, 0), points(25, 0))
    assert float(relative[0]) == 0.5 and math.isnan(relative[1])
    with pytest.raises(FairsamError, match="2 groups, got 3"):
        cdd_signed(points(1, 2, 3), points(1, 2, 3))


def sample(n=400, groups=3, classes=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels, groups = torch.randint(0, classes, (n,), generator=g), torch.randint(0, groups, (n,), generator=g)
    predictions = torch.where(torch.rand(n, generator=g) < 0.7, labels, torch.randint(0, classes, (n,), generator=g))
    return predictions, labels, groups


def test_accuracy_equals_the_loop():
    predictions, labels, groups = sample(classes=5)
    accuracy = group_accuracy(torch.stack([predictions, labels]), labels, groups)
    for a in range(3):
        hits = [int(p == y) for p, y, s in zip(predictions, labels, groups, strict=True) if s == a]
        assert float(accuracy[0, a]) == pytest.approx(100 * sum(hits) / len(hits))
    assert accuracy[1].tolist() == [100.0] * 3


def test_fairlearn_agrees():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    for seed in range(3):
        predictions, labels, groups = sample(seed=seed)
        frame = fairlearn.MetricFrame(
            metrics=lambda t, p: (t == p).mean(),
            y_true=labels.numpy(),
            y_pred=predictions.numpy(),
            sensitive_features=groups.numpy(),
        )
        assert group_accuracy(predictions, labels, groups).tolist() == pytest.approx([100 * v for v in frame.by_group])
        arguments = {"sensitive_features": groups.numpy()}
        parity = fairlearn.demographic_parity_difference(labels.numpy(), predictions.numpy(), **arguments)
        assert float(demographic_parity_difference(predictions, groups)) == pytest.approx(100 * parity)
        opportunity = fairlearn.equal_opportunity_difference(labels.numpy(), predictions.numpy(), **arguments)
        assert float(equal_opportunity_difference(predictions, labels, groups)) == pytest.approx(100 * opportunity)


def test_the_report_puts_it_together():
    labels, groups = torch.tensor([0, 1] * 100), torch.tensor([0] * 100 + [1] * 100)

    def correct(first, second):
        """Predictions with these percentages right in groups 0 and 1."""
        right = torch.cat([torch.arange(100) < first, torch.arange(100) < second])
        return torch.where(right, labels, 1 - labels)

    report = fairness_report(
        correct(95, 90),
        {("gaussian_noise", 2): correct(85, 60), ("shot_noise", 3): correct(80, 88)},
        labels,
        groups,
    )
    assert report.cdd.tolist() == [20, 13] and report.mcdd == 16.5
    assert report.signed.tolist() == [20, -13]
    assert report.clean.tolist() == [95, 90] and report.clean_gap == 5
    assert report.corrupted_gap == (25 + 8) / 2
    assert report.mean_corrupted == (85 + 60 + 80 + 88) / 4
    assert report.worst_group_corrupted == (60 + 80) / 2
    assert report.cells == (("gaussian_noise", 2), ("shot_noise", 3))
    assert not report.low_support.any() and report.counts.tolist() == [100, 100]
    row = report.summary()
    assert row["mcdd"] == 16.5 and row["corrupted_accuracy"] == 78.25 and row["cdd_signed"] == 3.5
    assert row["clean_accuracy"] == 92.5 and row["clean_accuracy_group_1"] == 90
    assert row["relative_degradation"] == pytest.approx((10 / 95 + 30 / 90 + 15 / 95 + 2 / 90) / 4)
    assert row["equal_opportunity_difference"] == pytest.approx(float(report.equal_opportunity.mean()))


def test_a_missing_group_is_nan_with_a_warning_and_never_zero():
    predictions, labels, groups = sample(groups=2)
    with pytest.warns(FairsamWarning, match=r"no test sample in group \[2\]"):
        report = fairness_report(predictions, {("shot_noise", 2): predictions}, labels, groups, num_groups=3)
    assert math.isnan(report.clean[2]) and math.isnan(report.mcdd) and math.isnan(report.worst_group_corrupted)
    assert math.isnan(report.demographic_parity[0]) and report.low_support.tolist() == [False, False, True]


def test_low_support_is_flagged():
    predictions, labels, _ = sample(n=100)
    groups = (torch.arange(100) < 29).long()
    with pytest.warns(FairsamWarning, match=r"fewer than 30 test samples in group \[1\]"):
        report = fairness_report(predictions, {("shot_noise", 2): predictions}, labels, groups)
    assert report.low_support.tolist() == [False, True]


def test_parity_only_for_binary_labels_and_signed_only_for_two_groups():
    predictions, labels, groups = sample(classes=4)
    report = fairness_report(predictions, {("shot_noise", 2): predictions}, labels, groups)
    assert report.equal_opportunity is None and report.signed is None
    assert "cdd_signed" not in report.summary()


def test_a_group_without_positives_has_no_opportunity():
    labels, groups = torch.tensor([1, 0, 0, 0]), torch.tensor([0, 0, 1, 1])
    assert math.isnan(equal_opportunity_difference(labels, labels, groups))


def test_collapse_is_called_out():
    assert collapse_warnings(points(95, 93), 2) == []
    lines = collapse_warnings(points(95, 58), 2)
    assert len(lines) == 1 and "group 1" in lines[0] and "near chance" in lines[0]
    lines = collapse_warnings(points(95, 86), 2, points(96, 92))
    assert len(lines) == 1 and "more than 5 points below" in lines[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y, s: fairness_report(p, {}, y, s), "no .* cell"),
        (lambda p, y, s: fairness_report(p, {("fog", 1): p[:3]}, y, s), r"corrupted\[\('fog', 1\)\] has shape"),
        (lambda p, y, s: fairness_report(p, {("fog", 1): p}, y, s, num_groups=2), r"groups\[\d+\]=2 is outside 0\.\.1"),
        (lambda p, y, s: fairness_report(p, {("fog", 1): p}, y, s, num_classes=1), r"labels\[\d+\]=1"),
        (lambda p, y, s: group_accuracy(p[:5], y, s), "last axis"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(FairsamError, match=message):
        call(*sample())
