"""Transport plans between token sets: exact for each sample, entropic for a batch at once (card, 2.4 and 2.5)."""

from __future__ import annotations

import functools
import random
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .errors import BrainotError

__all__ = ["Plan", "distances", "entropic_plan", "exact_plan", "relaxed_plan"]

WHOLE = 1e-9
"""``1 - m`` up to which all mass is moved, by a balanced solver: POT calls m = 1 infeasible where sums fall short."""
MOST_ENTRIES = 4096**2
"""Entries of a cost matrix up to which an exact plan is computed."""
DEEPEST = -80.0
"""Terms of a logsumexp lie this far below the largest at most: numbers near the smallest float are slow on CPUs."""
EVERY = 5
"""Sweeps between two looks at how much they still move; a look waits for a GPU."""


class Plan(NamedTuple):
    """Plans of a batch.

    Args:
        plan: G [B, N, M], not negative; it carries no gradient unless it was unrolled.
        sweeps: made by an entropic solver, 0 of an exact one.
        violation: share of the mass that the last sweep still moved, the largest of the batch.
    """

    plan: Tensor
    sweeps: int = 0
    violation: float = 0.0


@functools.cache
def pot() -> ModuleType:
    """POT, imported at first use: it takes a second, and draws from Python's generator, which no run may notice."""
    state = random.getstate()
    import ot
    import ot.batch
    import ot.gromov
    import ot.partial

    random.setstate(state)
    module: ModuleType = ot
    return module


def distances(x: Tensor, y: Tensor, cost: Literal["euclidean", "sqeuclidean"] = "euclidean") -> Tensor:
    """Distances of all pairs of tokens in float32 or wider, [B, N, M]; the gradient is 0, not NaN, at distance 0.

    Args:
        x, y: tokens [B, N, D] and [B, M, D].
        cost: Euclidean, or its square.

    Raises:
        BrainotError: widths that differ, or distances that are not finite.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        shapes = f"{list(x.shape)} and {list(y.shape)}"
        raise BrainotError(f"two token sets must be [B, N, D] and [B, M, D], got {shapes}: give one width D")
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    c = torch.cdist(x.to(wide), y.to(wide))
    if not bool(c.detach().isfinite().all()):
        rows = (~c.detach().isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise BrainotError(f"the distances of tokens are not finite in sample {rows[0]} of the batch: look at the data")
    return c if cost == "euclidean" else c.square()


def exact_plan(cost: Tensor, m: float, solver: Literal["auto", "simplex", "assignment"] = "auto") -> Plan:
    """The cheapest plans that move the mass ``m`` between uniform weights, sample by sample on the CPU.

    Args:
        cost: [B, N, M], not negative; only its values are used.
        m: in (0, 1]; 1 is the balanced problem.
        solver: the network simplex of POT, or an assignment where a plan is a matching (N = M and m N whole).

    Raises:
        BrainotError: ``m`` out of range, a matrix of more than 4096 x 4096 entries, or an assignment of anything else.
    """
    _, n, k = cost.shape
    if not 0 < m <= 1:
        raise BrainotError(f"m = {m}: the transported mass lies above 0 and is at most 1")
    if n * k > MOST_ENTRIES:
        raise BrainotError(f"an exact plan of {n} x {k} tokens takes too long: use align = 'entropic_partial'")
    pairs = round(m * n)
    matching = n == k and abs(m * n - pairs) < WHOLE * n and pairs > 0
    if solver == "assignment" and not matching:
        raise BrainotError(
            f"solver = 'assignment' needs as many brain as image tokens and m N whole, here {n}, {k} and {m * n:g}: "
            "use solver = 'simplex'"
        )
    values = cost.detach().to("cpu", torch.float64).numpy()
    if matching and solver != "simplex":
        plans = np.stack([_matching(c, pairs) for c in values])
    else:
        rows, columns = np.full(n, 1 / n), np.full(k, 1 / k)
        if m >= 1 - WHOLE:
            plans = np.stack([pot().emd(rows, columns, c) for c in values])
        else:
            moved = min(m, (1 - WHOLE) * min(rows.sum(), columns.sum()))
            plans = np.stack([pot().partial.partial_wasserstein(rows, columns, c, m=moved) for c in values])
    return Plan(torch.from_numpy(plans).to(cost))


def _matching(cost: np.ndarray, pairs: int) -> np.ndarray:
    """The cheapest ``pairs`` pairs of a square matrix, each with the mass 1/N, by spare points beside the real ones.

    What is taken from a column, and what a spare point costs, changes no optimum; near the dual's it is found in a
    tenth of the time. Columns are lowered where many tokens are nearest to the same few, as before training.
    """
    n = len(cost)
    spare = n - pairs
    extended = np.empty((n + spare, n + spare))
    real = extended[:n, :n]
    lowered = np.zeros(n)
    if 2 * np.count_nonzero(np.bincount(cost.argmin(1), minlength=n)) < n:
        nearest = (cost - cost.mean(1, keepdims=True)).min(0)
        lowered = np.minimum(nearest - np.partition(nearest, pairs - 1)[pairs - 1], 0)
    np.subtract(cost, lowered, out=real)
    if spare:
        extended[:n, n:] = np.partition(real.min(1), pairs - 1)[pairs - 1]
        extended[n:, :n] = -lowered
        extended[n:, n:] = 2 * real.max() * n + 1  # two spare points never meet
    rows, columns = linear_sum_assignment(extended)
    matched = (rows < n) & (columns < n)
    plan = np.zeros((n, n))
    plan[rows[matched], columns[matched]] = 1 / n
    return plan


def entropic_plan(cost: Tensor, m: float, eps: float, sweeps: int = 2000, tolerance: float = 1e-3) -> Plan:
    """Entropic plans of the mass ``m`` of a whole batch, by ascent on the dual in logarithms; differentiable.

    Rows and columns may give less than their weight, so their multipliers are at most 0; the mass is met after each
    sweep exactly. Sweeps stop when one moves less than ``tolerance`` of the mass.

    Args:
        cost: [B, N, M].
        m: in (0, 1].
        eps: strength of the entropy, above 0, in units of the cost.
        sweeps: at most.
        tolerance: see above.
    """
    if eps <= 0:
        raise BrainotError(f"eps = {eps}: the strength of the entropy lies above 0")
    n, k = cost.shape[1:]
    kernel = -cost / eps
    log_a, log_b = -float(np.log(n)), -float(np.log(k))
    log_m = float(np.log(m * (1 - WHOLE)))
    f = kernel.new_zeros(len(cost), n, 1)
    g = kernel.new_zeros(len(cost), 1, k)
    h = kernel.new_full((len(cost), 1, 1), 0.0)
    violation = torch.inf
    sweep = 0
    for sweep in range(1, sweeps + 1):
        row_mass = _logsumexp(kernel + g, 2) + h
        new = (log_a - row_mass).clamp(max=0)
        if sweep > 1 and (sweep % EVERY == 1 or sweep == sweeps):
            with torch.no_grad():
                moved = ((new + row_mass).exp() - (f + row_mass).exp()).abs().sum((1, 2))
                violation = float(moved.max()) / m
            if violation < tolerance:
                break
        f = new
        column_mass = _logsumexp(kernel + f, 1)
        g = (log_b - column_mass - h).clamp(max=0)
        h = log_m - _logsumexp(g + column_mass, 2)
    return Plan((kernel + f + g + h).exp(), sweep, violation)


def relaxed_plan(cost: Tensor, rho: float, sweeps: int = 2000, tolerance: float = 1e-3) -> Tensor:
    """Plans of a batch whose marginals are uniform at the price rho KL each, by majorisation (Chapel et al. 2021).

    Args:
        cost: [B, N, M].
        rho: above 0, in units of the cost.
        sweeps: at most.
        tolerance: share of the mass below which a sweep's change ends them.
    """
    n, k = cost.shape[1:]
    kernel = (-cost / (2 * rho)).exp() / (n * k) ** 0.5
    plan = torch.full_like(cost, 1 / (n * k))
    for sweep in range(sweeps):
        before = plan
        scale = (plan.sum(2, keepdim=True) * plan.sum(1, keepdim=True)).sqrt()
        plan = kernel * plan / scale.clamp(min=torch.finfo(cost.dtype).tiny)
        if sweep % EVERY == 0 and bool(((plan - before).abs().sum((1, 2)) < tolerance * plan.sum((1, 2))).all()):
            break
    return plan


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """``torch.logsumexp`` that keeps the dimension, three times faster where most terms are tiny."""
    top = x.detach().amax(dim, keepdim=True)
    return (x - top).clamp(min=DEEPEST).exp().sum(dim, keepdim=True).log() + top
