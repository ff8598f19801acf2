"""Exact k, ties, floors and schedules against plain sorting and hand-computed values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_fairprune.errors import FairpruneError
from plait_fairprune.options import FairpruneOptions
from plait_fairprune.schedule import Schedule
from plait_fairprune.selection import keep_largest, keep_per_layer, keep_with_floors, layer_floors, layer_shares

pytestmark = pytest.mark.smoke


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_exactly_the_k_largest_stay_and_ties_go_by_index(values: list[int], k: int) -> None:
    k = min(k, len(values))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    expected = [i in set(order) for i in range(len(values))]
    assert keep_largest(torch.tensor(values, dtype=torch.float32), k).tolist() == expected


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_floors_hold_and_the_sum_is_exact(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    floors = [data.draw(st.integers(1, size)) for size in sizes]
    k = data.draw(st.integers(sum(floors), sum(sizes)))
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=sum(sizes), max_size=sum(sizes)))).float()
    kept = keep_with_floors(scores, k, sizes, floors)
    counts = [int(part.sum()) for part in kept.split(sizes)]
    assert sum(counts) == k
    assert all(count >= floor for count, floor in zip(counts, floors, strict=True))
    # within a layer nothing stays that is smaller than something that goes
    for part, score in zip(kept.split(sizes), scores.split(sizes), strict=True):
        if part.any() and not part.all():
            assert score[part].min() >= score[~part].max()
    # a layer above its floor obeys the global ranking
    free = torch.cat([torch.full((s,), c > f) for s, c, f in zip(sizes, counts, floors, strict=True)])
    if bool((kept & free).any()) and bool((~kept).any()):
        assert scores[kept & free].min() >= scores[~kept & free].max() if bool((~kept & free).any()) else True


def test_a_layer_that_would_vanish_keeps_its_floor() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0])
    assert keep_with_floors(scores, 3, [4, 2], [1, 1]).tolist() == [True, True, False, False, False, True]


def test_shares_of_layers_by_largest_remainder() -> None:
    assert layer_floors([1000, 10, 3], 0.005) == [5, 1, 1]
    assert layer_shares([100, 50, 50], 21, [1, 1, 1]) == [11, 5, 5]
    assert layer_shares([1000, 2], 10, [1, 1]) == [9, 1]
    with pytest.raises(FairpruneError, match="keep at least 3"):
        layer_shares([4, 4, 4], 2, [1, 1, 1])
    kept = keep_per_layer(torch.tensor([3.0, 1.0, 2.0, 0.0]), [1, 2], [2, 2])
    assert kept.tolist() == [True, False, True, True]


def test_the_cubic_density_by_hand() -> None:
    options = FairpruneOptions(sparsity=0.9)
    schedule = Schedule.of(options, 1000, 100)
    assert (schedule.start, schedule.reached, schedule.freeze) == (20, 60, 65)
    assert schedule.events == (*range(20, 65, 4), 65)
    # 0.1 + 0.9 (1 - (40 - 20) / 40)^3 of 1000
    assert schedule.kept(40) == round(1000 * (0.1 + 0.9 * 0.125))
    assert schedule.kept(19) == 1000
    assert schedule.kept(20) == 1000
    assert schedule.kept(60) == schedule.kept(64) == schedule.kept(99) == 100
    assert schedule.due(24)
    assert not schedule.due(25)
    assert not schedule.due(66)


def test_other_densities() -> None:
    once = Schedule.of(FairpruneOptions(sparsity=0.5, density="once"), 10, 100)
    assert once.events == (20,)
    assert once.kept(20) == 5
    rounds = Schedule.of(FairpruneOptions(sparsity=15 / 16, density="rounds", rounds=4, dense_share=0.2), 1600, 100)
    assert rounds.events == (20, 40, 60, 80)
    assert [rounds.kept(step) for step in rounds.events] == [800, 400, 200, 100]
    constant = Schedule.of(FairpruneOptions(sparsity=0.5, density="constant", dense_share=0), 10, 100)
    assert constant.events[0] == 0
    assert constant.kept(0) == 5
    assert Schedule.of(FairpruneOptions(sparsity=0), 10, 100).events == ()


@pytest.mark.parametrize(
    ("options", "size", "total", "message"),
    [
        ({"sparsity": 0.99}, 10, 100, "leaves none of 10"),
        ({"dense_share": 0.9}, 10, 2, "leaves no step of 2"),
        ({"density": "rounds", "rounds": 50, "sparsity": 0.5}, 10, 20, "rounds = 50 do not fit"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(options: dict, size: int, total: int, message: str) -> None:
    with pytest.raises(FairpruneError, match=message):
        Schedule.of(FairpruneOptions(**options), size, total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"strength": -1}, "strength"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"measure": "equality"}, "measure"),
        ({"surrogate": "relu"}, "surrogate"),
        ({"scope": "block"}, "scope"),
        ({"strength": float("nan")}, "strength"),
        ({"target_share": 0.9}, "target_share = 0.9"),
        ({"scores": "snip"}, "set learn_mask = false"),
        ({"scores": "fpgm", "learn_mask": False}, "set structure = 'channels'"),
        ({"scores": "snip", "learn_mask": False, "structure": "channels"}, "set structure = 'unstructured'"),
        ({"rewind": True}, "rewind needs density"),
        ({"penalty": "signed", "tolerance": 0.1}, "no meaning with penalty = 'signed'"),
        ({"measure": "degradation"}, "set protocol = 'paper'"),
        ({"baseline": "no-such"}, "no baseline 'no-such'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FairpruneOptions(**options)
