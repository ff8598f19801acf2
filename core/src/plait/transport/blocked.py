"""Sinkhorn between two point sets whose n x m matrix is never held: blocks of rows, logsumexp accumulated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plait.transport.costs import COSTS
from plait.transport.errors import TransportError
from plait.transport.problem import check_options, marginals
from plait.transport.result import PointTransport
from plait.transport.sinkhorn import log_update


def sinkhorn_points(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    metric: str = "euclidean",
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    check_every: int = 5,
    block_entries: int = 1 << 22,
) -> PointTransport:
    """Entropic transport between two point sets, the same answer as `sinkhorn` on their cost matrix.

    Memory is that of some tensors of ``block_entries`` numbers and of the points; costs are computed anew in every
    sweep, and once more in the backward pass.

    Args:
        x, y: points [n, d] and [m, d]; gradients flow to both.
        a, b: weights [n] and [m] of equal sums; uniform by default.
        eps, max_iterations, tolerance, check_every: as in `sinkhorn`.
        metric: a name in `COSTS`; default ``"euclidean"``.
        block_entries: cost entries held at a time, at least m of them; default 4 194 304.

    Raises:
        TransportError: as `sinkhorn`, an unknown metric, or points that are no matrix.
    """
    check_options(eps, max_iterations, tolerance, check_every)
    if metric not in COSTS:
        raise TransportError(f"metric={metric!r} is unknown; choose one of {', '.join(COSTS)}.")
    if x.ndim != 2 or y.ndim != 2 or 0 in x.shape or 0 in y.shape:
        raise TransportError(f"points x {tuple(x.shape)} and y {tuple(y.shape)} must be matrices [n, d] and [m, d].")
    for name, points in (("x", x), ("y", y)):
        if not bool(points.isfinite().all()):
            raise TransportError(f"{name} has a coordinate that is not finite.")
    cost = COSTS[metric]
    left, right = marginals(a, b, x.new_empty(1).expand(len(x), len(y)))
    rows = [slice(i, i + step) for step in (max(1, block_entries // len(y)),) for i in range(0, len(x), step)]

    def block_cost(points: Tensor, others: Tensor, f: Tensor, g: Tensor) -> Tensor:
        block = cost(points, others)
        with torch.no_grad():
            plan = ((f.unsqueeze(1) + g - block) / eps).exp()
        return (plan * block).sum()

    with torch.no_grad():
        f, g = torch.zeros_like(left), torch.where(right > 0, 0.0, right.log())
        error, done = left.new_tensor(torch.inf), 0
        while True:
            looking = done % check_every == 1 or done == max_iterations or check_every == 1
            new_f, new_g = _sweep(x, y, left.log(), right.log(), g, eps, cost, rows)
            if done and looking:
                # row sums under the potentials so far, from what the next update would multiply them with
                error = (left * ((f - new_f) / eps).nan_to_num_(nan=0.0).expm1()).abs().sum()
                if bool(error <= tolerance) or done == max_iterations:
                    break
            f, g, done = new_f, new_g, done + 1
    total = x.new_zeros(())
    for block in rows:
        total = total + checkpoint(block_cost, x[block], y, f[block], g, use_reentrant=False, preserve_rng_state=False)
    return PointTransport(total, f, g, done, error)


def _sweep(
    x: Tensor,
    y: Tensor,
    log_a: Tensor,
    log_b: Tensor,
    g: Tensor,
    eps: float,
    cost: Callable[[Tensor, Tensor], Tensor],
    rows: list[slice],
) -> tuple[Tensor, Tensor]:
    f = torch.empty_like(log_a)
    columns = torch.full_like(log_b, -torch.inf)
    for block in rows:
        scaled = cost(x[block], y) / -eps
        f[block] = log_update(log_a[block], scaled + g / eps, -1)
        columns = torch.logaddexp(columns, (scaled + f[block].unsqueeze(1)).logsumexp(0))
    return eps * f, eps * torch.where(log_b.isinf(), log_b, log_b - columns)
