"""Transport through POT: distances, exact and log-domain oracles, the envelope gradient, blocks, padded batches."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.transport import Exact, Sinkhorn, distances

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
DENSE = 1 << 24


def points(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- distances ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [3, 40])
def test_distances_against_their_formula(width: int) -> None:
    x, y = points(0, 2, 30, width), points(1, 2, 40, width)
    torch.testing.assert_close(distances(x, y), (x.unsqueeze(-2) - y.unsqueeze(-3)).norm(dim=-1))


def test_distances_can_be_differentiated_twice() -> None:
    x, y = points(2, 4, 3).requires_grad_(), points(3, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(distances, (x, y))
    assert torch.autograd.gradgradcheck(distances, (x, y))


def test_equal_points_have_gradient_zero() -> None:
    x = points(4, 6, 3, dtype=torch.float32).requires_grad_()
    same = distances(x, x.detach()).diagonal()
    (gradient,) = torch.autograd.grad(same.sum(), x)
    assert same.abs().max() <= 1e-6 and torch.equal(gradient, torch.zeros_like(x))


# ---- exact transport ------------------------------------------------------------------------------------------------
def linear_program(x: Tensor, y: Tensor) -> float:
    """The transport cost by scipy's solver, which shares nothing with POT."""
    n, m = len(x), len(y)
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    marginals = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    return float(linprog(torch.cdist(x, y).numpy().reshape(-1), A_eq=np.r_[rows, columns], b_eq=marginals).fun)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_cost_is_that_of_the_linear_program(dtype: torch.dtype) -> None:
    x, y = points(20, 13, 3), points(21, 9, 3)
    solved = Exact().between(x.to(dtype), y.to(dtype))
    assert float(solved.cost) == pytest.approx(linear_program(x, y), rel=1e-5) and solved.cost.dtype == dtype
    assert (solved.sweeps, solved.error) == (0, 0.0)


def test_exact_gradient_is_the_derivative_of_the_cost() -> None:
    """Off its kinks the cost is smooth in the points: its central differences, one coordinate at a time."""
    x, y, h = points(22, 7, 3), points(23, 5, 3), 1e-6
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Exact().between(leaf, y).cost, leaf)
    for i, j in ((0, 0), (3, 2), (6, 1)):
        step = torch.zeros_like(x)
        step[i, j] = h
        slope = (Exact().between(x + step, y).cost - Exact().between(x - step, y).cost) / (2 * h)
        assert float(gradient[i, j]) == pytest.approx(float(slope), abs=1e-7)


def test_entropy_overstates_what_exact_transport_gives() -> None:
    """Issue 20: 0.05 is far off, and 0.001 has not found a plan after 50 sweeps; after thousands it is right."""
    x, y = ((6 * points(seed, n, 7) - 3).softmax(1) for seed, n in ((24, 60), (25, 90)))
    exact = float(Exact().between(x, y).cost)
    assert float(Sinkhorn(0.05, 5000, 1e-6, DENSE).between(x, y).cost) > 1.05 * exact
    assert Sinkhorn(0.001, 50, 1e-3, DENSE).between(x, y).error > 0.1
    assert float(Sinkhorn(0.001, 10_000, 1e-5, DENSE).between(x, y).cost) == pytest.approx(exact, rel=2e-3)


def test_exact_transport_refuses_what_would_not_fit() -> None:
    with pytest.raises(GLTError, match=r"8192 and 8193 nodes takes too long: draw samples \(wd_samples=256\)"):
        Exact().between(points(26, 8192, 2), points(27, 8193, 2))


# ---- Sinkhorn -------------------------------------------------------------------------------------------------------
@calm
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 10**6))
def test_the_kernel_and_the_log_domain_agree(n: int, m: int, eps: float, seed: int) -> None:
    """The same sweeps; at eps = 0.02 with distances up to 1.7 ours run by logsumexp, else on the kernel."""
    x, y = points(seed, n, 3), points(seed + 1, m, 3)
    solved = Sinkhorn(eps, 30, 0.0, DENSE).between(x, y)
    cost = distances(x, y).numpy()
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    plan = ot.sinkhorn(a, b, cost, eps, method="sinkhorn_log", numItermax=30, stopThr=0, warn=False)
    assert float(solved.cost) == pytest.approx(float((plan * cost).sum()), rel=1e-9)
    assert solved.error == pytest.approx(float(np.abs(plan.sum(0) - b).sum()), abs=1e-12)
    assert solved.sweeps == 30


def test_far_points_do_not_underflow() -> None:
    """D / eps up to 1e5, far beyond what exp can hold."""
    x = torch.tensor([[0.0], [1000.0], [5000.0]], dtype=torch.float64)
    solved = Sinkhorn(0.05, 2000, 1e-6, DENSE).between(x, x + 300)
    assert float(solved.cost) == pytest.approx(300, rel=1e-3) and solved.sweeps < 2000


def test_float32_stays_near_float64_at_the_defaults() -> None:
    z = torch.softmax(6 * points(5, 2, 60, 7, dtype=torch.float32), -1)
    sinkhorn = Sinkhorn(0.05, 50, 1e-3, DENSE)
    short, long = sinkhorn.between(z[0], z[1]), sinkhorn.between(z[0].double(), z[1].double())
    assert short.sweeps == long.sweeps <= 50
    torch.testing.assert_close(short.cost.double(), long.cost, atol=1e-6, rtol=1e-5)


def test_cost_falls_to_the_exact_one_as_eps_goes_to_zero() -> None:
    x, y = points(7, 15, 2), points(8, 11, 2)
    best = float(ot.emd2([], [], distances(x, y).numpy()))
    costs = [float(Sinkhorn(eps, 50_000, 1e-9, DENSE).between(x, y).cost) for eps in (0.5, 0.1, 0.02, 0.004)]
    assert costs == sorted(costs, reverse=True) and best <= costs[-1] <= best + 0.002


def test_sweeps_stop_at_the_limit_or_the_tolerance() -> None:
    x, y = points(10, 8, 3) * 5, points(11, 9, 3) * 5
    limited = Sinkhorn(0.05, 3, 0.0, DENSE).between(x, y)
    assert limited.sweeps == 3 and limited.error > 1e-3
    enough = Sinkhorn(0.05, 5000, 1e-3, DENSE).between(x, y)
    assert 3 < enough.sweeps < 5000 and enough.error <= 1e-3


def test_envelope_gradient_is_that_of_the_regularised_optimum() -> None:
    """d/dx of min <T, D> + eps sum T log T is sum_ij T_ij dD_ij."""
    x, y, eps = points(11, 5, 2), points(12, 4, 2), 0.1

    def optimum(left: Tensor) -> float:
        cost = distances(left, y).numpy()
        plan = ot.sinkhorn([], [], cost, eps, method="sinkhorn_log", numItermax=20_000, stopThr=1e-14)
        return float((plan * cost).sum() + eps * (plan * np.log(plan)).sum())

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Sinkhorn(eps, 20_000, 1e-13, DENSE).between(leaf, y).cost, leaf)
    step = 1e-5
    for i, j in np.ndindex(5, 2):
        nudge = torch.zeros_like(x)
        nudge[i, j] = step
        slope = (optimum(x + nudge) - optimum(x - nudge)) / (2 * step)
        assert slope == pytest.approx(float(gradient[i, j]), abs=1e-7)


def test_check_values_of_the_card() -> None:
    """glt.md section 3."""
    sinkhorn = Sinkhorn(0.05, 1000, 1e-6, DENSE)
    value = sinkhorn.between(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert float(value.cost) == pytest.approx(math.sqrt(2), abs=1e-6)
    # on a line every matching in order costs the same, so entropy does not move this one
    two = sinkhorn.between(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    assert float(two.cost) == pytest.approx(0.565685, abs=1e-5)


# ---- blocks and batches ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("entries", [1, 50, 436])
def test_blocks_give_the_dense_answer(entries: int) -> None:
    x, y = points(16, 23, 3).requires_grad_(), points(17, 19, 3).requires_grad_()
    dense = Sinkhorn(0.05, 2000, 1e-10, DENSE).between(x, y)
    blocked = Sinkhorn(0.05, 2000, 1e-10, entries).between(x, y)
    torch.testing.assert_close(blocked.cost, dense.cost)
    assert blocked.error <= 1e-9
    for ours, wanted in zip(
        torch.autograd.grad(blocked.cost, (x, y)), torch.autograd.grad(dense.cost, (x, y)), strict=True
    ):
        torch.testing.assert_close(ours, wanted)
    assert Sinkhorn(0.01, 3, 0.0, entries).between(x, y).sweeps == 3


def test_a_padded_batch_is_its_problems() -> None:
    sizes = [(4, 6), (1, 1), (7, 2), (3, 3)]
    x, y = points(9, 4, 7, 3).requires_grad_(), points(10, 4, 6, 3)
    a, b = torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    for k, (n, m) in enumerate(sizes):
        a[k, :n], b[k, :m] = 1 / n, 1 / m
    sinkhorn = Sinkhorn(0.1, 4000, 1e-10, DENSE)
    batch = sinkhorn.padded(x, y, a, b)
    assert batch.error <= 1e-9
    alone = torch.stack([sinkhorn.between(x[k, :n], y[k, :m]).cost for k, (n, m) in enumerate(sizes)])
    torch.testing.assert_close(batch.cost, alone)
    (gradient,), (wanted,) = (torch.autograd.grad(costs.sum(), x) for costs in (batch.cost, alone))
    torch.testing.assert_close(gradient, wanted)
