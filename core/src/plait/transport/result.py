"""What a solver returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Transport:
    """Solution of a batch of problems given by cost matrices D [*, n, m].

    Args:
        cost: ``sum_ij T_ij D_ij`` [*], in the units of D; differentiable in D with T held constant.
        plan: T [*, n, m], detached.
        row_potential, column_potential: f [*, n] and g [*, m], in the units of D, detached; entropic plans are
            ``exp((f_i + g_j - D_ij) / eps)``, exact ones satisfy ``f_i + g_j <= D_ij``. -inf where the weight is 0 in
            an entropic problem.
        iterations: sweeps made (0 for the exact solver).
        marginal_error: L1 distance of the plan's row sums from ``a`` [*]; column sums are met to rounding.
    """

    cost: Tensor
    plan: Tensor
    row_potential: Tensor
    column_potential: Tensor
    iterations: int
    marginal_error: Tensor


@dataclass(frozen=True)
class PointTransport:
    """Solution of one problem between point sets of n and m points, without its plan.

    Args:
        cost: ``sum_ij T_ij D_ij``, a scalar; differentiable in the points with T held constant.
        row_potential, column_potential: f [n] and g [m], as in `Transport`.
        iterations: sweeps made.
        marginal_error: L1 distance of the plan's row sums from ``a``, a scalar.
    """

    cost: Tensor
    row_potential: Tensor
    column_potential: Tensor
    iterations: int
    marginal_error: Tensor
