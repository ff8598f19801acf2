"""Every loss: its definition, its gradient, and the properties that the argument for transport rests on (card, 2.9)."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import ot
import pytest
import torch

from plait_brainot.alignment import Discriminator, align, entropy
from plait_brainot.errors import BrainotError
from plait_brainot.options import Align, BrainotOptions
from plait_brainot.presets import BASELINES
from plait_brainot.transport import distances, exact_plan

G = torch.Generator().manual_seed(0)
P, Y = torch.randn(3, 8, 6, generator=G).double(), torch.randn(3, 8, 6, generator=G).double()


def loss(brain: torch.Tensor, image: torch.Tensor, **options: Any) -> torch.Tensor:
    return align(brain, image, BrainotOptions(**options)).loss


@pytest.mark.parametrize("name", get_args(Align))
def test_one_number_a_sample_by_itself(name: str) -> None:
    """Samples do not see each other, and the gradient is finite, also where the sets are equal."""
    options = BrainotOptions(align=name, m=0.6, eps=0.1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    discriminator = Discriminator(6).double()
    brain = P.clone().requires_grad_()
    whole = align(brain, Y, options, discriminator=discriminator).loss
    assert whole.shape == (3,)
    apart = torch.cat([align(P[i : i + 1], Y[i : i + 1], options, discriminator=discriminator).loss for i in range(3)])
    torch.testing.assert_close(whole.detach(), apart.detach(), rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(whole.sum(), brain)
    assert float(gradient.abs().sum()) > 0
    same = Y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(align(same, Y, options, discriminator=discriminator).loss.sum(), same)
    assert bool(gradient.isfinite().all())


def test_baselines_are_options() -> None:
    assert {name: BrainotOptions(baseline=name).align for name in BASELINES}["published"] == "partial"
    assert BrainotOptions(baseline="published").m == 0.5
    assert BrainotOptions(baseline="as-commented").eps == 1.0


def test_paired_losses_by_hand() -> None:
    x, y = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])
    assert float(loss(x, y, align="mse")) == 2.5
    assert float(loss(x, y, align="l1")) == 1.5
    assert float(loss(x, y, align="huber")) == 1.0
    assert float(loss(x, y, align="quantile", quantile=0.5)) == 1.5
    assert float(loss(x, y, align="hybrid", lam=0.25, m=1)) == pytest.approx(0.25 * 2.5 + 0.75 * math.sqrt(5))


def test_the_loss_is_pots_and_its_gradient_the_envelope() -> None:
    brain = P.clone().requires_grad_()
    whole = loss(brain, Y, align="partial", m=0.5)
    a = torch.full((8,), 1 / 8, dtype=torch.float64)
    other = P.clone().requires_grad_()
    c = torch.cdist(other, Y)
    wanted = torch.stack([ot.partial.partial_wasserstein2(a, a, x, m=0.5) for x in c])
    torch.testing.assert_close(whole, wanted)
    (gradient,), (oracle,) = (torch.autograd.grad(v.sum(), p) for v, p in ((whole, brain), (wanted, other)))
    torch.testing.assert_close(gradient, oracle)
    plan = exact_plan(c, 0.5).plan
    by_hand = torch.stack(
        [
            torch.stack([sum(plan[s, i, j] * (P[s, i] - Y[s, j]) / c[s, i, j] for j in range(8)) for i in range(8)])  # type: ignore[misc]
            for s in range(3)
        ]
    )
    torch.testing.assert_close(gradient, by_hand.detach())
    bounded = gradient.norm(dim=2).sum(1)
    assert float(bounded.max()) <= 0.5 + 1e-9  # property 5
    idle = plan.sum(2) == 0
    assert bool(idle.any())
    assert float(gradient[idle].abs().max()) == 0


def test_envelope_is_finite_differences() -> None:
    x = P[:1, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, Y[:1, :4], align="partial", m=0.7), x, eps=1e-7, atol=1e-5)


def test_identity_is_one_coupling() -> None:
    """Property 1: squared transport costs at most D times the MSE."""
    moved = loss(P, Y, align="emd", cost="sqeuclidean")
    assert bool((moved <= 6 * loss(P, Y, align="mse") + 1e-9).all())
    torch.testing.assert_close(loss(Y + 0.01, Y, align="emd", cost="sqeuclidean"), 6 * loss(Y + 0.01, Y, align="mse"))


@pytest.mark.parametrize("name", ["partial", "emd", "entropic_partial", "fused", "unbalanced", "sinkhorn_div", "mmd"])
def test_the_order_of_tokens_does_not_matter(name: str) -> None:
    """Property 2."""
    turned = Y[:, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])]
    options = {"align": name, "m": 0.5 if "partial" in name else 1.0, "eps": 0.1}
    torch.testing.assert_close(loss(P, turned, **options), loss(P, Y, **options), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(loss(P, turned, align="mse"), loss(P, Y, align="mse"))


def test_in_m_convex_and_rising() -> None:
    """Property 3."""
    values = torch.stack([loss(P, Y, align="partial", m=m / 16) for m in range(1, 17)])
    steps = torch.cat([values[:1], values.diff(dim=0)])
    assert bool((steps >= -1e-7).all())
    assert bool((steps.diff(dim=0) >= -1e-7).all())
    assert bool((values[7] <= 0.5 * values[15] + 1e-7).all())


def test_outliers_are_left_out() -> None:
    """Property 4: of 8 tokens 3 are anything; with m = 5/8 the loss does not see them, and MSE and m = 1 do."""
    wild = Y.clone()
    wild[:, :3] *= 10
    wilder = Y.clone()
    wilder[:, :3] *= 1e4
    assert (
        float((loss(P, wild, align="partial", m=5 / 8) - loss(P, wilder, align="partial", m=5 / 8)).abs().max()) < 0.1
    )
    for name in ("mse", "emd"):
        assert bool((loss(P, wilder, align=name) > 100 * loss(P, wild, align=name)).all())


def test_rectangular_sets_are_transported_and_not_compared() -> None:
    wide = torch.randn(3, 5, 6).double()
    assert loss(P, wide, align="partial", m=0.5).shape == (3,)
    for name in ("mse", "l1", "huber", "quantile", "hybrid"):
        with pytest.raises(BrainotError, match=f"align = '{name}' compares token with token"):
            loss(P, wide, align=name)


def test_equal_sets_cost_nothing() -> None:
    for name in ("emd", "sinkhorn_div", "mmd", "mse", "fused"):
        assert float(loss(Y, Y, align=name, eps=0.01).abs().max()) < 0.02, name


def test_fused_is_pots() -> None:
    c, inner, outer = (distances(x, y)[0].numpy() for x, y in ((P, Y), (P, P), (Y, Y)))
    a = np.full(8, 1 / 8)
    exact = ot.gromov.fused_gromov_wasserstein2(c, inner, outer, a, a, alpha=0.4)
    assert float(loss(P[:1], Y[:1], align="fused", alpha=0.4)) == pytest.approx(float(exact), rel=1e-6)
    torch.testing.assert_close(loss(P, Y, align="fused", alpha=0.0), loss(P, Y, align="emd"))


def test_mmd_by_loops() -> None:
    x, y = P[0].numpy(), Y[0].numpy()
    both = np.concatenate([x, y])
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    kernel = np.exp(-squared / np.sort(squared.ravel())[(squared.size - 1) // 2])
    wanted = kernel[:8, :8].mean() + kernel[8:, 8:].mean() - 2 * kernel[:8, 8:].mean()
    assert float(loss(P[:1].float(), Y[:1].float(), align="mmd")) == pytest.approx(wanted, rel=1e-4)


def test_the_discriminator_descends_and_the_encoder_ascends() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(6)
    brain = P.float().requires_grad_()
    align(brain, Y.float(), BrainotOptions(align="jsd"), discriminator=discriminator).loss.mean().backward()
    with torch.no_grad():
        start = float(discriminator(brain, Y.float()).mean())
        moved = float(discriminator(brain - 0.1 * brain.grad / brain.grad.norm(), Y.float()).mean())  # type: ignore[operator,union-attr]
        for p in discriminator.parameters():
            p -= 0.01 * p.grad  # type: ignore[operator]
        learnt = float(discriminator(brain, Y.float()).mean())
    assert moved > start > learnt  # harder to tell apart after the encoder's step, easier after its own
    with pytest.raises(BrainotError, match="needs a discriminator"):
        align(P, Y, BrainotOptions(align="jsd"))


def test_a_plan_can_be_used_again() -> None:
    options = BrainotOptions(align="partial", m=0.5)
    first = align(P, Y, options)
    again = align(P + 0.1, Y, options, plan=first.plan)
    torch.testing.assert_close(again.loss, (distances(P + 0.1, Y) * first.plan.plan).sum((1, 2)))  # type: ignore[union-attr]
    assert first.info["mass"] == pytest.approx(0.5, abs=1e-6)
    assert first.info["unit_cost"] == pytest.approx(2 * float(first.loss.mean()))


def test_entropy_is_a_share_of_the_median() -> None:
    c = distances(P, Y)
    assert entropy(c, BrainotOptions()) == pytest.approx(0.005 * float(c.median()))
    assert entropy(c, BrainotOptions(eps=0.3)) == 0.3
