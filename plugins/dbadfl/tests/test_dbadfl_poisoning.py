"""Triggers, parts, budgets, and what attackers do to a batch and to an update."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plait_dbadfl.assignment import assign_parts, assign_shared
from plait_dbadfl.budgets import poison_ratios
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.options import AttackOptions
from plait_dbadfl.poisoning import (
    Poison,
    active,
    check_finite,
    distance_to_start,
    poison,
    scale_update,
)
from plait_dbadfl.sampling import generator
from plait_dbadfl.triggers import LAYOUTS, Trigger, preset_trigger, stamp

calm = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
DIGITS = preset_trigger("digits")


# ---- triggers ----------------------------------------------------------------------------------------------------
def test_the_preset_triggers_are_the_cards() -> None:
    assert set(DIGITS.pixels) == {(r, c) for r in (0, 2) for c in (0, 1, 4, 5)}
    mnist, cifar, tiny = (preset_trigger(n) for n in ("mnist", "cifar10", "tiny-imagenet"))
    assert set(mnist.pixels) == {(r, c) for r in (0, 3) for c in (*range(4), *range(6, 10))}
    assert set(cifar.pixels) == {(r, c) for r in (0, 4) for c in (*range(6), *range(9, 15))}
    assert set(tiny.pixels) == {(r, c) for r in (0, 1, 4, 5) for c in (*range(10), *range(12, 22))}


@pytest.mark.parametrize("name", LAYOUTS)
def test_four_parts_of_a_preset_are_its_four_bars(name: str) -> None:
    trigger, bar = preset_trigger(name), LAYOUTS[name].bar
    for mask in trigger.part_masks(4):
        rows, columns = mask.nonzero().T
        size = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
        assert size == bar and int(mask.sum()) == bar[0] * bar[1]


def test_a_preset_is_scaled_with_the_image() -> None:
    double = preset_trigger("digits", 16, 16)
    assert len(double) == 4 * len(DIGITS) and int(double.mask.nonzero().max()) == 11


@calm
@given(st.integers(1, 20), st.integers(1, 25))
def test_parts_are_disjoint_balanced_and_cover_the_trigger(pixels: int, count: int) -> None:
    trigger = Trigger(tuple((0, c) for c in range(pixels)), 1, pixels)
    masks = trigger.part_masks(count)
    assert torch.equal(masks.any(0), trigger.mask)
    sizes = masks.flatten(1).sum(1)
    if count <= pixels:
        assert int(masks.sum(0).max()) == 1
        assert int(sizes.max() - sizes.min()) <= 1
        starts = [i * pixels // count for i in range(count)]
        assert masks[:, 0].int().argmax(1).tolist() == starts
    else:
        assert sizes.tolist() == [1] * count
        assert masks[:, 0].int().argmax(1).tolist() == [i % pixels for i in range(count)]


def test_stamping_writes_every_channel_and_leaves_its_input() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator(0))
    before = images.clone()
    stamped = stamp(images, DIGITS.mask)
    assert torch.equal(images, before)
    assert bool((stamped[:, :, DIGITS.mask] == 1).all())
    assert torch.equal(stamped[:, :, ~DIGITS.mask], images[:, :, ~DIGITS.mask])
    with pytest.raises(DbadflError, match=r"\(8, 8\) does not fit images of \(9, 8\)"):
        stamp(torch.zeros(1, 1, 9, 8), DIGITS.mask)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "empty"),
        ([[(0, 0)], []], "part 1 of the trigger is empty"),
        ([[(0, 8)]], r"\(0, 8\) lies outside the image of 8 x 8"),
        ([[(-1, 0)]], "outside"),
        ([[(0, 0), (0, 1)], [(0, 1)]], r"\(0, 1\) is listed twice"),
    ],
)
def test_impossible_triggers_are_refused(parts: list, message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        Trigger.from_parts(parts, 8, 8)


def test_a_trigger_value_outside_the_range_of_images_is_refused() -> None:
    with pytest.raises(DbadflError, match="value=2"):
        Trigger(((0, 0),), 8, 8, value=2.0)
    with pytest.raises(DbadflError, match="'svhn' is unknown"):
        preset_trigger("svhn")


# ---- assignment --------------------------------------------------------------------------------------------------
@calm
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 1000), st.integers(0, 5))
def test_every_cluster_carries_the_whole_trigger_between_its_members(labels: list[int], seed: int, turn: int) -> None:
    clusters = torch.tensor(labels)
    parts = assign_parts(clusters, DIGITS, seed=seed, rotation=turn)
    for name in set(labels):
        mine = parts[clusters == name]
        assert bool(mine.any(0).all()) and bool(mine.any(1).all())
        assert int(mine.sum(0).max()) == -(-len(mine) // len(DIGITS))
        assert sorted(mine.int().argmax(1).tolist()) == sorted(
            (i % min(len(mine), 8)) * 8 // min(len(mine), 8) for i in range(len(mine))
        )


def test_singletons_carry_everything_and_one_cluster_is_the_naive_split() -> None:
    assert bool(assign_parts(torch.arange(5), DIGITS, seed=0).all())
    naive = assign_parts(torch.zeros(8, dtype=torch.int64), DIGITS, seed=0)
    assert naive.sum(0).tolist() == [1] * 8 and naive.sum(1).tolist() == [1] * 8


def test_rotation_redraws_the_order_and_repeats() -> None:
    single = torch.zeros(8, dtype=torch.int64)
    turns = [assign_parts(single, DIGITS, seed=1, rotation=k) for k in range(5)]
    assert torch.equal(turns[2], assign_parts(single, DIGITS, seed=1, rotation=2))
    assert any(not torch.equal(turns[0], t) for t in turns[1:])


def test_four_shared_parts_are_reused_evenly() -> None:
    parts = assign_shared(8, 4, DIGITS, seed=0)
    assert parts.sum(1).tolist() == [2] * 8 and parts.sum(0).tolist() == [2] * 8
    with pytest.raises(DbadflError, match="attackers=0"):
        assign_shared(0, 4, DIGITS, seed=0)


# ---- budgets -----------------------------------------------------------------------------------------------------
@calm
@given(st.lists(st.integers(1, 64), min_size=1, max_size=10), st.floats(0, 1))
def test_the_pixel_budget_gives_everybody_the_same_expected_pixels(sizes: list[int], amount: float) -> None:
    budget = poison_ratios(torch.tensor(sizes), "pixels", amount)
    assert torch.allclose(budget.pixels, torch.full((len(sizes),), amount, dtype=torch.float64))
    assert not bool(budget.short.any())


def test_a_ratio_that_would_exceed_one_is_capped_and_said() -> None:
    budget = poison_ratios(torch.tensor([1, 2, 8]), "pixels", 1.6)
    assert budget.ratio.tolist() == pytest.approx([1.0, 0.8, 0.2])
    assert budget.short.tolist() == [True, False, False] and budget.pixels.tolist() == pytest.approx([1.0, 1.6, 1.6])


def test_the_sample_budget_gives_everybody_the_same_ratio() -> None:
    budget = poison_ratios(torch.tensor([1, 8]), "samples", 0.2)
    assert budget.ratio.tolist() == [0.2, 0.2] and budget.pixels.tolist() == pytest.approx([0.2, 1.6])


@pytest.mark.parametrize(
    ("sizes", "protocol", "amount", "message"),
    [
        ([1], "samples", 1.5, r"poison_ratio=1.5 is outside \[0, 1\]"),
        ([1], "samples", -0.1, r"poison_ratio=-0.1"),
        ([1], "pixels", -1.0, "b=-1.0"),
        ([2, 0], "pixels", 1.0, "attacker 1 carries no trigger pixel"),
        ([1], "images", 1.0, "'images' is unknown"),
    ],
)
def test_impossible_budgets_are_refused(sizes: list[int], protocol: str, amount: float, message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        poison_ratios(torch.tensor(sizes), protocol, amount)


# ---- poisoned batches --------------------------------------------------------------------------------------------
def batch(nodes: int = 3, size: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(1)
    images = torch.rand(nodes, size, 2, 8, 8, generator=rng) * 0.9
    return images, torch.randint(10, (nodes, size), generator=rng)


def attack(ratio: float, *, first: int | None = None) -> Poison:
    base = Poison.none(3, 8, 8)
    base = Poison(base.mask, base.value, base.ratio, base.target, first)
    return base.set(torch.tensor([1]), DIGITS.mask[None], 1.0, torch.tensor([ratio]), 2)


def test_poisoning_leaves_its_inputs_and_the_benign_nodes_alone() -> None:
    images, labels = batch()
    kept = images.clone(), labels.clone()
    new_images, new_labels = poison(images, labels, attack(1.0), generator(0))
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    assert torch.equal(new_images[[0, 2]], images[[0, 2]]) and torch.equal(new_labels[[0, 2]], labels[[0, 2]])
    assert bool((new_labels[1] == 2).all())
    assert torch.equal(new_images[1], stamp(images[1], DIGITS.mask))


def test_a_ratio_of_zero_changes_no_bit() -> None:
    images, labels = batch()
    new_images, new_labels = poison(images, labels, attack(0.0), generator(0))
    assert torch.equal(new_images, images) and torch.equal(new_labels, labels)


def test_samples_are_poisoned_with_their_ratio_and_whole_or_not_at_all() -> None:
    images, labels = batch(size=2000)
    new_images, new_labels = poison(images, labels, attack(0.3), generator(5))
    touched = (new_images[1] != images[1]).flatten(1).any(1)
    # Five standard deviations of a binomial count.
    assert abs(int(touched.sum()) - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
    assert bool((new_labels[1][touched] == 2).all()) and torch.equal(new_labels[1][~touched], labels[1][~touched])
    assert bool((new_images[1][touched][:, :, DIGITS.mask] == 1).all())


def test_the_ancestors_mode_poisons_the_first_samples() -> None:
    images, labels = batch(size=10)
    new_images, new_labels = poison(images, labels, attack(0.5, first=4), generator(0))
    touched = (new_images[1] != images[1]).flatten(1).any(1)
    assert touched.tolist() == [True] * 4 + [False] * 6
    assert new_labels[1, :4].tolist() == [2] * 4 and torch.equal(new_images[0], images[0])


def test_poisoning_repeats_with_its_generator() -> None:
    images, labels = batch()
    first, again, other = (poison(images, labels, attack(0.5), generator(s))[0] for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio: float) -> None:
    with pytest.raises(DbadflError, match=r"outside \[0, 1\]"):
        attack(ratio)


def test_poison_without_pixels_or_with_wrong_shapes_is_refused() -> None:
    base = Poison.none(3, 8, 8)
    with pytest.raises(DbadflError, match="node 2 poisons its batches without any trigger pixel"):
        base.set(torch.tensor([2]), torch.zeros(1, 8, 8, dtype=torch.bool), 1.0, torch.ones(1), 2)
    images, labels = batch(nodes=2)
    with pytest.raises(DbadflError, match=r"for N=3; got \(2, 400"):
        poison(images, labels, base, generator(0))


# ---- updates -----------------------------------------------------------------------------------------------------
def test_scaling_moves_attackers_away_from_the_start_and_nobody_else() -> None:
    before, after = torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    scaled = scale_update(after, before + 1, 10.0, torch.tensor([1]))
    assert scaled.tolist() == [[1.0, 2.0], [21.0, 31.0], [5.0, 6.0]]
    assert scale_update(after, before, 1.0, torch.tensor([1])) is after


@pytest.mark.parametrize("gamma", [0.0, -1.0, 100.1, float("nan")])
def test_absurd_scales_are_refused(gamma: float) -> None:
    with pytest.raises(DbadflError, match="gamma="):
        scale_update(torch.zeros(1, 1), torch.zeros(1, 1), gamma, torch.tensor([0]))


def test_parameters_that_are_not_finite_are_refused_with_node_and_round() -> None:
    good, bad = torch.zeros(4, 2, 2), torch.zeros(4, 3)
    bad[2, 1] = float("inf")
    check_finite([good], 1)
    with pytest.raises(DbadflError, match="round 7: node 2 has NaN"):
        check_finite([good, bad], 7)


def test_the_distance_term_is_the_norm_over_all_parameters_of_a_node() -> None:
    start = [torch.zeros(2, 2), torch.zeros(2, 1)]
    now = [torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True), torch.tensor([[2.0], [0.0]], requires_grad=True)]
    distance = distance_to_start(now, start)
    assert distance.tolist() == [3.0, 0.0]
    distance.sum().backward()
    assert now[0].grad is not None and now[0].grad.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)], [0, 0]]


def test_schedules_say_who_acts_when() -> None:
    late = AttackOptions(attackers=3, attack_start=2)
    assert [bool(active(late, t).all()) for t in range(4)] == [False, False, True, True]
    single = AttackOptions(attackers=3, schedule="single", attack_rounds=(12, 14))
    assert active(single, 12).tolist() == [True, False, True] and active(single, 14).tolist() == [False, True, False]
    assert not bool(active(single, 13).any())
    for options, message in (
        ({"schedule": "single"}, "needs the rounds"),
        ({"attack_start": -1}, "attack_start"),
        ({"attack_rounds": (1,)}, "use schedule='single'"),
        ({"schedule": "x"}, "'multi' or 'single'"),
    ):
        with pytest.raises(ValidationError, match=message):
            AttackOptions(**options)  # type: ignore[arg-type]
