"""Exact transport by POT's network simplex."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plait.transport.errors import TransportError
from plait.transport.problem import check_cost, marginals
from plait.transport.result import Transport


def exact(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, max_iterations: int = 1_000_000
) -> Transport:
    """Exact transport of a batch of problems, one after the other, on the CPU in float64.

    Args:
        cost: D [*, n, m], finite.
        a, b: weights as in `plait.transport.sinkhorn`.
        max_iterations: simplex pivots at most for one problem; default 1 000 000.

    Returns:
        The plan as a constant and its cost, differentiable in D. Where several plans are optimal, one of them.

    Raises:
        TransportError: POT is not installed, a cost that is not finite, weights that do not fit or do not sum alike, or
            a problem that is not solved within ``max_iterations``.
    """
    try:
        import ot
    except ModuleNotFoundError as error:
        raise TransportError(
            "exact transport needs POT, which is not installed: pip install 'plait-core[transport]' (or POT)."
        ) from error
    values = check_cost(cost).double().cpu()
    left, right = marginals(a, b, values)
    *batch, n, m = values.shape
    plans, duals, errors = [], [], []
    for problem, rows, columns in zip(values.reshape(-1, n, m), left.reshape(-1, n), right.reshape(-1, m), strict=True):
        plan, f, g = np.zeros((n, m)), np.zeros(n), np.zeros(m)
        mass = float(rows.sum())
        if mass > 0:
            # POT compares the sums to the last digits; what is left of the tolerance of `marginals` goes here
            weights = columns.numpy() * (mass / float(columns.sum()))
            plan, log = ot.emd(rows.numpy(), weights, problem.numpy(), numItermax=max_iterations, log=True)
            if log["warning"]:
                raise TransportError(f"a {n} x {m} problem was not solved: {log['warning']} Raise max_iterations.")
            f, g = log["u"], log["v"]
        plans.append(torch.from_numpy(plan))
        duals.append((torch.as_tensor(f), torch.as_tensor(g)))
        errors.append((plans[-1].sum(1) - rows).abs().sum())
    if not plans:
        raise TransportError(f"cost {tuple(cost.shape)} holds no problem.")
    plan_all = torch.stack(plans).reshape(*batch, n, m).to(cost)
    f_all, g_all = (torch.stack([pair[k] for pair in duals]).reshape(*batch, -1).to(cost) for k in (0, 1))
    error_all = torch.stack(errors).reshape(batch).to(cost)
    return Transport((plan_all * cost).sum((-2, -1)), plan_all, f_all, g_all, 0, error_all)
