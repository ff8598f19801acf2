"""Power and the seeds that it takes, against simulated tests and textbook figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plait_experiments.power import plan, power, seeds_needed


@pytest.mark.parametrize(
    ("effect", "seeds"),
    # margin over SD -> pairs at 80 %, two-sided 5 % (Cohen 1988, table 2.4; G*Power: 0.2, 0.5, 0.8, 1, 1.5)
    [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6)],
)
def test_seeds_of_the_paired_t_test(effect: float, seeds: int) -> None:
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(effect * 7, 7.0) == seeds
    assert power(effect, 1.0, seeds) >= 0.8 > power(effect, 1.0, seeds - 1)


@pytest.mark.parametrize(("n", "effect"), [(3, 1.5), (5, 1.0), (8, 0.6), (30, 0.5)])
def test_power_is_how_often_the_interval_lies_beyond(n: int, effect: float) -> None:
    draws = np.random.default_rng(n).normal(effect, 1.0, (20_000, n))
    half = stats.t.ppf(0.975, n - 1) * draws.std(-1, ddof=1) / np.sqrt(n)
    assert np.mean(draws.mean(-1) - half > 0) == pytest.approx(power(effect, 1.0, n), abs=0.012)


@pytest.mark.parametrize("truth", [0.0, 0.4, 2.0])
def test_power_with_a_threshold_on_either_side(truth: float) -> None:
    n, bound = 12, 1.0
    draws = np.random.default_rng(1).normal(truth, 1.0, (20_000, n))
    half = stats.t.ppf(0.975, n - 1) * draws.std(-1, ddof=1) / np.sqrt(n)
    middle = np.abs(draws.mean(-1))
    takes = plan(bound - truth, 1.0, bound + truth)
    assert takes.two_sided and takes.sides == "two-sided"
    if truth <= bound:
        share, sides = np.mean(middle + half <= bound), (bound - truth, bound + truth)
    else:
        share, sides = np.mean(middle - half >= bound), (truth - bound, -bound - truth)
    assert share == pytest.approx(power(sides[0], 1.0, n, sides[1]), abs=0.012)


def test_a_required_margin_takes_the_place_of_the_observed_one() -> None:
    assert plan(0.1, 1.0).seeds == seeds_needed(0.1, 1.0)
    assert plan(-0.5, 1.0).margin == 0.5 and plan(-0.5, 1.0).seeds == 34  # a miss is seen as well
    stated = plan(-0.5, 1.0, required=0.8)
    assert (stated.margin, stated.required, stated.seeds, stated.sides) == (0.8, True, 15, "one-sided")
    assert stated.as_dict() == {
        "deviation": 1.0,
        "margin": 0.8,
        "required": True,
        "sides": "one-sided",
        "power": 0.8,
        "seeds": 15,
        "undecidable": False,
    }


@pytest.mark.parametrize(
    ("margin", "deviation", "seeds", "undecidable"),
    [
        (0.0, 1.0, None, True),
        (1e-9, 1.0, None, True),
        (0.0, 0.0, 2, False),
        (1.0, 0.0, 2, False),
        (1e12, 1e-3, 2, False),
        (1e-300, 1e-305, 2, False),
        (0.283, 1.0, 100, False),
        (0.28, 1.0, 103, True),
    ],
)
def test_the_ends(margin: float, deviation: float, seeds: int | None, undecidable: bool) -> None:
    takes = plan(margin, deviation)
    assert (takes.seeds, takes.undecidable) == (seeds, undecidable)
