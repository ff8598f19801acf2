"""Masking and information: identities, games by hand, and the generator's known redundancy and synergy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plait_brainot.errors import BrainotError
from plait_brainot.information import codes, decompose, mutual_information, with_interval
from plait_brainot.masking import analysis, contrast, interval, needed, orders, shapley
from plait_brainot.options import ScenesOptions
from plait_brainot.synthetic import generate, world_of_tokens


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def game(regions: tuple[str, ...], value: object) -> dict[frozenset[str], np.ndarray]:
    subsets = (frozenset(s) for n in range(len(regions) + 1) for s in itertools.combinations(regions, n))
    return {s: np.full(20, float(value(s))) for s in subsets}  # type: ignore[operator]


def test_sets_that_are_needed() -> None:
    names = ("a", "b", "c")
    assert len(needed(names, (), "regions")) == 2 + 3 + 3
    assert frozenset({"a", "c"}) in needed(names, ("a+c",), "pairs")
    assert len(needed(names, (), "shapley")) == 8
    assert len(set(needed(tuple("abcdefghi"), (), "shapley"))) > 100
    for pair in ("a+x", "a", "a+a", "a+b+c"):
        with pytest.raises(BrainotError, match="is not two regions joined by"):
            needed(names, (pair,), "pairs")


def test_synergy_redundancy_and_what_adds_up() -> None:
    names = ("a", "b", "copy", "x")
    scores = game(names, lambda s: 10 * ({"a", "b"} <= s) + 4 * bool(s & {"copy", "x"}))
    found = analysis(names, ("a+b", "copy+x", "a+x"), scores, mean, 50)
    assert found["inter_a_b"].value == 10
    assert found["inter_copy_x"].value == -4
    assert found["inter_a_x"].value == 0
    assert found["inter_a_b"].established
    assert not found["inter_a_x"].established
    assert found["drop_a"].value == 10
    assert found["alone_a"].value == 0
    assert found["drop_copy"].value == 0
    assert found["alone_copy"].value == 4
    assert found["redundancy"].value == pytest.approx(8 / 14)


def test_shapley_of_games_by_hand() -> None:
    exact = shapley(("a", "b", "c"), lambda s: 6.0 * ({"a", "b"} <= s) + 2 * ("c" in s))
    assert {name: value for name, (value, _) in exact.items()} == pytest.approx({"a": 3, "b": 3, "c": 2})
    many = tuple("abcdefghij")
    sampled = shapley(many, lambda s: len(s) + 5.0 * ("a" in s) * ("b" in s))
    assert sum(value for value, _ in sampled.values()) == pytest.approx(15)  # efficiency
    assert sampled["a"][0] == pytest.approx(3.5, abs=4 * sampled["a"][1])
    assert sampled["c"] == (1.0, 0.0)
    assert orders(many) == orders(many)


def test_intervals_are_paired() -> None:
    rng = np.random.default_rng(0)
    base = 100 * rng.random(200)
    scores = {frozenset({"a"}): base + 1, frozenset[str](): base}
    found = contrast(scores, {frozenset({"a"}): 1, frozenset(): -1}, mean, 200)
    assert found.low == pytest.approx(1)  # the spread of the samples cancels
    wide = interval(base, mean, 500)
    assert wide.high - wide.low == pytest.approx(4 * base.std() / 200**0.5, rel=0.2)


def test_bits_by_hand() -> None:
    a, b = np.array([0, 0, 1, 1] * 50), np.array([0, 1, 0, 1] * 50)
    assert mutual_information(a, a) == pytest.approx(1)
    assert mutual_information(a, b) == pytest.approx(0)
    parts = decompose(a ^ b, a, b)
    assert (parts.redundant, parts.synergistic) == pytest.approx((0, 1))
    parts = decompose(a, a, a)
    assert (parts.redundant, parts.unique_a, parts.synergistic) == pytest.approx((1, 0, 0))
    parts = decompose(a, a, b)
    assert (parts.redundant, parts.unique_a, parts.unique_b) == pytest.approx((0, 1, 0))
    both = decompose(a & b, a, b)  # Williams and Beer: 0.311 redundant, 0.5 synergistic
    assert (both.redundant, both.synergistic) == pytest.approx((0.3113, 0.5), abs=1e-4)
    with pytest.raises(BrainotError, match="of 200 and 3 samples"):
        mutual_information(a, a[:3])


def test_dit_agrees() -> None:
    dit = pytest.importorskip("dit")
    outcomes = {"000": 0.3, "011": 0.2, "101": 0.1, "110": 0.4}
    rows = np.array([[int(c) for c in key] for key, p in outcomes.items() for _ in range(round(p * 10))])
    parts = decompose(rows[:, 2], rows[:, 0], rows[:, 1])
    pid = dit.pid.PID_WB(dit.Distribution(outcomes), [[0], [1]], [2])
    assert parts.redundant == pytest.approx(pid[((0,), (1,))], abs=1e-6)
    assert parts.synergistic == pytest.approx(pid[((0, 1),)], abs=1e-6)


@pytest.mark.parametrize("xor", [True, False])
def test_the_generators_synergy_is_in_its_voxels(xor: bool) -> None:
    options = ScenesOptions(train=60, validation=2, test=400, voxels=80, xor=xor)
    made = generate(options, 3, world_of_tokens(options))
    x, light = made.voxels["test"], made.scenes["test"].light
    regions = made.regions[1]
    a, b = (codes(x[:, regions[name]]) for name in ("xorA", "xorB"))
    parts = with_interval(light, a, b, 100)
    assert mutual_information(light, a) < 0.05
    assert parts["synergistic"].value == pytest.approx(1.0 if xor else 0.0, abs=0.1)
    assert parts["synergistic"].low > 0.5 or not xor
