"""Check values of the card and brute-force oracles for densities, schedules, scores and selections."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_chase import exploration, schedules, scores
from plait_chase.channels import min_channels, rounded_alive, select_channels
from plait_chase.erk import budget, erk_densities, layer_counts, random_masks
from plait_chase.errors import ChaseError

pytestmark = pytest.mark.smoke

SHAPES = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (10, 16)}
quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("density", "expected"), [(0.3, (0.499685, 0.165337, 1.0)), (0.1, (0.164739, 0.054509, 0.340137))]
)
def test_erk_matches_the_card(density: float, expected: tuple[float, ...]) -> None:
    got = erk_densities(SHAPES, density)
    assert list(got.values()) == pytest.approx(expected, abs=1e-6)
    numel = {k: math.prod(v) for k, v in SHAPES.items()}
    assert sum(got[k] * numel[k] for k in SHAPES) / sum(numel.values()) == pytest.approx(density)


def test_budget_is_decimal() -> None:
    assert budget(0.1, 287_264) == 28_726
    assert budget(0.29, 100) == 29
    assert budget(0.2, 287_264) == 57_452


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3), st.just(3)),
    ),
    min_size=1,
    max_size=4,
)


@quick
@given(shapes, st.floats(0.02, 1.0), st.sampled_from(["erk", "uniform"]), st.integers(0, 99))
def test_random_masks_have_exactly_k_ones(
    sizes: list[tuple[int, ...]], density: float, distribution: str, seed: int
) -> None:
    named = {f"l{i}": size for i, size in enumerate(sizes)}
    total = sum(math.prod(s) for s in sizes)
    if budget(density, total) == 0:
        return
    masks = random_masks(named, density, torch.Generator().manual_seed(seed), distribution)
    again = random_masks(named, density, torch.Generator().manual_seed(seed), distribution)
    assert sum(int(m.sum()) for m in masks.values()) == budget(density, total)
    assert all(torch.equal(masks[k], again[k]) and set(masks[k].unique().tolist()) <= {0.0, 1.0} for k in masks)


def test_last_layer_that_cannot_absorb_spills() -> None:
    # Rounding up 0.5 in every layer asks for four of two ones; the last layers give them back.
    assert layer_counts(dict.fromkeys("abcd", (1, 1)), 2, "uniform") == {"a": 1, "b": 1, "c": 0, "d": 0}


def test_schedules_match_the_card() -> None:
    assert [schedules.bound(t, 100, 0.1, 0.05) for t in (0, 50, 100)] == pytest.approx([0.15, 0.125, 0.10])
    assert schedules.bound(100, 100, 0.1, 0.05, extra=0.005) == pytest.approx(0.105)
    assert [schedules.channel_target(t, 100, 0.5) for t in (25, 50, 75, 100, 120)] == [
        0.2890625,
        0.4375,
        0.4921875,
        0.5,
        0.5,
    ]
    assert schedules.drop_rate(0, 100) == pytest.approx(0.5)
    assert schedules.drop_rate(100, 100) == pytest.approx(0.005)
    events = [t for t in range(1, 601) if schedules.channel_event(t, 50, 25, 480)]
    assert events == [38, 88, 138, 188, 238, 288, 338, 388, 438, 480]
    assert [t for t in range(1, 101) if schedules.exploration_event(t, 25, 100)] == [25, 50, 75]


def test_scores_of_the_card_example() -> None:
    weight = torch.tensor([[[[2.0, 7.0], [9.0, -2.0]]]])
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert scores.umm(weight, mask).item() == 1
    assert scores.masked_mean(weight, mask).item() == 2
    assert scores.connection_density(weight, mask).item() == 0.5
    assert scores.kernel_density(weight, mask).item() == 1
    assert scores.masked_mean(weight, torch.zeros_like(mask)).item() == 0
    assert scores.umm(weight, mask, filter_numel=8).item() == 0.5


@quick
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))
def test_scores_against_loops(c_out: int, c_in: int, k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(c_out, c_in, k, k, generator=g, dtype=torch.float64)
    m = (torch.rand(w.shape, generator=g) < 0.4).double()
    umm, mean, conn, kern = [], [], [], []
    for i in range(c_out):
        entries = [(w[i, j, a, b].item(), m[i, j, a, b].item()) for j, a, b in product(range(c_in), range(k), range(k))]
        on = [abs(x) for x, y in entries if y]
        umm.append(sum(on) / len(entries))
        mean.append(sum(on) / len(on) if on else 0.0)
        conn.append(len(on) / len(entries))
        kern.append(sum(any(m[i, j].flatten().tolist()) for j in range(c_in)) / c_in)
    assert scores.umm(w, m).tolist() == pytest.approx(umm)
    assert scores.masked_mean(w, m).tolist() == pytest.approx(mean)
    assert scores.connection_density(w, m).tolist() == pytest.approx(conn)
    assert scores.kernel_density(w, m).tolist() == pytest.approx(kern)


#: Few different values, so that ties are common.
values = st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=8), min_size=1, max_size=4)


@quick
@given(values, st.integers(0, 30), st.integers(0, 999))
def test_global_prune_against_a_sort(rows: list[list[int]], count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    weights = [torch.tensor(row, dtype=torch.float32) for row in rows]
    masks = [(torch.rand(len(row), generator=g) < 0.6).float() for row in rows]
    on = [(abs(w), i, j) for i, row in enumerate(rows) for j, w in enumerate(row) if masks[i][j]]
    expected = [m.clone() for m in masks]
    for _, i, j in sorted(on)[:count]:
        expected[i][j] = 0
    exploration.prune(weights, masks, count)
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


@quick
@given(values, st.integers(0, 30), st.integers(0, 999))
def test_global_growth_against_a_sort(rows: list[list[int]], count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    grads = [torch.tensor(row, dtype=torch.float32) for row in rows]
    masks = [(torch.rand(len(row), generator=g) < 0.5).float() for row in rows]
    allowed = [torch.rand(len(row), generator=g) < 0.7 for row in rows]
    free = [
        (-abs(v), i, j) for i, row in enumerate(rows) for j, v in enumerate(row) if not masks[i][j] and allowed[i][j]
    ]
    expected = [m.clone() for m in masks]
    for _, i, j in sorted(free)[:count]:
        expected[i][j] = 1
    exploration.grow(masks, allowed, count, grads)
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


@quick
@given(values, st.integers(0, 12), st.integers(0, 99))
def test_random_growth_is_exact_seeded_and_allowed(rows: list[list[int]], count: int, seed: int) -> None:
    def run() -> list[torch.Tensor]:
        masks = [torch.zeros(len(row)) for row in rows]
        allowed = [torch.arange(len(row)) % 2 == 0 for row in rows]
        exploration.grow(masks, allowed, count, None, torch.Generator().manual_seed(seed))
        assert all(not m[~a].any() for m, a in zip(masks, allowed, strict=True))
        return masks

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sum(int(m.sum()) for m in first) == min(count, sum((len(row) + 1) // 2 for row in rows))


def test_layer_counts_stay_in_their_layer() -> None:
    weights = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])]
    masks = [torch.ones(3), torch.ones(3)]
    exploration.prune(weights, masks, [1, 2])
    assert [m.tolist() for m in masks] == [[0, 1, 1], [0, 0, 1]]


@quick
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=7), min_size=1, max_size=4),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_channel_selection_against_a_greedy_loop(layers: list[list[tuple[int, bool]]], need: int, floor: int) -> None:
    alive = [torch.tensor([a for _, a in layer]) for layer in layers]
    left = [int(a.sum()) for a in alive]
    order = sorted((s, i, j) for i, layer in enumerate(layers) for j, (s, a) in enumerate(layer) if a)
    expected = []
    for _, i, j in order:
        if len(expected) < need and left[i] > floor:
            left[i] -= 1
            expected.append((i, j))
    score = [torch.tensor([float(s) for s, _ in layer]) for layer in layers]
    if len(expected) < need:
        with pytest.raises(ChaseError, match="must go"):
            select_channels(score, alive, need, [floor] * len(layers))
        return
    got = select_channels(score, alive, need, [floor] * len(layers))
    assert [(i, j) for i, g in enumerate(got) for j in g.nonzero()[:, 0].tolist()] == sorted(expected)


def test_floor_formula() -> None:
    assert [min_channels(c, 0.5, 0.2) for c in (32, 64, 128, 1)] == [3, 6, 12, 1]
    assert min_channels(100, 0.3, 0.1) == 7


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 8))
def test_rounding_only_adds(flags: list[bool], multiple: int) -> None:
    alive = torch.tensor(flags)
    score = torch.arange(len(flags), dtype=torch.float64)
    got = rounded_alive({"a": alive}, multiple, {"a": score})["a"]
    wanted = min(len(flags), math.ceil(sum(flags) / multiple) * multiple)
    assert int(got.sum()) == wanted
    assert bool((got | ~alive).all())
    added = (got & ~alive).nonzero()[:, 0].tolist()
    assert added == sorted((~alive).nonzero()[:, 0].tolist())[len(flags) - sum(flags) - len(added) :]
    with pytest.raises(ChaseError, match="round_channels=0"):
        rounded_alive({"a": alive}, 0)
