"""Main accuracy, attack success and comparisons, against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.metrics import (
    Scores,
    evaluate,
    paired_difference,
    placement_sensitivity,
    rejection_rates,
    summarize,
)
from plait_dbadfl.triggers import Trigger

pytestmark = pytest.mark.smoke

CORNER = Trigger(((0, 0), (0, 1)), 2, 2)


def backdoored(images: Tensor) -> Tensor:
    """Node 0 answers the image's class, written in pixel (1, 1); node 1 answers 2 when all of the trigger is 1;
    node 2 answers 2 always. [3, X, 1, 2, 2] -> [3, X, 3]."""
    own = images[0, :, 0, 1, 1].round().long()
    fires = (images[1, :, 0, 0] == 1).all(-1)
    answers = torch.stack([own, torch.where(fires, 2, own), torch.full_like(own, 2)])
    return torch.nn.functional.one_hot(answers, 3).float()


def three_images() -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0, 1, 2])
    images = torch.zeros(3, 1, 2, 2)
    images[:, 0, 1, 1] = labels.float()
    return images, labels


@pytest.mark.parametrize("chunk", [1, 24, 1 << 20])
def test_success_leaves_out_the_images_of_the_target_class(chunk: int) -> None:
    images, labels = three_images()
    before = images.clone()
    scores = evaluate(
        backdoored, images, labels, 3, target=2, trigger=CORNER.mask, parts=CORNER.part_masks(2), chunk=chunk
    )
    assert scores.accuracy.tolist() == pytest.approx([1.0, 1.0, 1 / 3])
    assert scores.success.tolist() == [0.0, 1.0, 1.0]  # with image 2 counted, node 0 would have 1/3
    assert scores.part_success.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    assert torch.equal(images, before)


def test_a_test_set_of_the_target_class_alone_is_an_error() -> None:
    images, labels = three_images()
    with pytest.raises(DbadflError, match="all 1 test images are of the target class 2"):
        evaluate(backdoored, images[2:], labels[2:], 3, target=2, trigger=CORNER.mask)
    with pytest.raises(DbadflError, match=r"target=3 is outside the classes 0\.\.2"):
        evaluate(backdoored, images, labels, 3, target=3, trigger=CORNER.mask)


def test_a_summary_is_over_benign_nodes_only() -> None:
    scores = Scores(
        torch.tensor([0.9, 0.7, 0.1, 0.8], dtype=torch.float64),
        torch.tensor([0.2, 0.4, 1.0, 0.6], dtype=torch.float64),
        torch.tensor([[0.1], [0.2], [1.0], [0.3]], dtype=torch.float64),
    )
    benign, hops = torch.tensor([True, True, False, True]), torch.tensor([1, 2, 0, 1])
    got = summarize(scores, benign, hops)
    assert (got.ma, got.ma_worst, got.asr, got.asr_min) == pytest.approx((0.8, 0.7, 0.4, 0.2))
    assert got.ma_std == pytest.approx((0.02 / 3) ** 0.5)
    assert got.asr_p10 == pytest.approx(0.24)
    assert got.asr_by_hop == pytest.approx({1: 0.4, 2: 0.4}) and got.asr_by_part == pytest.approx((0.2,))
    with pytest.raises(DbadflError, match="no benign node"):
        summarize(scores, torch.zeros(4, dtype=torch.bool))


def test_arms_are_compared_seed_by_seed() -> None:
    got = paired_difference(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 4.0]))
    assert got.mean == pytest.approx(1 / 3) and got.positive == 2 and got.seeds == 3
    half = 4.302652729911275 * (4 / 3) ** 0.5 / 3**0.5
    assert (got.low, got.high) == pytest.approx((1 / 3 - half, 1 / 3 + half))
    single = paired_difference(torch.tensor([1.0]), torch.tensor([0.5]))
    assert single.low == single.high == 0.5
    with pytest.raises(DbadflError, match="same seeds"):
        paired_difference(torch.zeros(2), torch.zeros(3))


def test_placement_sensitivity_is_the_range_of_seed_means() -> None:
    success = {
        "adjacent": torch.tensor([0.1, 0.3]),
        "spread": torch.tensor([0.8, 0.6]),
        "random": torch.tensor([0.5, 0.5]),
    }
    assert placement_sensitivity(success) == pytest.approx(0.5)
    with pytest.raises(DbadflError, match="at least two"):
        placement_sensitivity({"random": torch.zeros(1)})


def test_rejection_counts_messages_to_benign_receivers() -> None:
    #            0->1   1->0   0->2   2->0   1->2   2->1 ; node 0 attacks
    edges = torch.tensor([[0, 1, 0, 2, 1, 2], [1, 0, 2, 0, 2, 1]])
    rejected = torch.tensor([True, True, False, True, False, True])
    tpr, fpr = rejection_rates(rejected, edges, torch.tensor([True, False, False]))
    assert (tpr, fpr) == (0.5, 0.5)
    tpr, fpr = rejection_rates(rejected, edges, torch.zeros(3, dtype=torch.bool))
    assert math.isnan(tpr) and fpr == pytest.approx(4 / 6)
