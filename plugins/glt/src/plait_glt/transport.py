"""Transport between two sets of outputs, exact or entropic, by POT; in the backward pass its plan is a constant."""

from __future__ import annotations

import functools
import math
import random
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plait_glt.errors import GLTError

TINY = 1e-12
EXACT_WIDTH = 32
"""Up to this many coordinates distances are summed from differences; above, by the faster matrix product."""
KERNEL_RANGE = 60.0
"""Largest ``D / eps`` for which sweeps run on ``exp(-D / eps)``, well within float32; above, they run on logsumexp."""

EXACT_ENTRIES = 1 << 26
"""Most distances of an exact problem: 512 MiB in the simplex's float64, and minutes."""


class Solved(NamedTuple):
    """Transport costs, and how well the problems are solved.

    Args:
        cost: ``sum_ij T_ij D_ij``, a scalar or [K]; differentiable in the points with T held constant (envelope).
        sweeps: made, the most of any problem; 0 where no entropy was added.
        error: largest L1 distance of a plan's marginal from the uniform one.
    """

    cost: Tensor
    sweeps: int
    error: float


class Exact(NamedTuple):
    """The optimal plan itself, by the network simplex; on the CPU, wherever the points are."""

    def between(self, x: Tensor, y: Tensor) -> Solved:
        """Between two point sets of uniform weights, [n, d] and [m, d].

        Raises:
            GLTError: more than 2^26 distances, or a simplex that gave up.
        """
        if len(x) * len(y) > EXACT_ENTRIES:
            raise GLTError(
                f"exact transport between {len(x)} and {len(y)} nodes takes too long: draw samples (wd_samples=256), "
                "or add entropy (wd_eps=0.05)."
            )
        cost = distances(x, y)
        values = cost.detach()
        a, b = (values.new_full((count,), 1 / count) for count in values.shape)
        plan, log = pot().emd(a, b, values, numItermax=10**8, log=True)
        if log["warning"] is not None:
            raise GLTError(f"exact transport between {len(x)} and {len(y)} nodes: {log['warning']}")
        return Solved((plan * cost).sum(), 0, 0.0)


class Sinkhorn(NamedTuple):
    """How to solve.

    Args:
        eps: strength of the entropy, above 0, in the units of the distance.
        max_iterations: sweeps at most.
        tolerance: L1 error of a marginal at which they stop.
        block_entries: distances held at a time, at least one row of them.
    """

    eps: float
    max_iterations: int
    tolerance: float
    block_entries: int

    def between(self, x: Tensor, y: Tensor) -> Solved:
        """Between two point sets of uniform weights, [n, d] and [m, d]; in blocks where n m distances are too many."""
        if len(x) * len(y) > self.block_entries:
            return self._blocked(x, y)
        cost = distances(x, y)
        values = cost.detach()
        a, b = (values.new_full((count,), 1 / count) for count in values.shape)
        plan, log = pot().sinkhorn(
            a,
            b,
            values,
            self.eps,
            method="sinkhorn" if float(values.max()) <= KERNEL_RANGE * self.eps else "sinkhorn_log",
            numItermax=self.max_iterations,
            stopThr=self.tolerance / math.sqrt(len(b)),  # POT measures the L2 error
            warn=False,
            log=True,
        )
        return Solved((plan * cost).sum(), log["niter"] + 1, float((plan.sum(0) - b).abs().sum()))

    def padded(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Solved:
        """Between K pairs of point sets at once, as a GPU likes it.

        Args:
            x, y: points [K, n, d] and [K, m, d].
            a, b: their weights [K, n] and [K, m], 0 for padding.
        """
        solution = pot().solve_batch(
            distances(x, y),
            self.eps,
            a,
            b,
            max_iter=self.max_iterations,
            tol=self.tolerance / math.sqrt(a.shape[1]),
            grad="envelope",
        )
        error = (solution.plan.sum(2) - a).abs().sum(1).max()
        return Solved(solution.value_linear, solution.log["n_iter"] + 1, float(error))

    def _blocked(self, x: Tensor, y: Tensor) -> Solved:
        rows, columns = (max(1, self.block_entries // len(others)) for others in (y, x))
        f, g, log = pot().bregman.empirical_sinkhorn(
            x.detach(),
            y.detach(),
            self.eps,
            metric="euclidean",
            numIterMax=self.max_iterations,
            stopThr=self.tolerance,
            isLazy=True,
            batchSize=(rows, columns),
            warn=False,
            log=True,
        )

        def block(points: Tensor, potentials: Tensor) -> tuple[Tensor, Tensor]:
            cost = distances(points, y)
            with torch.no_grad():
                plan = (potentials.unsqueeze(1) + g - cost / self.eps).exp()
            return (plan * cost).sum(), plan.sum(1)

        total, sums = x.new_zeros(()), []
        for points, potentials in zip(torch.split(x, rows), torch.split(f, rows), strict=True):
            # the distances are computed once more in the backward pass, not kept until then
            cost, mass = checkpoint(block, points, potentials, use_reentrant=False, preserve_rng_state=False)
            total = total + cost
            sums.append(mass)
        error = (torch.cat(sums) - 1 / len(x)).abs().sum()
        return Solved(total, log["niter"] + 1, float(error))


@functools.cache
def pot() -> ModuleType:
    """POT, imported at first use: it takes a second, and draws from Python's generator, which no run may notice."""
    state = random.getstate()
    import ot

    random.setstate(state)
    module: ModuleType = ot
    return module


class _SquaredDistances(torch.autograd.Function):
    """Without the [*, n, m, d] tensor of differences, and differentiable any number of times, unlike `torch.cdist`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        mode = "donot_use_mm_for_euclid_dist" if x.shape[-1] <= EXACT_WIDTH else "use_mm_for_euclid_dist_if_necessary"
        return torch.cdist(x, y, compute_mode=mode).square_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        (g,) = gradients
        return 2 * (x * g.sum(-1, keepdim=True) - g @ y), 2 * (y * g.sum(-2).unsqueeze(-1) - g.mT @ x)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances ``sqrt(squared + 1e-12)``, twice differentiable; the gradient is 0 (not NaN) at 0.

    Args:
        x: points [*, n, d].
        y: points [*, m, d], of the same leading shape and type.

    Returns:
        [*, n, m]. Above 32 coordinates and 25 points they come from a matrix product, whose rounding error is that of
        the squared norms, not of the distance.
    """
    squared: Tensor = _SquaredDistances.apply(x, y)
    return torch.where(squared > 0, (squared + TINY).sqrt(), TINY**0.5)
