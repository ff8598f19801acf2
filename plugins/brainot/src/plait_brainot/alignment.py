"""The losses between two token sets, all with one signature: `align(brain, image, options)` (card, 2.4).

Every loss gives one number a sample, so that samples can be weighted. A plan is a constant in the backward pass (the
envelope theorem), but for ``ot_grad = "unroll"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import BrainotError
from .options import BrainotOptions
from .transport import Plan, distances, entropic_plan, exact_plan, pot, relaxed_plan

__all__ = ["PAIRED", "Aligned", "Discriminator", "align", "entropy"]

PAIRED = ("mse", "l1", "huber", "quantile", "hybrid")
"""Losses that compare token i with token i, and so need as many of either."""


@dataclass(frozen=True)
class Aligned:
    """What a loss says of a batch.

    Attributes:
        loss: one number a sample, [B], differentiable in the brain tokens.
        plan: the plans that it moved mass by, where it has any.
        info: figures of the batch: ``mass`` that was moved, ``unit_cost`` <C, G>/m, ``sweeps``, ``violation``.
    """

    loss: Tensor
    plan: Plan | None = None
    info: Mapping[str, float] = field(default_factory=dict)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Discriminator(nn.Module):
    """Tells image tokens from brain tokens, one by one, for the Jensen-Shannon divergence.

    Args:
        dim: D, width of a token.
        width: of its hidden layer.
    """

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, brain: Tensor, image: Tensor) -> Tensor:
        """Mean cross-entropy of each sample [B], which the discriminator lowers and the encoder, reversed, raises.

        ``log 2 -`` this is a lower bound of the divergence.
        """
        reversed_brain: Tensor = _Reversed.apply(brain)
        fake, real = self.layers(reversed_brain).flatten(1), self.layers(image).flatten(1)
        return (functional.softplus(fake).mean(1) + functional.softplus(-real).mean(1)) / 2


def entropy(cost: Tensor, options: BrainotOptions) -> float:
    """The strength of the entropy for a batch of costs: ``eps``, or ``eps_share`` of their median."""
    if options.eps is not None:
        return options.eps
    return max(options.eps_share * float(cost.detach().median()), 1e-9)


def align(
    brain: Tensor,
    image: Tensor,
    options: BrainotOptions,
    *,
    m: float | None = None,
    plan: Plan | None = None,
    discriminator: Discriminator | None = None,
) -> Aligned:
    """The loss of each sample between brain tokens and image tokens.

    Args:
        brain: P [B, N, D].
        image: Y [B, M, D].
        options: ``align`` and what belongs to it.
        m: the mass to move, default ``options.m``.
        plan: of an earlier pass over the same samples, to be used again.
        discriminator: of ``jsd``.

    Raises:
        BrainotError: shapes that do not fit the loss, tokens that are not finite, no discriminator for ``jsd``.
    """
    name = options.align
    brain, image = _wide(brain), _wide(image)
    mass = options.m if m is None else m
    if name in PAIRED and brain.shape != image.shape:
        shapes = f"{list(brain.shape)} and {list(image.shape)}"
        raise BrainotError(f"align = {name!r} compares token with token, got {shapes}: use 'partial' or 'emd'")
    if name in ("partial", "entropic_partial", "emd"):
        return _transported(brain, image, options, 1.0 if name == "emd" else mass, plan)
    if name == "hybrid":
        moved = _transported(brain, image, options, mass, plan)
        squared = _SIMPLE["mse"](brain, image, options)
        return Aligned(options.lam * squared + (1 - options.lam) * moved.loss, moved.plan, moved.info)
    if name == "jsd":
        if discriminator is None:
            raise BrainotError("align = 'jsd' needs a discriminator: give alignment.Discriminator(D)")
        loss = discriminator(brain, image)
        return Aligned(loss, info={"jsd": math.log(2) - float(loss.detach().mean())})
    return Aligned(_SIMPLE[name](brain, image, options))


def _wide(tokens: Tensor) -> Tensor:
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def _transported(brain: Tensor, image: Tensor, options: BrainotOptions, m: float, plan: Plan | None) -> Aligned:
    cost = distances(brain, image, options.cost)
    if plan is None:
        if options.align == "entropic_partial":
            unrolled = options.ot_grad == "unroll"
            eps = entropy(cost, options)
            plan = entropic_plan(cost if unrolled else cost.detach(), m, eps, options.sweeps, options.tolerance)
        else:
            plan = exact_plan(cost, m, options.solver)
    loss = (cost * plan.plan).sum((1, 2))
    info = {
        "mass": float(plan.plan.detach().sum((1, 2)).mean()),
        "unit_cost": float(loss.detach().mean()) / m,
        "sweeps": float(plan.sweeps),
        "violation": plan.violation,
    }
    return Aligned(loss, plan, info)


def _fused(brain: Tensor, image: Tensor, options: BrainotOptions) -> Tensor:
    """Fused Gromov-Wasserstein: (1 - alpha) of the features' cost and alpha of how the two structures differ."""
    cost, inner, outer = (distances(x, y) for x, y in ((brain, image), (brain, brain), (image, image)))
    a, b = (torch.full((n,), 1 / n, dtype=torch.float64).numpy() for n in cost.shape[1:])
    values = (part.detach().cpu().double().numpy() for part in (cost, inner, outer))
    plans = [
        pot().gromov.fused_gromov_wasserstein(c, x, y, a, b, alpha=options.alpha)
        for c, x, y in zip(*values, strict=True)
    ]
    plan = torch.from_numpy(np.stack(plans)).to(cost)
    rows, columns = plan.sum(2), plan.sum(1)
    structure = torch.einsum("bi,bij,bj->b", rows, inner.square(), rows)
    structure = structure + torch.einsum("bi,bij,bj->b", columns, outer.square(), columns)
    structure = structure - 2 * (plan * (inner @ plan @ outer)).sum((1, 2))
    return (1 - options.alpha) * (cost * plan).sum((1, 2)) + options.alpha * structure


def _unbalanced(brain: Tensor, image: Tensor, options: BrainotOptions) -> Tensor:
    """Transport whose marginals may differ from the uniform weights at the price rho KL."""
    cost = distances(brain, image, options.cost)
    plan = relaxed_plan(cost.detach(), options.rho, options.sweeps, options.tolerance)
    paid: Tensor = _kl(plan.sum(2), 1 / cost.shape[1]) + _kl(plan.sum(1), 1 / cost.shape[2])
    return (cost * plan).sum((1, 2)) + options.rho * paid


def _kl(mass: Tensor, weight: float) -> Tensor:
    each: Tensor = torch.special.xlogy(mass, mass / weight) - mass + weight
    return each.sum(1)


def _sinkhorn_div(brain: Tensor, image: Tensor, options: BrainotOptions) -> Tensor:
    """Entropic transport less half of either set's transport to itself, so that equal sets cost nothing."""
    between = distances(brain, image, options.cost)
    eps = entropy(between, options)

    def value(cost: Tensor) -> Tensor:
        solved = pot().batch.solve_batch(cost, eps, max_iter=options.sweeps, tol=options.tolerance, grad="envelope")
        return cast(Tensor, solved.value)

    with torch.no_grad():
        of_image = value(distances(image, image, options.cost))
    return value(between) - (value(distances(brain, brain, options.cost)) + of_image) / 2


def _mmd(brain: Tensor, image: Tensor, _: BrainotOptions) -> Tensor:
    """Squared maximum mean discrepancy under a Gaussian kernel whose width is the sample's median distance."""
    both = torch.cat([brain, image], 1)
    squared = torch.cdist(both, both).square()
    n = brain.shape[1]
    width = squared.detach().flatten(1).median(1).values.clamp(min=1e-12)[:, None, None]
    kernel = (-squared / width).exp()
    inner, outer, between = kernel[:, :n, :n], kernel[:, n:, n:], kernel[:, :n, n:]
    return inner.mean((1, 2)) + outer.mean((1, 2)) - 2 * between.mean((1, 2))


_SIMPLE: Mapping[str, Callable[[Tensor, Tensor, BrainotOptions], Tensor]] = {
    "mse": lambda brain, image, _: (brain - image).square().flatten(1).mean(1),
    "l1": lambda brain, image, _: (brain - image).abs().flatten(1).mean(1),
    "huber": lambda brain, image, _: functional.smooth_l1_loss(brain, image, reduction="none").flatten(1).mean(1),
    "quantile": lambda brain, image, options: (brain - image).abs().flatten(1).quantile(options.quantile, dim=1),
    "fused": _fused,
    "unbalanced": _unbalanced,
    "sinkhorn_div": _sinkhorn_div,
    "mmd": _mmd,
}
