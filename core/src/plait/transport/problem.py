"""Checks that every solver makes: marginals and options."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.transport.errors import TransportError

MASS_TOLERANCE = 1e-4
"""Largest relative difference of the two total masses; what float32 sums of some thousand weights need."""


def check_options(eps: float, max_iterations: int, tolerance: float, check_every: int) -> None:
    """Raises `TransportError` naming the option that is out of its range."""
    if not (math.isfinite(eps) and eps > 0):
        raise TransportError(f"eps={eps} must be above 0 (in the units of the cost).")
    if not tolerance >= 0:
        raise TransportError(f"tolerance={tolerance} must be at least 0 (L1 error of the row sums).")
    for name, value in (("max_iterations", max_iterations), ("check_every", check_every)):
        if value < 1:
            raise TransportError(f"{name}={value} must be at least 1.")


def check_cost(cost: Tensor) -> Tensor:
    """The cost detached; raises `TransportError` where it is no finite [*, n, m] of floating point."""
    if cost.ndim < 2 or 0 in cost.shape[-2:] or not cost.is_floating_point():
        raise TransportError(f"cost {tuple(cost.shape)} {cost.dtype}: give floating point [*, n, m] with n, m >= 1.")
    values = cost.detach()
    bad = ~values.isfinite()
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise TransportError(f"cost{list(where)} is {values[where].item()}; {int(bad.sum())} entries are not finite.")
    return values


def marginals(a: Tensor | None, b: Tensor | None, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Both marginals [*, n] and [*, m] in the cost's type; uniform of mass 1 where None.

    A row of weight 0 takes no part, whatever its (finite) costs; so ragged problems can be padded into one batch, and
    a problem without any mass has cost 0.

    Raises:
        TransportError: a wrong shape, a negative or non-finite weight, or totals that differ.
    """
    *batch, n, m = cost.shape
    found = []
    for name, weights, count in (("a", a, n), ("b", b, m)):
        if weights is None:
            found.append(cost.new_full((*batch, count), 1 / count))
            continue
        if weights.ndim < 1 or weights.shape[-1] != count:
            raise TransportError(f"{name} {tuple(weights.shape)} does not fit a cost of shape {tuple(cost.shape)}.")
        values = weights.detach().to(cost)
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise TransportError(f"{name} has a weight that is negative or not finite.")
        try:
            found.append(values.expand(*batch, count))
        except RuntimeError as error:
            raise TransportError(
                f"{name} {tuple(weights.shape)} does not fit a cost of shape {tuple(cost.shape)}."
            ) from error
    left, right = (weights.double().sum(-1) for weights in found)
    apart = (left - right).abs() > MASS_TOLERANCE * torch.maximum(left, right)
    if bool(apart.any()):
        at = tuple(apart.nonzero()[0].tolist())
        raise TransportError(
            f"the weights do not sum alike: a to {left[at].item():.6g}, b to {right[at].item():.6g}"
            f"{f' (problem {list(at)})' if at else ''}."
        )
    return found[0], found[1]
