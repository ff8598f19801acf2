"""Gaps against fairlearn and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from plait_fairprune.errors import FairpruneError
from plait_fairprune.measures import group_figures

metrics = pytest.importorskip("fairlearn.metrics")


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_gaps_agree_with_fairlearn(seed: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, labels = (torch.randint(2, (200,), generator=generator) for _ in range(2))
    group = torch.randint(groups, (200,), generator=generator)
    now = group_figures(predicted, labels, group, groups, 2)
    columns = (labels.numpy(), predicted.numpy())
    inside = {"sensitive_features": group.numpy()}
    assert now.dp == pytest.approx(100 * metrics.demographic_parity_difference(*columns, **inside))
    assert now.eodds == pytest.approx(100 * metrics.equalized_odds_difference(*columns, **inside))
    assert now.eo == pytest.approx(100 * metrics.equal_opportunity_difference(*columns, **inside))
    frame = metrics.MetricFrame(
        metrics={"a": lambda y, p: (y == p).mean()}, y_true=columns[0], y_pred=columns[1], **inside
    )
    assert now.accuracy_gap == pytest.approx(100 * frame.difference()["a"])
    assert now.worst == pytest.approx(100 * frame.group_min()["a"])
    assert now.overall == pytest.approx(100 * frame.overall["a"])


@pytest.mark.smoke
def test_degradation_by_hand() -> None:
    predicted = torch.tensor([1, 1, 0, 0])
    now = group_figures(predicted, torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), 2, 2)
    assert now.accuracy.tolist() == [50, 50]
    assert now.degradation_gap(torch.tensor([90.0, 60.0])) == 30
    assert now.eo == 100
    assert now.eodds == 100


@pytest.mark.smoke
def test_undefined_figures_are_nan_and_a_constant_predictor_is_called_one() -> None:
    now = group_figures(torch.ones(4, dtype=torch.int64), torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), 2, 2)
    assert math.isnan(now.fpr_gap)
    assert math.isnan(now.eodds)
    assert now.dp == 0
    assert now.constant
    none = group_figures(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), 2, 2)
    assert math.isnan(none.accuracy_gap)
    assert math.isnan(none.worst)
    many = group_figures(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0, 1]), 2, 3)
    assert math.isnan(many.dp)
    assert many.accuracy_gap == 100


@pytest.mark.smoke
def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FairpruneError, match="vectors of one length above 0"):
        group_figures(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(2).long(), 2, 2)
