"""Transport: POT as the oracle, identities, envelope gradients, ragged batches, the blocked form, refusals."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.transport import (
    COSTS,
    TransportError,
    cosine,
    euclidean,
    exact,
    sinkhorn,
    sinkhorn_points,
    squared_euclidean,
)

ot = pytest.importorskip("ot", reason="POT is the oracle of these tests (pip install POT)")

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)


def points(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(seed: int, *shape: int) -> Tensor:
    raw = points(seed, *shape) + 0.1
    return raw / raw.sum(-1, keepdim=True)


def test_importing_plait_does_not_import_transport() -> None:
    code = "import sys, plait; sys.exit('plait.transport' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- costs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [3, 40])
def test_costs_against_their_formulas(width: int) -> None:
    x, y = points(0, 2, 30, width), points(1, 2, 40, width)
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    torch.testing.assert_close(squared_euclidean(x, y), difference.square().sum(-1))
    torch.testing.assert_close(euclidean(x, y), difference.norm(dim=-1))
    angle = torch.nn.functional.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(cosine(x, y), 1 - angle)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_costs_can_be_differentiated_twice(name: str) -> None:
    x, y = points(2, 4, 3).requires_grad_(), points(3, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(COSTS[name], (x, y))
    assert torch.autograd.gradgradcheck(COSTS[name], (x, y))


def test_equal_points_have_gradient_zero() -> None:
    x = points(4, 6, 3, dtype=torch.float32).requires_grad_()
    distances = euclidean(x, x.detach())
    (gradient,) = torch.autograd.grad(distances.diagonal().sum(), x)
    assert distances.diagonal().abs().max() <= 1e-6 and torch.equal(gradient, torch.zeros_like(x))
    zero = torch.zeros(2, 3, requires_grad=True)
    assert torch.equal(cosine(zero, zero), torch.ones(2, 2))


# ---- Sinkhorn against POT ----------------------------------------------------------------------------------------
@calm
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 10**6))
def test_sinkhorn_is_pots(n: int, m: int, eps: float, seed: int) -> None:
    cost, a, b = points(seed, n, m), weights(seed + 1, n), weights(seed + 2, m)
    ours = sinkhorn(cost, a, b, eps=eps, max_iterations=20000, tolerance=1e-11)
    theirs = ot.sinkhorn(
        a.numpy(), b.numpy(), cost.numpy(), eps, method="sinkhorn_log", numItermax=20000, stopThr=1e-12, warn=False
    )
    np.testing.assert_allclose(ours.plan.numpy(), theirs, atol=1e-8)
    assert float(ours.cost) == pytest.approx(float((theirs * cost.numpy()).sum()), abs=1e-7)
    torch.testing.assert_close(ours.plan.sum(0), b)
    assert float((ours.plan.sum(1) - a).abs().sum()) == pytest.approx(float(ours.marginal_error), abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 60.0, 3000.0])
def test_sweeps_are_those_of_the_log_domain(scale: float) -> None:
    """Also where D / eps is 6e4, far beyond what exp can hold."""
    cost = points(6, 3, 9, 7) * scale
    eps, f, g = 0.05, torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
    for _ in range(23):
        f = -math.log(9) - (g.unsqueeze(1) - cost / eps).logsumexp(2)
        g = -math.log(7) - (f.unsqueeze(2) - cost / eps).logsumexp(1)
    ours = sinkhorn(cost, eps=eps, max_iterations=23, tolerance=0.0)
    torch.testing.assert_close(ours.row_potential, eps * f)
    torch.testing.assert_close(ours.column_potential, eps * g)
    torch.testing.assert_close(ours.plan, (f.unsqueeze(2) + g.unsqueeze(1) - cost / eps).exp())


def test_float32_stays_near_float64_at_the_defaults_of_glt() -> None:
    z = torch.softmax(6 * points(5, 2, 7, 60, 7, dtype=torch.float32), -1)
    short = sinkhorn(euclidean(z[0], z[1]), eps=0.05, max_iterations=50, tolerance=1e-3)
    long = sinkhorn(euclidean(z[0].double(), z[1].double()), eps=0.05, max_iterations=50, tolerance=1e-3)
    assert short.iterations == long.iterations
    torch.testing.assert_close(short.cost.double(), long.cost, atol=1e-6, rtol=1e-5)


# ---- identities --------------------------------------------------------------------------------------------------
@calm
@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 10**6))
def test_permutation_and_transposition(n: int, m: int, seed: int) -> None:
    cost, a, b = points(seed, n, m), weights(seed + 1, n), weights(seed + 2, m)
    options = {"eps": 0.1, "max_iterations": 5000, "tolerance": 1e-12}
    plain = sinkhorn(cost, a, b, **options)  # type: ignore[arg-type]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sinkhorn(cost[order], a[order], b, **options).plan, plain.plan[order])  # type: ignore[arg-type]
    torch.testing.assert_close(sinkhorn(cost.T, b, a, **options).plan, plain.plan.T, atol=1e-9, rtol=1e-6)  # type: ignore[arg-type]


def test_cost_falls_to_the_exact_one_as_eps_goes_to_zero() -> None:
    cost = euclidean(points(7, 15, 2), points(8, 11, 2))
    best = float(exact(cost).cost)
    found = [
        float(sinkhorn(cost, eps=eps, max_iterations=50000, tolerance=1e-9).cost) for eps in (0.5, 0.1, 0.02, 0.004)
    ]
    assert found == sorted(found, reverse=True) and best <= found[-1] <= best + 0.002


def test_check_values_of_the_card() -> None:
    """glt.md section 3."""
    first = euclidean(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert float(exact(first).cost) == pytest.approx(math.sqrt(2), abs=1e-6)
    assert float(sinkhorn(first, eps=0.05).cost) == pytest.approx(math.sqrt(2), abs=1e-6)
    second = euclidean(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    assert float(exact(second).cost) == pytest.approx(0.565685, abs=1e-6)
    # on a line every matching in order costs the same, so entropy does not move this one
    assert float(sinkhorn(second, eps=0.05).cost) == pytest.approx(0.565685, abs=1e-5)


# ---- ragged batches ----------------------------------------------------------------------------------------------
def test_padding_changes_nothing() -> None:
    sizes = [(4, 6), (1, 1), (7, 2), (3, 3)]
    a, b = torch.zeros(5, 7, dtype=torch.float64), torch.zeros(5, 6, dtype=torch.float64)
    cost = points(9, 5, 7, 6)
    for k, (n, m) in enumerate(sizes):
        a[k, :n], b[k, :m] = 1 / n, 1 / m
    padded = sinkhorn(cost, a, b, eps=0.1, max_iterations=4000, tolerance=1e-11)
    for k, (n, m) in enumerate(sizes):
        alone = sinkhorn(cost[k, :n, :m], eps=0.1, max_iterations=4000, tolerance=1e-12)
        torch.testing.assert_close(padded.plan[k, :n, :m], alone.plan, atol=1e-10, rtol=1e-7)
        assert float(padded.plan[k].sum()) == pytest.approx(1.0, abs=1e-9)
        assert bool((padded.row_potential[k, n:] == -torch.inf).all())
    assert float(padded.cost[4]) == 0.0 and torch.equal(padded.plan[4], torch.zeros(7, 6, dtype=torch.float64))
    assert float(exact(cost, a, b).cost[4]) == 0.0


def test_stops_only_when_every_problem_has_converged() -> None:
    hard = points(10, 8, 8) * 5
    cost = torch.stack([torch.zeros(8, 8, dtype=torch.float64), hard])
    both = sinkhorn(cost, eps=0.05, max_iterations=3000, tolerance=1e-3)
    assert both.iterations > sinkhorn(cost[:1], eps=0.05, max_iterations=3000, tolerance=1e-3).iterations
    assert float(both.marginal_error.max()) <= 1e-3
    assert sinkhorn(hard, eps=0.05, max_iterations=3, tolerance=0.0).iterations == 3


# ---- envelope gradient -------------------------------------------------------------------------------------------
def test_envelope_gradient_is_that_of_the_regularised_optimum() -> None:
    """d/dD of min <T, D> + eps sum T (log T - 1) is T; the optimum is <a, f> + <b, g> - eps (duality)."""
    cost, eps = points(11, 5, 4), 0.1
    a, b = weights(12, 5), weights(13, 4)

    def optimum(matrix: Tensor) -> float:
        found = sinkhorn(matrix, a, b, eps=eps, max_iterations=20000, tolerance=1e-14)
        return float(a @ found.row_potential + b @ found.column_potential)

    leaf = cost.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn(leaf, a, b, eps=eps, max_iterations=20000, tolerance=1e-14).cost, leaf)
    step = 1e-5
    for i in range(5):
        for j in range(4):
            nudge = torch.zeros_like(cost)
            nudge[i, j] = step
            assert (optimum(cost + nudge) - optimum(cost - nudge)) / (2 * step) == pytest.approx(
                float(gradient[i, j]), abs=1e-7
            )


def test_exact_gradient_against_finite_differences_through_the_points() -> None:
    x, y = points(14, 6, 2).requires_grad_(), points(15, 6, 2)
    assert torch.autograd.gradcheck(lambda p: exact(euclidean(p, y)).cost, x)


# ---- exact -------------------------------------------------------------------------------------------------------
@calm
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_exact_is_emd2_batched(n: int, m: int, seed: int) -> None:
    cost, a, b = points(seed, 2, n, m), weights(seed + 1, 2, n), weights(seed + 2, 2, m)
    found = exact(cost, a, b)
    for k in range(2):
        assert float(found.cost[k]) == pytest.approx(
            float(ot.emd2(a[k].numpy(), b[k].numpy(), cost[k].numpy())), abs=1e-12
        )
    torch.testing.assert_close(found.plan.sum(-1), a)
    assert bool((found.row_potential.unsqueeze(-1) + found.column_potential.unsqueeze(-2) <= cost + 1e-9).all())


# ---- blocked -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("entries", [1, 50, 10**6])
@pytest.mark.parametrize("metric", sorted(COSTS))
def test_blocks_give_the_dense_answer(entries: int, metric: str) -> None:
    x, y = points(16, 23, 3).requires_grad_(), points(17, 19, 3).requires_grad_()
    a, b = weights(18, 23), weights(19, 19)
    a[3] = b[0] = b[7] = 0.0
    a, b = a / a.sum(), b / b.sum()
    options = {"eps": 0.05, "max_iterations": 400, "tolerance": 1e-7}
    dense = sinkhorn(COSTS[metric](x, y), a, b, **options)  # type: ignore[arg-type]
    blocked = sinkhorn_points(x, y, a, b, metric=metric, block_entries=entries, **options)  # type: ignore[arg-type]
    assert blocked.iterations == dense.iterations
    torch.testing.assert_close(blocked.cost, dense.cost)
    torch.testing.assert_close(blocked.row_potential, dense.row_potential)
    torch.testing.assert_close(blocked.marginal_error, dense.marginal_error, atol=1e-12, rtol=1e-5)
    for ours, wanted in zip(
        torch.autograd.grad(blocked.cost, (x, y)), torch.autograd.grad(dense.cost, (x, y)), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_blocks_stop_at_the_limit_of_iterations() -> None:
    x, y = points(20, 9, 2), points(21, 8, 2)
    for limit in (1, 2, 5, 6, 13):
        dense = sinkhorn(euclidean(x, y), eps=0.01, max_iterations=limit, tolerance=0.0)
        blocked = sinkhorn_points(x, y, eps=0.01, max_iterations=limit, tolerance=0.0, block_entries=16)
        assert blocked.iterations == dense.iterations == limit
        torch.testing.assert_close(blocked.cost, dense.cost)


# ---- refusals ----------------------------------------------------------------------------------------------------
def test_bad_input_is_named() -> None:
    cost = points(22, 3, 4)
    for eps in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TransportError, match="eps="):
            sinkhorn(cost, eps=eps)
    broken = cost.clone()
    broken[1, 2] = torch.nan
    for solve in (lambda c: sinkhorn(c, eps=0.1), exact):
        with pytest.raises(TransportError, match=r"cost\[1, 2\] is nan"):
            solve(broken)
    with pytest.raises(TransportError, match="do not sum alike"):
        sinkhorn(cost, torch.full((3,), 1 / 3), torch.full((4,), 1 / 3), eps=0.1)
    with pytest.raises(TransportError, match="negative"):
        sinkhorn(cost, torch.tensor([1.5, -0.5, 0.0]), eps=0.1)
    with pytest.raises(TransportError, match="does not fit"):
        sinkhorn(cost, torch.full((4,), 0.25), eps=0.1)
    with pytest.raises(TransportError, match="same leading shape"):
        euclidean(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(TransportError, match="metric='l7'"):
        sinkhorn_points(torch.zeros(3, 2), torch.zeros(3, 2), eps=0.1, metric="l7")
    with pytest.raises(TransportError, match="max_iterations=0"):
        sinkhorn(cost, eps=0.1, max_iterations=0)
    assert issubclass(TransportError, ValueError)


def test_missing_pot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(TransportError, match="pip install"):
        exact(torch.zeros(2, 2))
