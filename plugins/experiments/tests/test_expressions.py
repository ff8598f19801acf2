"""The language of expectations: what it means, and that nothing else gets through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.errors import BadInput
from plait_experiments.expressions import LONGEST, Comparison, parse

COLUMNS = {("a", "m"): np.array([1.0, 2.0, 6.0]), ("b", "m"): np.array([2.0, 4.0, 3.0])}


def margin(text: str) -> float:
    return float(parse(text).margin(COLUMNS, 3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.m >= 1", 2.0),
        ("a.m <= 1", -2.0),
        ("mean(a.m) <= 0.9 * mean(b.m)", 0.9 * 3 - 3),
        ("a.m - b.m >= -0.7", 0.7),
        ("-a.m + 2 * b.m > 0", 3.0),
        ("mean(a.m / b.m) >= 1", 0.0),
        ("mean(a.m) / mean(b.m) >= 1", 0.0),
        ("a.m / 0 >= 1", math.inf),
        ("max(a.m) <= 5", -1.0),
        ("min(a.m - b.m) >= -2", 0.0),
        ("wins(a.m < b.m) >= 2", 0.0),
        ("wins(a.m < b.m) >= 0.8 * seeds", 2 - 0.8 * 3),
        ("abs(a.m - b.m) <= 2", 0.0),
        ("abs(mean(a.m - b.m)) <= 2", 2.0),
    ],
)
def test_margins(text: str, expected: float) -> None:
    assert margin(text) == pytest.approx(expected)


def test_columns_may_have_leading_axes_as_bootstrap_samples_do() -> None:
    drawn = {key: np.stack([column, column[[0, 0, 1]]]) for key, column in COLUMNS.items()}
    margins = parse("mean(a.m) / mean(b.m) >= 1").margin(drawn, 3)
    assert margins.shape == (2,)
    assert margins[1] == pytest.approx((4 / 3) / (8 / 3) - 1)


def test_what_has_an_interval() -> None:
    assert parse("a.m - b.m >= 0").smooth
    assert parse("mean(a.m) <= 0.9 * mean(b.m)").smooth
    for text in ("wins(a.m < b.m) >= 4", "max(a.m) <= 1", "a.m == 160", "min(a.m) > 0"):
        assert not parse(text).smooth


def test_references_in_order_of_appearance() -> None:
    assert parse("wins(b.x < a.m) >= seeds - a.m").references == [("b", "x"), ("a", "m")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "a.m",
        "1 < 2",
        "a.m < b.m < 3",
        "a.m != 1",
        "a.m in b.m",
        "not a.m < 1",
        "a.m < 1 and b.m < 1",
        "a.m ** 2 < 1",
        "a.m % 2 < 1",
        "a.m // 2 < 1",
        "a.m @ b.m < 1",
        "a.m.x < 1",
        "a < 1",
        "a[0] < 1",
        "a.m < 'text'",
        "a.m < True",
        "a.m < None",
        "a.m < 1j",
        "a.m < 1e999",
        "a.m < inf",
        "mean(a.m, b.m) < 1",
        "mean() < a.m",
        "mean(*a.m) < 1",
        "mean(x=a.m) < 1",
        "wins(a.m) < 1",
        "mean(a.m < 1) < 1",
        "__import__('os').system('true') < a.m",
        "(lambda: 1)() < a.m",
        "[x for x in a.m] < 1",
        "(a := 1) < a.m",
        "f'{a.m}' < a.m",
        "a.m <",
        "a.m < 1; b.m < 1",
        "a.m < 1\nb.m < 1",
        "\0a.m < 1",
        "a.m < " + "9" * 399,
        "(" * 390 + "a.m",
        "-" * 100 + "a.m < 1",
        "a.m < 1 " + " " * LONGEST,
    ],
)
def test_everything_else_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


PIECES = ["a.m", "b.m", "seeds", "mean(", "wins(", "abs(", "max(", ")", "(", "<", "<=", "==", "+", "-", "*", "/", "0.9"]
PIECES += ["1e308", "4", ",", " ", "[", "]", "lambda:", "import", "__class__", ".", "and", "if", "else", "\n", "#", "'"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
def test_any_text_is_parsed_or_bad_input(text: str) -> None:
    try:
        comparison = parse(text)
    except BadInput:
        return
    assert isinstance(comparison, Comparison)
    columns: Any = {r: np.array([1.0, 2.0]) for r in comparison.references}
    assert isinstance(float(comparison.margin(columns, 2)), float)


A, B = COLUMNS["a", "m"], COLUMNS["b", "m"]
LEAVES: list[tuple[str, Any]] = [("a.m", A), ("b.m", B), ("mean(a.m)", A.mean()), ("min(b.m)", 2.0), ("max(a.m)", 6.0)]
LEAVES += [("0.5", 0.5), ("3", 3.0), ("seeds", 3.0), ("abs(a.m - b.m)", abs(A - B)), ("wins(a.m < b.m)", 2.0)]
SIDES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} + {two[1][0]})", two[0][1] + two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} - {two[1][0]})", two[0][1] - two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"{two[0][0]} * {two[1][0]}", two[0][1] * two[1][1])),
        inner.map(lambda one: (f"-({one[0]})", -one[1])),
    ),
    max_leaves=4,
)


@given(SIDES, SIDES)
def test_a_margin_is_the_mean_difference_of_the_sides(left: tuple[str, Any], right: tuple[str, Any]) -> None:
    assert margin(f"a.m + {left[0]} >= {right[0]}") == pytest.approx(float(np.mean(A + left[1] - right[1])))


@given(st.sampled_from(["a.m", "2 * a.m", "a.m - b.m", "mean(a.m) - b.m"]), st.floats(-1e6, 1e6))
def test_the_two_directions_mirror_each_other(side: str, threshold: float) -> None:
    assert margin(f"{side} >= {threshold!r}") == pytest.approx(-margin(f"{side} <= {threshold!r}"))


def test_an_absolute_value_of_means_is_opened_into_its_two_thresholds() -> None:
    columns = {("a", "m"): np.array([1.0, 2.0]), ("b", "m"): np.array([2.0, 4.0])}
    comparison = parse("abs(mean(a.m) - mean(b.m)) / mean(b.m) <= 1")
    near, far = comparison.opened(columns, 2)
    assert far is not None
    assert float(near.margin(columns, 2)) == float(comparison.margin(columns, 2)) == 0.5
    assert float(far.margin(columns, 2)) == 1.5
    swapped = {("a", "m"): columns["b", "m"], ("b", "m"): columns["a", "m"]}
    assert float(near.margin(swapped, 2)) == 2.0  # the sign stays as it was: 1 - (a - b) / b, without abs
    by_seed = parse("abs(a.m - b.m) <= 1")
    assert by_seed.opened(columns, 2) == (by_seed, None)


@pytest.mark.parametrize(
    ("text", "counted", "missed"),
    [
        ("wins(a.m < b.m) >= 4", ["a.m < b.m"], -2),
        ("wins(a.m < b.m) <= 1", ["a.m >= b.m"], -1),
        ("1 >= seeds - wins(a.m >= b.m)", ["a.m >= b.m"], -1),
        ("2 > wins(a.m > b.m) + wins(mean(a.m) <= 3)", ["a.m <= b.m", "mean(a.m) > 3"], 1),
    ],
)
def test_what_is_counted_is_turned_to_speak_for_the_expectation(text: str, counted: list[str], missed: int) -> None:
    columns = {("a", "m"): np.array([1.0, 2.0]), ("b", "m"): np.array([2.0, 4.0])}
    comparison = parse(text)
    assert comparison.counts and not comparison.smooth
    assert [inner.text for inner in comparison.counted(columns, 2)] == counted
    assert comparison.text == text and float(comparison.margin(columns, 2)) == missed


@pytest.mark.parametrize("text", ["a.m >= 1", "max(a.m) >= 1", "wins(a.m == b.m) >= 1", "wins(a.m < min(b.m)) >= 1"])
def test_what_counts_nothing_that_has_an_interval(text: str) -> None:
    assert not parse(text).counts
