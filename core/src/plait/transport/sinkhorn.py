"""Entropic transport: Sinkhorn's iterations, batched, in the log domain.

``min <T, D> + eps sum_ij T_ij (log T_ij - 1)`` over plans with row sums a and column sums b. One sweep is
``f <- eps (log a - LSE_j((g - D) / eps))`` then ``g <- eps (log b - LSE_i((f - D) / eps))``.

The sweeps run on the kernel ``exp((f + g - D) / eps)`` with scalings u, v close to 1, which are taken up into f and g
before they grow: the same iterates as with logsumexp, at two matrix-vector products a sweep. Wherever a kernel
underflows, those sweeps are repeated with logsumexp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.transport.problem import check_cost, check_options, marginals
from plait.transport.result import Transport

ABSORB_ABOVE = 20.0
"""Largest ``|log u|`` before the scalings are taken up: entries that underflow then stay below exp(-47) of a weight."""


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    check_every: int = 5,
) -> Transport:
    """Entropic transport of a batch of problems.

    Args:
        cost: D [*, n, m], finite, float32 or float64 (shorter types are computed in float32).
        a, b: weights [*, n] and [*, m] (broadcast over the batch), of equal sums; uniform of mass 1 by default. Weight
            0 switches a row or column off, so that ragged problems can be padded.
        eps: strength of the entropy, above 0, in the units of D.
        max_iterations: sweeps at most; default 1000.
        tolerance: stop when the row sums of every problem are within this L1 distance of ``a``; default 1e-6.
        check_every: sweeps between two looks at the error (each waits for the device); default 5.

    Raises:
        TransportError: eps <= 0, a cost that is not finite, weights that do not fit or do not sum alike.
    """
    check_options(eps, max_iterations, tolerance, check_every)
    values = check_cost(cost)
    values = values if values.dtype == torch.float64 else values.float()
    left, right = marginals(a, b, values)
    plan, f, g, iterations, error = _solve(values, left, right, eps, max_iterations, tolerance, check_every)
    total = (plan.to(cost.dtype) * cost).sum((-2, -1))
    return Transport(total, plan, f, g, iterations, error)


def log_sweep(scaled: Tensor, log_a: Tensor, log_b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """One sweep by logsumexp; ``scaled`` is D / eps, potentials are in units of eps."""
    f = log_update(log_a, g.unsqueeze(-2) - scaled, -1)
    return f, log_update(log_b, f.unsqueeze(-1) - scaled, -2)


def log_update(log_weight: Tensor, exponent: Tensor, dim: int) -> Tensor:
    """``log weight - LSE(exponent)``, and -inf where the weight is 0 even if the other side has no mass either."""
    return torch.where(log_weight.isinf(), log_weight, log_weight - exponent.logsumexp(dim))


@torch.no_grad()
def _solve(
    cost: Tensor, a: Tensor, b: Tensor, eps: float, max_iterations: int, tolerance: float, check_every: int
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    scaled = cost / eps
    log_a, log_b = a.log(), b.log()
    off_a, off_b = (a == 0).to(a.dtype), (b == 0).to(b.dtype)
    f, g = log_sweep(scaled, log_a, log_b, torch.where(b > 0, 0.0, log_b))
    kernel = _kernel(scaled, f, g)
    u, v = 1 - off_a, 1 - off_b
    done = 1
    error = (kernel.sum(-1) - a).abs().sum(-1)
    while done < max_iterations and not bool((error <= tolerance).all()):
        sweeps = min(check_every, max_iterations - done)
        new_u, new_v = u, v
        for _ in range(sweeps):
            # the ones that stand for weights of 0 only keep 0/0 away: their scaling is 0
            new_u = a / (_rows(kernel, new_v) + off_a)
            new_v = b / (_columns(kernel, new_u) + off_b)
        done += sweeps
        log_u, log_v = new_u.log(), new_v.log()
        active_u, active_v = log_u.masked_fill(off_a > 0, 0).abs(), log_v.masked_fill(off_b > 0, 0).abs()
        size = float(torch.maximum(active_u.amax(), active_v.amax()))
        if size <= ABSORB_ABOVE:
            u, v = new_u, new_v
        elif size <= 2 * ABSORB_ABOVE:
            f, g, kernel, u, v = _absorb(scaled, f + log_u, g + log_v, off_a, off_b)
        else:  # underflow, or close to it (NaN comes here too): these sweeps again from where they began
            f, g = f + u.log(), g + v.log()
            for _ in range(sweeps):
                f, g = log_sweep(scaled, log_a, log_b, g)
            f, g, kernel, u, v = _absorb(scaled, f, g, off_a, off_b)
        error = (u * _rows(kernel, v) - a).abs().sum(-1)
    plan = u.unsqueeze(-1) * kernel * v.unsqueeze(-2)
    return plan, eps * (f + u.log()), eps * (g + v.log()), done, error


def _absorb(
    scaled: Tensor, f: Tensor, g: Tensor, off_a: Tensor, off_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return f, g, _kernel(scaled, f, g), 1 - off_a, 1 - off_b


def _kernel(scaled: Tensor, f: Tensor, g: Tensor) -> Tensor:
    return (f.unsqueeze(-1) + g.unsqueeze(-2)).sub_(scaled).exp_()


def _rows(kernel: Tensor, v: Tensor) -> Tensor:
    return (kernel @ v.unsqueeze(-1)).squeeze(-1)


def _columns(kernel: Tensor, u: Tensor) -> Tensor:
    return (u.unsqueeze(-2) @ kernel).squeeze(-2)
