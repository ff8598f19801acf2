"""The allocator against brute force, HiGHS and the literal per-node model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from plait_malletrain.allocation import Demand, Plan, allocate, allocate_table, equal_split
from plait_malletrain.errors import MalletrainError
from plait_malletrain.milp import solve_counts, solve_nodes

pytestmark = pytest.mark.smoke


def random_demands(seed: int, jobs: int, nodes: int, most: int, breaks: int = 7) -> list[Demand]:
    """Curves that may fall, and a present map that fills at most the pool."""
    rng = np.random.default_rng(seed)
    demands, left = [], nodes
    for _ in range(jobs):
        low = int(rng.integers(1, 3))
        inner = rng.choice(np.arange(low, most + 1), size=min(breaks, most + 1 - low), replace=False)
        sizes = sorted({low, most, *inner.tolist()})
        values = np.sort(rng.uniform(0, 50, len(sizes))) + rng.normal(0, 2, len(sizes)).clip(-4, 4)
        held = int(rng.integers(0, min(most, left) + 1)) if rng.random() < 0.7 else 0
        held = held if held >= low else 0
        left -= held
        up, down = float(rng.uniform(17, 19)), float(rng.uniform(11, 13))
        demands.append(Demand(sizes, np.abs(values), held, up, down))
    return demands


def brute_force(demands: list[Demand], nodes: int, horizon: float) -> tuple[float, int, tuple[int, ...]]:
    """(value, unchanged jobs, counts): the best by the tie rule."""
    sizes = [[0, *range(d.least, d.most + 1)] for d in demands]
    best = (-math.inf, 0, ())
    for counts in itertools.product(*sizes):
        if sum(counts) <= nodes:
            value = sum(d.gain(k, horizon) for d, k in zip(demands, counts, strict=True))
            unchanged = sum(k == d.held for d, k in zip(demands, counts, strict=True))
            best = max(best, (round(value, 7), unchanged, counts))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_both_programmes_equal_brute_force_with_its_tie_rule(seed: int) -> None:
    demands = random_demands(seed, jobs=3, nodes=9, most=6, breaks=3)
    value, _, counts = brute_force(demands, 9, 120.0)
    for method in ("dense", "windows"):
        plan = allocate(demands, 9, 120.0, method=method)
        assert plan.counts == counts
        assert plan.value == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_counts_model_of_highs_agrees(seed: int) -> None:
    demands = random_demands(100 + seed, jobs=6, nodes=40, most=24)
    plan, check = allocate(demands, 40, 120.0), solve_counts(demands, 40, 120.0)
    assert plan.value == pytest.approx(check.value, rel=1e-6)
    assert allocate(demands, 40, 120.0, "windows") == allocate(demands, 40, 120.0, "dense") == plan


@pytest.mark.parametrize("nodes", [1, 5, 17, 40, 90, 400])
def test_few_nodes_and_more_than_all_jobs_want(nodes: int) -> None:
    """The dense programme looks only where the optimum can pass; the windows look everywhere."""
    for seed in range(10):
        demands = random_demands(700 + seed, jobs=6, nodes=nodes, most=16)
        assert allocate(demands, nodes, 120.0, "dense") == allocate(demands, nodes, 120.0, "windows")


@pytest.mark.parametrize("seed", range(6))
def test_the_literal_model_of_nodes_has_the_same_optimum(seed: int) -> None:
    demands = random_demands(300 + seed, jobs=3, nodes=12, most=8)
    starts = np.cumsum([0, *(d.held for d in demands)])
    held = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
    check, places = solve_nodes(demands, held, 12, 120.0)
    assert allocate(demands, 12, 120.0).value == pytest.approx(check.value, rel=1e-6)
    for demand, own, before in zip(demands, places, held, strict=True):
        moved = set(own) ^ set(before)
        assert len(moved) == abs(len(own) - demand.held)  # nobody migrates


def test_a_job_may_take_all_idle_nodes_at_once() -> None:
    """The authors' big-M of N + 1 gave 5 of 10."""
    demand = Demand([1, 10], [1.0, 10.0], 0, 18.0, 12.0)
    assert allocate([demand], 10, 120.0).counts == (10,)
    assert solve_nodes([demand], [[]], 10, 120.0)[0].counts == (10,)


def test_equal_plans_change_few_jobs_and_favour_the_first() -> None:
    line = [1, 8], [1.0, 8.0]
    assert allocate([Demand(*line), Demand(*line)], 8, 120.0).counts == (8, 0)
    assert allocate([Demand(*line, held=0), Demand(*line, held=8)], 8, 120.0).counts == (0, 8)


def test_a_grow_that_does_not_pay_within_the_horizon_is_not_made() -> None:
    """+1 node gives 10 % more; standing still 18 s of 120 costs 15 %: by hand."""
    slow = Demand([1, 2], [1.0, 1.1], 1, 18.0, 12.0)
    assert allocate([slow], 2, 120.0) == Plan((1,), 120.0)
    assert allocate([slow], 2, 200.0).counts == (2,)  # 200 * 1.1 - 18 = 202 > 200


def test_no_jobs_and_no_nodes_are_valid() -> None:
    assert allocate([], 5, 120.0) == Plan((), 0.0)
    assert allocate([Demand([1], [1.0])], 0, 120.0).counts == (0,)
    assert equal_split([], [], 4) == ()


def test_the_table_form_agrees_with_the_pieces() -> None:
    for seed in range(10):
        demands = random_demands(500 + seed, jobs=5, nodes=30, most=12)
        values = np.array([[d.value(k) for k in range(13)] for d in demands])
        held, least = (np.array([getattr(d, f) for d in demands]) for f in ("held", "least"))
        up, down = (np.array([getattr(d, f) for d in demands]) for f in ("up", "down"))
        assert allocate_table(values, held, up, down, 30, 120.0, least) == allocate(demands, 30, 120.0).counts


@pytest.mark.parametrize(
    ("least", "most", "nodes", "expected"),
    [
        ([1, 1, 1], [64, 64, 64], 10, (4, 3, 3)),
        ([1, 1, 1], [2, 64, 64], 12, (2, 5, 5)),
        ([1, 1], [1, 1], 9, (1, 1)),
        ([4, 4], [8, 8], 5, (0, 0)),
        ([1, 1, 1], [9, 9, 9], 2, (1, 1, 0)),
    ],
)
def test_equal_split(least: list[int], most: list[int], nodes: int, expected: tuple[int, ...]) -> None:
    assert equal_split(least, most, nodes) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"least": 3, "most": 2}, "nmin, nmax = (3, 2)"),
        ({"sizes": [0, 2], "values": [0.0, 1.0]}, "sizes = [0, 2]"),
        ({"sizes": [1, 2, 3]}, "sizes, values = 3 and 2 entries"),
        ({"sizes": [2, 1]}, "rise"),
        ({"sizes": [2, 2]}, "rise"),
        ({"values": [1.0, -2.0]}, "values = [1.0, -2.0]"),
        ({"values": [1.0, math.nan]}, "finite"),
        ({"most": 5}, "must cover nmin..nmax = 1..5"),
        ({"up": -1.0}, "t_up = -1.0"),
        ({"down": math.nan}, "t_down = nan"),
        ({"held": -1}, "held = -1"),
    ],
)
def test_bad_demands_name_field_and_value(change: dict[str, object], said: str) -> None:
    given: dict[str, object] = {"sizes": [1, 2], "values": [1.0, 2.0], "name": "job 7"} | change
    with pytest.raises(MalletrainError, match="job 7: ") as error:
        Demand(**given)  # type: ignore[arg-type]
    assert said in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_bad_horizons_and_maps() -> None:
    with pytest.raises(MalletrainError, match="T_fwd = nan"):
        allocate([Demand([1], [1.0])], 3, math.nan)
    with pytest.raises(MalletrainError, match="nodes = -1"):
        allocate([], -1, 1.0)
    two = [Demand([1], [1.0]), Demand([1], [1.0])]
    with pytest.raises(MalletrainError, match="node 1 belongs to two jobs"):
        solve_nodes(two, [[1], [1]], 3, 1.0)
    with pytest.raises(MalletrainError, match="there is no node 7"):
        solve_nodes(two, [[7], []], 3, 1.0)
