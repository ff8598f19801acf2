"""Jensen-Shannon by its definition, and its bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_cdmoe.distance import EPSILON, KINDS, distance, jensen_shannon

pytestmark = pytest.mark.smoke


def by_definition(a: list[float], b: list[float]) -> float:
    p, q = ([math.exp(v) / sum(map(math.exp, row)) + EPSILON for v in row] for row in (a, b))
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    kl = [sum(x * math.log(x / y) for x, y in zip(row, m, strict=True)) for row in (p, q)]
    return 0.5 * kl[0] + 0.5 * kl[1]


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_it_is_the_definition_and_bounded(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(row) for row in zip(*pairs, strict=True))
    value = float(jensen_shannon(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))
    assert value == pytest.approx(by_definition(a, b), abs=1e-9)
    assert -1e-12 <= value <= math.log(2) + 1e-6
    other = float(jensen_shannon(torch.tensor(b), torch.tensor(a)))
    assert other == pytest.approx(value, abs=1e-5)


def test_by_hand_and_equal_states_are_at_zero() -> None:
    # softmax gives (1/2, 1/2) and (1/4, 3/4): M = (3/8, 5/8)
    a, b = torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(3.0)])
    expected = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)) + 0.5 * (
        0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    )
    assert float(jensen_shannon(a, b)) == pytest.approx(expected, abs=1e-6)
    states = torch.randn(50, 64) * 5
    assert float(jensen_shannon(states, states).abs().max()) < 1e-7
    assert float(jensen_shannon(torch.tensor([200.0, 0.0]), torch.tensor([0.0, 200.0]))) == pytest.approx(math.log(2))


def test_all_kinds_broadcast_over_candidates() -> None:
    reference, states = torch.randn(6, 8), torch.randn(3, 6, 8)
    head = torch.nn.Linear(8, 11)
    for kind in KINDS:
        measure = distance(kind, head)
        with torch.no_grad():
            apart = measure(reference, states)
            assert apart.shape == (3, 6)
            assert float(measure(reference, reference).abs().max()) < 1e-6
            torch.testing.assert_close(apart[1], measure(reference, states[1]))
