"""Statistics and verdicts against results made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from plait_experiments import statistics
from plait_experiments.expressions import parse
from plait_experiments.statistics import difference, interval, summary
from plait_experiments.verdicts import Judgement, Verdict, combine, judge

NAN = float("nan")


def verdict(text: str, a: Sequence[float | None], b: Sequence[float | None] = (), planned: int = 0) -> Judgement:
    values = {("a", "m"): dict(enumerate(a)), ("b", "m"): dict(enumerate(b))}
    return judge(parse(text), values, range(planned or max(len(a), len(b))))


# ---- one expectation ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "a", "b", "expected"),
    [
        ("a.m - b.m >= -0.7", [84.8, 84.9, 84.7, 84.9, 84.8], [84.2, 84.4, 84.1, 84.3, 84.2], Verdict.HOLDS),
        ("a.m - b.m >= -0.7", [82.0, 82.1, 81.9, 82.2, 82.0], [84.2, 84.4, 84.1, 84.3, 84.2], Verdict.FAILS),
        ("a.m - b.m >= -0.7", [84, 82, 86, 83, 84.2], [84.2, 84.4, 84.1, 84.3, 84.2], Verdict.UNDECIDED),
        ("mean(a.m) <= 0.9 * mean(b.m)", [8.1, 8.3, 8.0, 8.2, 8.1], [10.1, 10.2, 10.0, 9.9, 10.1], Verdict.HOLDS),
        ("mean(a.m) <= 0.9 * mean(b.m)", [9.5, 9.6, 9.4, 9.5, 9.6], [10.1, 10.2, 10.0, 9.9, 10.1], Verdict.FAILS),
        ("wins(a.m < b.m) >= 4", [1, 1, 1, 1, 3], [2, 2, 2, 2, 2], Verdict.UNDECIDED),  # enough wins, but by little
        ("wins(a.m < b.m) >= 4", [1, 1, 1, 3, 3], [2, 2, 2, 2, 2], Verdict.UNDECIDED),
        ("wins(a.m < b.m) >= 4", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),
        ("wins(a.m < b.m) >= 5", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.UNDECIDED),  # a tie is not a win
        ("wins(a.m < b.m) >= 1", [2.9, 3, 3.1, 3, 1.9], [2, 2, 2, 2, 2], Verdict.UNDECIDED),
        ("wins(a.m < b.m) >= 4", [3, 3, 3, 3, 2], [2, 2, 2, 2, 2], Verdict.FAILS),
        ("wins(a.m < b.m) >= 4", [2, 2, 2, 2, 2], [2, 2, 2, 2, 2], Verdict.FAILS),
        ("wins(a.m <= b.m) >= 4", [2, 2, 2, 2, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),
        ("wins(a.m > b.m) <= 1", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),  # here a win is a loss
        ("0.8 * seeds <= wins(a.m < b.m)", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),
        ("seeds - wins(a.m < b.m) <= 1", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),
        ("wins(a.m < b.m) + wins(a.m > 0) >= 9", [1, 1, 1, 1, 2], [2, 2, 2, 2, 2], Verdict.HOLDS),
        ("wins(a.m < b.m) + wins(a.m > 0) >= 5", [1, 1, 1, 1, 8], [2, 2, 2, 2, 2], Verdict.UNDECIDED),
        ("wins(a.m == b.m) >= 2", [2, 2, 2], [2, 2, 2], Verdict.HOLDS),  # equalities have no interval
        ("wins(a.m < b.m) >= 1", [1], [2], Verdict.UNDECIDED),
        ("abs(mean(a.m) - mean(b.m)) <= 1", [2.1, 1.9, 2.0, 2.2], [2, 2, 2, 2], Verdict.HOLDS),
        ("abs(mean(a.m) - mean(b.m)) <= 1", [3, 1, 2.5, 1.5], [2, 2, 2, 2], Verdict.UNDECIDED),  # the kink hides the SD
        ("abs(mean(a.m) - mean(b.m)) <= 1", [4.1, 3.9, 4.0, 4.2], [2, 2, 2, 2], Verdict.FAILS),
        ("abs(mean(a.m) - mean(b.m)) >= 1", [0.1, -0.1, 0.0, 0.2], [2, 2, 2, 2], Verdict.HOLDS),
        ("a.m == 160", [160, 160, 160], [], Verdict.HOLDS),
        ("a.m == 160", [160, 160, 161], [], Verdict.FAILS),
        ("a.m == 160", [159, 160, 161], [], Verdict.FAILS),  # the mean would hide it
        ("a.m == b.m", [1.5, 2.5], [1.5, 2.5], Verdict.HOLDS),
        ("max(a.m) <= 1e-4", [1e-6, 2e-5], [], Verdict.HOLDS),
        ("max(a.m) <= 1e-4", [1e-6, 2e-4], [], Verdict.FAILS),
        ("a.m <= b.m", [1, 1, 1], [1, 1, 1], Verdict.HOLDS),  # every seed ties exactly at the threshold
        ("a.m < b.m", [1, 1, 1], [1, 1, 1], Verdict.FAILS),
        ("a.m <= 0.9 * b.m", [6.3, 6.3, 6.3], [7, 7, 7], Verdict.HOLDS),  # rounding is no miss
        ("a.m / b.m >= 1", [1, 2, 3], [0, 0, 0], Verdict.UNDECIDED),
        ("a.m >= 0", [1.0], [], Verdict.UNDECIDED),
        ("a.m >= 0", [1.0, 2.0], [], Verdict.UNDECIDED),
        ("a.m >= 0", [1.0, 1.01], [], Verdict.HOLDS),  # two seeds: t with one degree
        ("mean(a.m) / mean(b.m) >= 1", [2.0, 2.1], [0.0, 1.0], Verdict.UNDECIDED),  # undefined without the second seed
    ],
)
def test_verdicts(text: str, a: list[float], b: list[float], expected: Verdict) -> None:
    assert verdict(text, a, b).verdict is expected


@pytest.mark.parametrize("gone", [None, NAN, math.inf])
def test_a_seed_without_a_value_can_refute_but_not_support(gone: float | None) -> None:
    good, bad = [5.0, 5.1, 4.9, 5.0], [1.0, 1.1, 0.9, 1.0]
    assert verdict("a.m >= 3", [*good, 5.0]).verdict is Verdict.HOLDS
    open_one = verdict("a.m >= 3", [*good, gone])
    assert open_one.verdict is Verdict.UNDECIDED
    assert open_one.missing == {"a.m": [4]} and "a.m: seed 4" in open_one.note
    assert verdict("a.m >= 3", [*bad, gone]).verdict is Verdict.FAILS
    assert verdict("wins(a.m > b.m) >= 4", [*good, gone], [0.0] * 5).verdict is Verdict.UNDECIDED
    assert verdict("a.m == 5", [5.0, 5.0, gone]).verdict is Verdict.UNDECIDED


def test_seeds_stay_paired_when_one_arm_lacks_one() -> None:
    result = verdict("a.m - b.m >= 0", [1.0, NAN, 3.0, 4.0], [0.5, 100.0, 2.5, 3.5])
    assert result.n == 3 and result.margin == pytest.approx(0.5)


def test_seeds_that_never_ran_count_as_missing() -> None:
    result = verdict("a.m >= 0", [1.0, 2.0, 1.5], planned=5)
    assert result.verdict is Verdict.UNDECIDED and result.missing == {"a.m": [3, 4]}


def test_nothing_ran() -> None:
    result = verdict("a.m - b.m >= 0", [], [1.0, 2.0])
    assert result.verdict is Verdict.NOT_RUN and result.margin is None


def test_one_seed_says_that_it_has_no_interval() -> None:
    alone = verdict("a.m >= 0", [1.0])
    assert alone.interval is None and alone.power is None and alone.note == "one seed gives no interval"


def test_wins_have_the_interval_of_what_they_count() -> None:
    a, b = [1.0, 1.2, 0.9, 1.1, 3.0], [2.0, 2.1, 2.0, 2.3, 2.0]
    counted = verdict("wins(a.m < b.m) >= 4", a, b)
    plain = verdict("b.m - a.m > 0", a, b)
    assert (counted.margin, counted.left) == (0.0, 4.0) and not counted.exact
    assert counted.difference == pytest.approx(plain.margin) and counted.interval and plain.interval
    ends = (plain.interval.low, plain.interval.high)
    assert (counted.interval.low, counted.interval.high) == pytest.approx(ends)
    assert counted.power and plain.power and counted.power.seeds == plain.power.seeds
    assert counted.verdict is plain.verdict is Verdict.UNDECIDED
    lost = verdict("wins(a.m > b.m) >= 2", a, b)
    assert lost.difference == pytest.approx(-0.64) and lost.verdict is Verdict.UNDECIDED
    other = verdict("wins(a.m < b.m) >= 5", [1.0, 1.0, 1.1, 1.0, 2.0], [2.0] * 5)
    assert other.verdict is Verdict.UNDECIDED and "the count says otherwise" in other.note


def test_what_is_undecided_says_what_it_takes() -> None:
    near = verdict("a.m >= 0", [1.0, -0.5, 1.5, 0.4, -0.3])
    assert near.verdict is Verdict.UNDECIDED and not near.undecidable and near.power is not None
    assert f"it takes {near.power.seeds} seeds for 80 % power" in near.note
    far = verdict("a.m >= 0", [1.0, -1.5, 1.5, 0.4, -1.3])
    assert far.verdict is Verdict.UNDECIDED and far.undecidable and "undecidable at this size" in far.note
    assert far.as_dict()["undecidable"] and far.as_dict()["power"]["undecidable"]
    stated = judge(
        parse("a.m >= 0"), {("a", "m"): dict(enumerate([1.0, -1.5, 1.5, 0.4, -1.3]))}, range(5), required=2.0
    )
    assert stated.power is not None and stated.power.required and stated.power.seeds == 6 and not stated.undecidable
    nothing = verdict("a.m >= 0", [1.0, -1.0])
    assert nothing.undecidable and "more than 1,000,000 seeds" in nothing.note


def test_few_seeds_are_said_to_be_few() -> None:
    assert "few seeds (5)" in verdict("a.m >= 0", [1.0, 2.0, 1.5, 1.2, 1.1]).note
    assert verdict("a.m >= 0", [1.0 + 0.01 * i for i in range(12)]).note == ""


def test_the_papers_margin_stands_beside_ours() -> None:
    values = {("a", "m"): {0: 1.0}, ("b", "m"): {0: 2.0}}
    paper = {"a.m": 74.03, "b.m": 74.70}
    assert judge(parse("a.m - b.m >= -0.7"), values, [0], paper=paper).paper_margin == pytest.approx(0.03)
    assert judge(parse("a.m - b.m >= -0.7"), values, [0], paper={"a.m": 1.0}).paper_margin is None
    assert judge(parse("wins(a.m < b.m) >= 1"), values, [0], paper=paper).paper_margin is None


# ---- a claim -----------------------------------------------------------------------------------------------------
def of(word: Verdict, guard: bool = False) -> Judgement:
    return Judgement("a.m >= 0", guard, word)


@pytest.mark.parametrize(
    ("expected", "guards", "verdict"),
    [
        ([Verdict.HOLDS, Verdict.HOLDS], [Verdict.HOLDS], Verdict.HOLDS),
        ([Verdict.HOLDS, Verdict.FAILS], [Verdict.HOLDS], Verdict.FAILS),
        ([Verdict.HOLDS], [Verdict.FAILS], Verdict.GUARD_BROKEN),
        ([Verdict.FAILS], [Verdict.FAILS], Verdict.FAILS),
        ([Verdict.UNDECIDED], [Verdict.FAILS], Verdict.GUARD_BROKEN),
        ([Verdict.HOLDS, Verdict.UNDECIDED], [Verdict.HOLDS], Verdict.UNDECIDED),
        ([Verdict.HOLDS], [Verdict.UNDECIDED], Verdict.UNDECIDED),
        ([Verdict.NOT_RUN], [], Verdict.NOT_RUN),
        ([Verdict.HOLDS], [Verdict.NOT_RUN], Verdict.NOT_RUN),
        ([Verdict.NOT_RUN, Verdict.FAILS], [], Verdict.FAILS),
        ([], [], Verdict.NOT_RUN),
    ],
)
def test_claims(expected: list[Verdict], guards: list[Verdict], verdict: Verdict) -> None:
    assert combine([*map(of, expected), *(of(word, True) for word in guards)]) is verdict


# ---- statistics --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_below_ten_seeds_it_is_the_paired_t_test(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=(2, n)) * 3 + np.array([[80.0], [81.0]])
    result = interval([first, second], lambda a, b: b.mean(-1) - a.mean(-1))
    theirs = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert result is not None and result.method == "t" and result.few
    assert (result.low, result.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    spread = statistics.deviation([first, second], lambda a, b: b.mean(-1) - a.mean(-1))
    assert spread == pytest.approx(np.std(second - first, ddof=1), rel=1e-9)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_t_intervals_cover_95_percent(n: int) -> None:
    rng, hits, trials = np.random.default_rng(n), 0, 1500
    for _ in range(trials):
        shared = rng.normal(0, 5, n)
        first, other = rng.normal(size=(2, n)) + shared + np.array([[3.0], [1.0]])
        result = interval([first, other], lambda a, b: a.mean(-1) - b.mean(-1))
        assert result is not None
        hits += result.low <= 2.0 <= result.high
    assert 0.935 <= hits / trials <= 0.965


def test_a_ratio_of_means_has_the_interval_of_its_jackknife() -> None:
    a, b = np.array([8.1, 8.6, 7.9, 8.4]), np.array([10.1, 10.9, 9.6, 10.4])
    others = [np.delete(a, i).mean() / np.delete(b, i).mean() for i in range(4)]
    error = math.sqrt(3 / 4 * float(np.sum((np.array(others) - np.mean(others)) ** 2)))
    result = interval([a, b], lambda x, y: x.mean(-1) / y.mean(-1))
    middle, half = a.mean() / b.mean(), stats.t.ppf(0.975, 3) * error
    assert result is not None and (result.low, result.high) == pytest.approx((middle - half, middle + half))


def test_beyond_ten_seeds_it_is_scipys_bootstrap_at_the_widened_level() -> None:
    values = np.array([1.0, 2.5, 3.0, 4.5, 2.0, 3.3, 1.2, 2.2, 5.1, 2.9, 3.8])
    result = interval([values], lambda c: c.mean(-1))
    wide = statistics._widened(0.95, len(values))
    rng = np.random.default_rng(0)
    theirs = stats.bootstrap((values,), np.mean, confidence_level=wide, n_resamples=9999, method="BCa", rng=rng)
    assert result is not None and result.method == "BCa" and not result.few
    assert (result.low, result.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.15)


@pytest.mark.parametrize("n", [11, 30])
def test_bootstrap_intervals_cover_the_truth(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng, hits, trials = np.random.default_rng(7), 0, 300
    for _ in range(trials):
        first, other = rng.normal(size=(2, n)) + np.array([[3.0], [1.0]])
        result = interval([first, other], lambda a, b: a.mean(-1) - b.mean(-1))
        assert result is not None
        hits += result.low <= 2.0 <= result.high
    assert 0.91 <= hits / trials <= 0.99


def test_pairing_removes_what_the_seeds_share() -> None:
    seeds = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    result = interval([seeds + 1.0 + 0.01 * np.arange(5), seeds], lambda a, b: a.mean(-1) - b.mean(-1))
    assert result is not None and 0.99 < result.low <= result.high < 1.05


def test_degenerate_data() -> None:
    mean = lambda c: c.mean(-1)
    assert interval([np.array([1.0])], mean) is None and statistics.deviation([np.array([1.0])], mean) is None
    for n in (4, 12):
        same = interval([np.full(n, 0.1)], mean)
        assert same is not None and (same.method, same.few) == ("constant", False)
        assert same.low == same.high == pytest.approx(0.1)
    for zeros in (4, 11):
        ties = interval([np.array([0.0] * zeros + [1.0])], mean)
        assert ties is not None and ties.low <= 1 / (zeros + 1) <= ties.high
    assert interval([np.array([1.0, 2.0, 3.0])], lambda c: c.mean(-1) * np.nan) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_an_interval_is_ordered_around_the_mean(values: list[float]) -> None:
    column = np.array(values)
    result = interval([column], lambda c: c.mean(-1))
    assert result is not None and result.low <= result.high
    slack = 1e-9 * max(1.0, float(np.abs(column).max()))
    low, high = (column.min(), column.max()) if len(values) > 10 else (result.low, result.high)
    assert low - slack <= result.low <= column.mean() + slack and column.mean() - slack <= result.high <= high + slack


def test_summary_and_difference() -> None:
    result = summary([1.0, 2.0, 3.0, NAN, None])
    assert (result.mean, result.n, result.undefined) == (2.0, 3, 2)
    assert result.standard_error == pytest.approx(1 / math.sqrt(3))
    assert summary([]).mean is None and summary([1.0]).standard_error is None
    paired = difference({0: 1.0, 1: 2.0, 2: 3.0, 3: NAN}, {0: 1.5, 1: 2.5, 2: 3.6, 4: 9.0})
    assert paired.paired and paired.summary.n == 3 and paired.interval is not None
    assert paired.summary.mean == pytest.approx(1.6 / 3)
    apart = difference({0: 1.0, 1: 3.0}, {5: 4.0, 6: 6.0})
    assert not apart.paired and apart.summary.mean == 3.0 and apart.interval is None
    assert difference({}, {0: 1.0}).summary.mean is None
