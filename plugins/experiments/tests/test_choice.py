"""What is taken among candidates: the best only where it beats the default by more than its standard error."""

from __future__ import annotations

import math

import pytest

from plait_experiments.choice import choose

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "default", "higher", "chosen", "best"),
    [
        ([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], 0, True, 1, 1),  # paired: the seeds' own spread does not count
        ([[1.0, 2.0, 3.0], [3.0, 1.0, 4.0]], 0, True, 0, 1),  # 0.67 +- 0.88: a tie
        ([[1.0, 2.0, 3.0], [3.0, 1.0, 4.0]], 1, True, 1, 1),
        ([[1.0, 2.0, 3.0], [0.0, 1.5, 2.0]], 0, False, 1, 1),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], 1, True, 1, 0),  # the same: the default
        ([[0.0, 2.0], [1.0, 3.0]], 0, True, 1, 1),
        ([[0.0, 2.0], [0.0, 3.0]], 0, True, 0, 1),  # 0.5 +- 0.5 does not exceed it
        ([[1.0], [9.0]], 0, True, 0, 1),  # one seed has no standard error
        ([[1.0], [9.0]], None, True, 1, 1),
        ([[NAN, 1.0], [0.0, 0.5]], 0, True, 1, 1),  # a default that failed is out
        ([[0.0, 1.0], [9.0, None]], 0, True, 0, 0),  # and so is a candidate
        ([[None], [NAN], []], 0, True, None, None),
    ],
)
def test_choices(
    scores: list[list[float | None]], default: int | None, higher: bool, chosen: int | None, best: int | None
) -> None:
    choice = choose([dict(enumerate(values)) for values in scores], default, higher)
    assert (choice.chosen, choice.best) == (chosen, best)


def test_the_figures_of_a_tie() -> None:
    choice = choose([{5: 1.0, 6: 2.0, 7: 3.0}, {7: 4.0, 5: 3.0, 6: 1.0}], 0, True)
    nothing, gain = choice.gains
    assert nothing is None and gain is not None
    assert gain.mean == pytest.approx(2 / 3) and gain.standard_error == pytest.approx(math.sqrt(7 / 9))
