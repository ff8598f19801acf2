"""Plans against POT, an assignment by hand, and the entropic dual against the exact plan."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_brainot.errors import BrainotError
from plait_brainot.transport import distances, entropic_plan, exact_plan, relaxed_plan


def cost(b: int = 3, n: int = 12, k: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.cdist(torch.randn(b, n, 5, generator=g).double(), torch.randn(b, k, 5, generator=g).double())


def value(c: torch.Tensor, plan: torch.Tensor) -> torch.Tensor:
    return (c * plan).sum((1, 2))


def test_all_mass_of_49_tokens() -> None:
    """POT calls m = 1 infeasible here, because 49 uniform weights sum to less than 1."""
    c = cost(2, 49, 49)
    a = np.full(49, 1 / 49)
    with pytest.raises(ValueError, match="infeasible"):
        ot.partial.partial_wasserstein(a, a, c[0].numpy(), m=1.0)
    for solver in ("simplex", "assignment"):
        plan = exact_plan(c, 1.0, solver).plan  # type: ignore[arg-type]
        wanted = [float(ot.emd2(a, a, x.numpy())) for x in c]
        np.testing.assert_allclose(value(c, plan), wanted, rtol=1e-10)
        np.testing.assert_allclose(plan.sum(2), 1 / 49, rtol=1e-9)
    plan = entropic_plan(c, 1.0, 0.05).plan
    np.testing.assert_allclose(plan.sum((1, 2)), 1.0, rtol=1e-8)


def test_two_tokens_by_hand() -> None:
    c = torch.tensor([[[0.0, 3.0], [4.0, 1.0]]]).double()
    plan = exact_plan(c, 0.5).plan[0]
    torch.testing.assert_close(plan, torch.tensor([[0.5, 0.0], [0.0, 0.0]]).double())
    plan = exact_plan(c, 0.75).plan[0]  # one pair carries a fraction
    torch.testing.assert_close(plan, torch.tensor([[0.5, 0.0], [0.0, 0.25]]).double(), atol=1e-8, rtol=0)
    assert float(value(c, exact_plan(c, 1.0).plan)) == pytest.approx(0.5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 9), k=st.integers(2, 9), m=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_exact_plans_are_pots(n: int, k: int, m: float, seed: int) -> None:
    c = cost(2, n, k, seed)
    a, b = np.full(n, 1 / n), np.full(k, 1 / k)
    plan = exact_plan(c, m).plan
    moved = min(m, (1 - 1e-9) * min(a.sum(), b.sum()))
    wanted = [float((x.numpy() * ot.partial.partial_wasserstein(a, b, x.numpy(), m=moved)).sum()) for x in c]
    np.testing.assert_allclose(value(c, plan), wanted, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(plan.sum((1, 2)), m, rtol=1e-6)
    assert float((plan.sum(2) - 1 / n).max()) < 1e-9
    assert float((plan.sum(1) - 1 / k).max()) < 1e-9


@pytest.mark.parametrize("tokens", ["random", "alike", "matched"])
@pytest.mark.parametrize("pairs", [1, 6, 11, 12])
def test_the_two_exact_solvers_agree(pairs: int, tokens: str) -> None:
    """Also where all brain tokens are nearly one (before training), and where each has a partner (after)."""
    c = cost()
    if tokens == "alike":
        c = c[:, :1] + 0.05 * cost(seed=1) + torch.linspace(0, 1, 12)[:, None]
    if tokens == "matched":
        c = c + 5 * (1 - torch.eye(12))
    both = [value(c, exact_plan(c, pairs / 12, solver).plan) for solver in ("simplex", "assignment")]  # type: ignore[arg-type]
    torch.testing.assert_close(*both, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("m", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_entropic_plans(m: float, shape: tuple[int, int]) -> None:
    c = cost(3, *shape)
    exact = value(c, exact_plan(c, m).plan)
    solved = entropic_plan(c, m, 0.02, sweeps=5000, tolerance=1e-5)
    assert solved.violation < 1e-3
    np.testing.assert_allclose(solved.plan.sum((1, 2)), m, rtol=1e-8)
    assert float((solved.plan.sum(2) - 1 / shape[0]).max()) < 1e-4
    torch.testing.assert_close(value(c, solved.plan), exact, rtol=2e-2, atol=1e-3)
    a, b = (np.full(s, 1 / s) for s in shape)
    if m < 1:
        wide = entropic_plan(c, m, 0.5, sweeps=5000, tolerance=1e-9).plan
        wanted = ot.partial.entropic_partial_wasserstein(a, b, c[0].numpy(), 0.5, m=m, numItermax=5000, stopThr=1e-12)
        np.testing.assert_allclose(wide[0], wanted, atol=1e-6)


@pytest.mark.parametrize("rho", [0.5, 5.0])
def test_relaxed_plans_are_pots(rho: float) -> None:
    c = cost(2, 6, 9)
    plan = relaxed_plan(c, rho, sweeps=20_000, tolerance=1e-9)
    a, b = np.full(6, 1 / 6), np.full(9, 1 / 9)
    for mine, x in zip(plan, c.numpy(), strict=True):
        wanted = ot.unbalanced.mm_unbalanced(a, b, x, rho, div="kl", numItermax=20_000)
        np.testing.assert_allclose(mine, wanted, atol=1e-6)


def test_matched_tokens_need_many_sweeps() -> None:
    """As a trained encoder has them: few sweeps are not enough, and the violation says so."""
    x = torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(0))
    c = distances(x, x + 0.3 * torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(1)))
    eps = 0.005 * float(c.median())
    few, many = entropic_plan(c, 1.0, eps, sweeps=11), entropic_plan(c, 1.0, eps, sweeps=5000)
    assert few.violation > 1e-3 > many.violation
    assert bool(few.plan.isfinite().all())


def test_unrolled_gradient_is_that_of_finite_differences() -> None:
    c = cost(1, 5, 5)

    def loss(x: torch.Tensor) -> torch.Tensor:
        plan = entropic_plan(x, 0.6, 0.3, sweeps=40, tolerance=1e-30).plan
        return (plan * x).sum()

    assert torch.autograd.gradcheck(loss, c.requires_grad_(), eps=1e-6, atol=1e-6)


def test_distance_zero_has_no_gradient_and_half_precision_is_widened() -> None:
    x = torch.ones(1, 2, 3, requires_grad=True)
    c = distances(x, torch.tensor([[[1.0, 1, 1], [1, 1, 3]]]))
    c.sum().backward()
    assert float(c.min()) == 0
    assert bool(x.grad.isfinite().all())  # type: ignore[union-attr]
    assert distances(x.half(), x.half()).dtype == torch.float32
    torch.testing.assert_close(distances(x, x + 2, "sqeuclidean"), torch.full((1, 2, 2), 12.0))


def test_bad_input() -> None:
    c = cost()
    for m in (0.0, -0.1, 1.1):
        with pytest.raises(BrainotError, match=r"m = .*above 0 and is at most 1"):
            exact_plan(c, m)
    with pytest.raises(BrainotError, match="solver = 'assignment' needs"):
        exact_plan(c, 0.55, "assignment")
    with pytest.raises(BrainotError, match="entropic_partial"):
        exact_plan(torch.empty(1, 1, 1).expand(1, 5000, 5000), 0.5)
    with pytest.raises(BrainotError, match="eps = 0"):
        entropic_plan(c, 0.5, 0)
    with pytest.raises(BrainotError, match=r"\[2, 3, 4\] and \[2, 3, 5\]"):
        distances(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
    with pytest.raises(BrainotError, match="not finite in sample 1"):
        distances(torch.tensor([[[1.0]], [[torch.nan]]]), torch.ones(2, 1, 1))
