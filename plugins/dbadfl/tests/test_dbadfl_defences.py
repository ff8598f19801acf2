"""Aggregation rules: byzfl and hand-computed cases as oracles, one node at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait_dbadfl.defences import DEFENCES, FoolsGold, make_defence, require_finite
from plait_dbadfl.defences.base import ascending, masked_median
from plait_dbadfl.defences.similarity import cosines, foolsgold_weights
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.topologies import Topology, from_edges, make_topology

try:
    import byzfl
except ImportError:
    byzfl = None
needs_byzfl = pytest.mark.skipif(byzfl is None, reason="byzfl, the oracle, is not installed")

GRAPHS = [("erdos-renyi", 14), ("watts-strogatz", 12), ("star", 8), ("complete", 7)]
open_inputs = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def random_models(n: int, p: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_graph(n: int, seed: int = 0) -> Topology:
    """Every degree is at least 4, and degrees differ."""
    topology = make_topology("watts-strogatz", n, k=4, p=0.0)
    extra = torch.randint(n, (n, 2), generator=torch.Generator().manual_seed(seed))
    extra = extra[extra[:, 0] != extra[:, 1]]
    return from_edges(torch.cat([topology.edge_index.T, extra]), n)


def by_byzfl(rule: Callable[[Any], Any], rows: Tensor) -> Tensor:
    """Through numpy, where byzfl keeps double precision."""
    return torch.from_numpy(rule(rows.numpy()))


def against(oracle: Callable[[Any], Any], name: str, graph: Topology, models: Tensor, **options: Any) -> None:
    """Every node's result is the oracle's on its closed neighbourhood, own model first."""
    mixing = make_mixing(graph)
    got = make_defence(name, **options)(models, mixing).models
    for i in range(graph.n):
        rows = models[torch.cat([torch.tensor([i]), graph.neighbours(i)])]
        torch.testing.assert_close(got[i], by_byzfl(oracle, rows), rtol=1e-8, atol=1e-10)


@needs_byzfl
@open_inputs
@given(st.sampled_from(GRAPHS), st.integers(0, 99))
def test_median_is_byzfls(graph: tuple[str, int], seed: int) -> None:
    topology = make_topology(*graph, seed=seed)
    against(byzfl.Median(), "median", topology, random_models(topology.n, seed=seed))


@needs_byzfl
@open_inputs
@given(st.integers(8, 14), st.integers(0, 99), st.integers(0, 2))
def test_trimmed_mean_krum_and_multi_krum_are_byzfls(n: int, seed: int, f: int) -> None:
    topology, models = dense_graph(n, seed), random_models(n, seed=seed)
    against(byzfl.TrMean(f), "trimmed-mean", topology, models, trim=f)
    # byzfl sums over n-f-1 others where the card, as Blanchard et al., has n-f-2: its f is ours plus one.
    if f < 2:
        against(byzfl.Krum(f + 1), "krum", topology, models, f=f)
        several = byzfl.MultiKrum(f + 1)
        smallest = int(topology.degrees.min()) + 1
        same = topology.degrees == topology.degrees.min()
        got = make_defence("multi-krum", f=f, m=smallest - f - 1)(models, make_mixing(topology)).models
        for i in torch.nonzero(same).flatten().tolist():
            rows = models[torch.cat([torch.tensor([i]), topology.neighbours(i)])]
            torch.testing.assert_close(got[i], by_byzfl(several, rows))


@needs_byzfl
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(GRAPHS), st.integers(0, 99))
def test_rfa_converges_to_byzfls_geometric_median(graph: tuple[str, int], seed: int) -> None:
    topology = make_topology(*graph, seed=seed)
    models, mixing = random_models(topology.n, seed=seed), make_mixing(topology)
    got = make_defence("rfa", nu=0.1, iterations=300)(models, mixing).models
    oracle = byzfl.GeometricMedian(nu=0.1, T=300)
    for i in range(topology.n):
        rows = models[torch.cat([torch.tensor([i]), topology.neighbours(i)])]
        if len(rows) == 2:
            # Every point between two models is a geometric median; ours begins, and so stays, in the middle.
            torch.testing.assert_close(got[i], rows.mean(0))
        else:
            torch.testing.assert_close(got[i], by_byzfl(oracle, rows), rtol=1e-5, atol=1e-5)


@needs_byzfl
@open_inputs
@given(st.integers(3, 9), st.floats(0.1, 5), st.integers(0, 99))
def test_self_centred_clipping_is_one_step_of_byzfls_centred_clipping(n: int, tau: float, seed: int) -> None:
    # Centred clipping averages clip(x_j - v) over all rows; v is the own model, whose term is zero. byzfl 0.0.11
    # refuses every v that is given (its type check uses "or"), so the rows are moved to v = 0.
    topology, models = make_topology("complete", n), random_models(n, seed=seed)
    got = make_defence("clipping", tau=tau, weights="equal")(models, make_mixing(topology)).models
    for i in range(n):
        moved = by_byzfl(byzfl.CenteredClipping(L=1, tau=float(tau)), models - models[i])
        torch.testing.assert_close(got[i], models[i] + moved)


def test_mean_is_the_mixing_product() -> None:
    mixing, models = make_mixing(make_topology("watts-strogatz", 12)), random_models(12)
    torch.testing.assert_close(make_defence("mean")(models, mixing).models, mixing.dense() @ models)


def line(*values: float) -> tuple[Tensor, Mixing]:
    """A star around node 0 with one-dimensional models."""
    mixing = make_mixing(make_topology("star", len(values)))
    return torch.tensor(values, dtype=torch.float64)[:, None], mixing


def test_cases_by_hand() -> None:
    models, mixing = line(0, 1, 2, 10)
    hub = lambda name, **o: float(make_defence(name, **o)(models, mixing).models[0])
    assert hub("median") == 1.5
    # Leaves have two models each, so nothing can be trimmed there: only the hub's rule is applied.
    with pytest.raises(DbadflError, match="node 1 of degree 1 has 2 models, of which trim=1 would leave none"):
        hub("trimmed-mean", trim=1)
    # tau is the median of 1, 2, 10; the sum of clipped differences is 1 + 2 + 2.
    assert hub("clipping") == pytest.approx(5 / 4)
    assert hub("clipping", tau=1.5, weights="equal") == pytest.approx((1 + 1.5 + 1.5) / 4)


def test_krum_takes_the_crowd_and_says_whom() -> None:
    models = torch.tensor([[0.0], [0.1], [0.2], [0.15], [9.0], [0.12]], dtype=torch.float64)
    mixing = make_mixing(make_topology("complete", 6))
    verdict = make_defence("krum", f=1)(models, mixing)
    # Sums over the three nearest: 0.15 has 0.03^2 + 0.05^2 + 0.05^2, the least; then 0.12: 0.02^2 + 0.03^2 + 0.08^2.
    assert verdict.models.flatten().tolist() == pytest.approx([0.15] * 6)
    assert verdict.accept is not None
    senders = mixing.senders[verdict.accept].tolist()
    assert set(senders) == {3}
    assert len(senders) == 5
    several = make_defence("multi-krum", f=1)(models, mixing)
    assert several.models.flatten().tolist() == pytest.approx([(0 + 0.1 + 0.2 + 0.15 + 0.12) / 5] * 6)
    assert several.accept is not None
    assert 4 not in mixing.senders[several.accept].tolist()
    with pytest.raises(DbadflError, match="node 0 of degree 2 has 3 models, and f=1 needs 4; f can be at most 0"):
        make_defence("krum", f=1).check(make_topology("ring", 6).degrees)
    make_defence("krum", f=0).check(make_topology("ring", 6).degrees)


@needs_byzfl
def test_krum_on_large_neighbourhoods_uses_inner_products() -> None:
    models = random_models(80, 6) + 1e3
    mixing = make_mixing(make_topology("complete", 80))
    got = make_defence("krum", f=10)(models.float(), mixing).models[0]
    torch.testing.assert_close(got, by_byzfl(byzfl.Krum(11), models).float(), rtol=0, atol=1e-3)


def test_norm_clipping_with_one_and_two_thresholds() -> None:
    models, mixing = line(1.0, 5.0, -3.0)
    start = torch.tensor([[2.0], [0.0], [0.0]], dtype=torch.float64)
    # Updates seen by the hub: -1, 3, -5; W of a star with three nodes is 1/3 everywhere in the hub's row.
    hub = lambda **o: float(make_defence("norm-clipping", **o)(models, mixing, start=start).models[0])
    assert hub(threshold=2.0) == pytest.approx(2 + (-1 + 2 - 2) / 3)
    assert hub() == pytest.approx(2 + (-1 + 3 - 3) / 3)
    assert hub(threshold=2.0, own_threshold=0.5) == pytest.approx(2 + (-0.5 + 2 - 2) / 3)
    assert hub(threshold=100.0) == pytest.approx(1.0)
    with pytest.raises(DbadflError, match="give start"):
        make_defence("norm-clipping")(models, mixing)


def test_balance_by_hand() -> None:
    models, mixing = line(10.0, 12.0, 14.0, 8.0)
    verdict = make_defence("balance")(models, mixing)
    # Radius 0.3 * 10: accepts 12 and 8.
    assert float(verdict.models[0]) == pytest.approx(0.5 * 10 + 0.5 * 10)
    assert verdict.accept is not None
    assert mixing.senders[verdict.accept & (mixing.receivers == 0)].tolist() == [1, 3]
    late = make_defence("balance", alpha=0.25)(models, mixing, round=1, rounds=1)
    # Radius 3 / e = 1.1036: nobody.
    assert float(late.models[0]) == 10.0
    models, mixing = line(10.0, 11.10, 11.11, 8.0)
    late = make_defence("balance", alpha=0.25)(models, mixing, round=1, rounds=1)
    assert late.accept is not None
    assert mixing.senders[late.accept & (mixing.receivers == 0)].tolist() == [1]


def test_ubar_by_hand() -> None:
    models, mixing = line(0.0, 1.0, 2.0, -3.0, 50.0)
    asked: list[tuple[int, int]] = []

    def losses(receivers: Tensor, senders: Tensor) -> Tensor:
        asked.extend(zip(receivers.tolist(), senders.tolist(), strict=True))
        return torch.tensor([0.5, 0.7, 0.4, 0.1, 0.0])[senders]

    verdict = make_defence("ubar", rho=0.5)(models, mixing, losses=losses)
    # The two nearest of the hub are 1 and 2 (losses 0.7, 0.4); only node 2 is no worse than its own 0.5.
    assert float(verdict.models[0]) == pytest.approx(1.0)
    assert verdict.accept is not None
    assert mixing.senders[verdict.accept & (mixing.receivers == 0)].tolist() == [2]
    assert (0, 4) not in asked
    # Node 4 has loss 0, its only neighbour 0.5: none is as good, so the single best is taken all the same.
    assert float(verdict.models[4]) == pytest.approx(25.0)
    with pytest.raises(DbadflError, match="give losses"):
        make_defence("ubar")(models, mixing)


def foolsgold_loop(history: Tensor) -> Tensor:
    """Weights by the formula of the card, with Python loops."""
    n = len(history)
    unit = history / history.norm(dim=1, keepdim=True)
    cs = (unit @ unit.T - torch.eye(n, dtype=history.dtype)).tolist()
    v = [max(row) + 1e-5 for row in cs]
    for i in range(n):
        for j in range(n):
            if i != j and v[j] > v[i]:
                cs[i][j] *= v[i] / v[j]
    alpha = [min(1.0, max(0.0, 1 - max(row))) for row in cs]
    alpha = [min(a / max(alpha), 0.99) for a in alpha]
    logit = [math.log(a / (1 - a)) + 0.5 if a > 0 else -math.inf for a in alpha]
    return torch.tensor([min(1.0, max(0.0, w)) for w in logit], dtype=history.dtype)


@open_inputs
@given(st.integers(2, 8), st.integers(0, 999))
def test_foolsgold_weights_are_the_formulas(n: int, seed: int) -> None:
    history = random_models(n, 4, seed) + 0.5
    got = foolsgold_weights(cosines(history[None]), torch.ones(1, n, dtype=torch.bool))[0]
    torch.testing.assert_close(got, foolsgold_loop(history))


def test_foolsgold_remembers_and_drops_copies() -> None:
    generator = torch.Generator().manual_seed(0)
    graph = make_topology("complete", 6)
    mixing, rule = make_mixing(graph), make_defence("foolsgold")
    start = torch.zeros(6, 30, dtype=torch.float64)
    history = torch.zeros_like(start)
    for _ in range(3):
        models = torch.randn(6, 30, generator=generator, dtype=torch.float64)
        models[4] = models[5] = torch.ones(30)
        verdict = rule(models, mixing, start=start)
        history += models - start
    weights = foolsgold_loop(history)
    assert weights[4] == weights[5] == 0
    expected = (weights[:, None] * models).sum(0) / weights.sum()
    torch.testing.assert_close(verdict.models[0], expected)
    assert verdict.accept is not None
    refused = mixing.senders[~verdict.accept]
    assert {4, 5} <= set(refused.tolist())
    again = FoolsGold()
    again.load_state_dict(rule.state_dict())
    torch.testing.assert_close(again(models, mixing, start=start).models, rule(models, mixing, start=start).models)


def test_flame_leaves_out_the_other_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = make_mixing(make_topology("complete", 9))
    start = torch.zeros(9, 20, dtype=torch.float64)
    models = torch.ones(9, 20, dtype=torch.float64) + 0.1 * torch.randn(9, 20, generator=generator, dtype=torch.float64)
    models[7:] = -5 * models[7:]
    verdict = make_defence("flame", noise=0.0)(models, mixing, start=start)
    assert verdict.accept is not None
    accepted = set(mixing.senders[verdict.accept].tolist())
    assert accepted <= set(range(7))
    assert len(accepted) >= 9 // 2 + 1
    assert float(verdict.models[0].min()) > 0.5
    noisy = make_defence("flame", seed=1)(models, mixing, start=start).models - verdict.models
    scale = models.norm(dim=1).median()
    assert float(noisy.std() / scale) == pytest.approx(0.001, rel=0.3)
    assert "flame clusters fewer than 6" in str(make_defence("flame").caution(make_topology("ring", 5).degrees))
    assert make_defence("flame").caution(make_topology("complete", 9).degrees) is None


OPTIONS: dict[str, dict[str, Any]] = {"krum": {"f": 1}, "multi-krum": {"f": 1}, "flame": {"noise": 0.0}}


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_relabelled_nodes_and_chunks_give_the_same_models(name: str) -> None:
    graph = dense_graph(16, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    moved = from_edges(order[graph.edge_index].T, 16)
    models, start = random_models(16, 7), random_models(16, 7, 1)
    there, begun = torch.empty_like(models), torch.empty_like(start)
    there[order], begun[order] = models, start

    def losses(of: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda receivers, senders: (of[senders] - 0.1 * of[receivers]).square().sum(1)

    def verdict(x: Tensor, s: Tensor, g: Topology, **more: Any) -> Any:
        rule = make_defence(name, **OPTIONS.get(name, {}))
        return rule(x, make_mixing(g), start=s, losses=losses(x), round=1, rounds=4, **more)

    plain, other = verdict(models, start, graph), verdict(there, begun, moved)
    torch.testing.assert_close(other.models[order], plain.models)
    chunked = verdict(models, start, graph, elements=10)
    torch.testing.assert_close(chunked.models, plain.models)
    if plain.accept is not None:
        assert torch.equal(chunked.accept, plain.accept)
        edges = {tuple(e) for e in order[make_mixing(graph).edge_index[:, plain.accept]].T.tolist()}
        assert edges == {tuple(e) for e in make_mixing(moved).edge_index[:, other.accept].T.tolist()}


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_equal_models_stay_and_lonely_nodes_are_left_alone(name: str) -> None:
    options = {**OPTIONS, "krum": {}, "multi-krum": {}, "trimmed-mean": {"trim": 0}}.get(name, {})
    losses = lambda receivers, senders: torch.zeros(len(senders))
    same = torch.ones(8, 3, dtype=torch.float64) * 2
    start = torch.zeros_like(same)
    mixing = make_mixing(make_topology("ring", 8))
    got = make_defence(name, **options)(same, mixing, start=start, losses=losses).models
    torch.testing.assert_close(got, same)
    if name in ("krum", "multi-krum"):
        return
    pair = Mixing.pairs(8, torch.tensor([2, 3]), torch.tensor([3, 2]))
    models = random_models(8, 3)
    apart = make_defence(name, **options)(models, pair, start=start, losses=losses).models
    others = [0, 1, 4, 5, 6, 7]
    assert torch.equal(apart[others], models[others])


@open_inputs
@given(st.integers(1, 30), st.integers(0, 99))
def test_ascending_and_masked_median(m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, m, 4, generator=generator)
    assert torch.equal(ascending(values), values.sort(1).values)
    mask = torch.rand(3, m, generator=generator) < 0.5
    mask[:, 0] = True
    for row in range(3):
        expected = torch.quantile(values[row][mask[row]], 0.5, dim=0, interpolation="midpoint")
        torch.testing.assert_close(masked_median(values, mask)[row], expected)


def test_models_that_are_not_finite_are_named() -> None:
    models = random_models(5)
    require_finite(models, 3)
    models[2, 1] = math.inf
    with pytest.raises(DbadflError, match="round 3: node 2 has NaN or infinite parameters"):
        require_finite(models, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mode", {}, "'mode' is not one of mean, median"),
        ("median", {"f": 1}, "takes no arguments|unexpected keyword|positional"),
        ("trimmed-mean", {"trim": -1}, "trim=-1 is negative"),
        ("krum", {"f": -1}, "f=-1 is negative"),
        ("multi-krum", {"m": 0}, "m=0 must be at least 1"),
        ("rfa", {"nu": 0}, "nu=0 must be positive"),
        ("norm-clipping", {"threshold": 0}, "threshold=0 must be positive"),
        ("clipping", {"weights": "w"}, "weights='w'"),
        ("flame", {"noise": -1}, "noise=-1 is negative"),
        ("balance", {"alpha": 2}, "alpha=2 is not in 0..1"),
        ("ubar", {"rho": 0}, r"rho=0 is not in \(0, 1\]"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        make_defence(name, **options)
