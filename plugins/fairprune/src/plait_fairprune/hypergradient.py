"""The gradient of the mask's problem with respect to the mask. Card section 2.4.

Upper problem F_u(m * theta*(m)), lower problem theta*(m) = argmin F_l(m * theta) + gamma/2 |theta|^2, z = m * theta.
With the Hessian of F_l left out (BiP, NeurIPS 2022): d theta*/dm = -(1/gamma) diag(grad F_l(z)), so that

    G = theta * gu - (1/gamma) * m * gl * gu,    gu = grad_z F_u(z),  gl = grad_z F_l(z).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hypergradient"]


@torch.no_grad()
def hypergradient(
    theta: Sequence[Tensor],
    upper: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
    lower: Sequence[Tensor] | None = None,
    ridge: float | None = None,
) -> list[Tensor]:
    """G at every position of every tensor, pruned ones included.

    Args:
        theta: the dense weights, without the mask.
        upper: gu, dense: the gradient of the mask's loss at z, not masked.
        masks: 0/1, of the same shapes; with ``lower`` only.
        lower: gl, the gradient of the weights' loss at z; None leaves the implicit term out (``first``).
        ridge: gamma > 0; with ``lower`` only.

    Returns:
        tensors of the shapes of ``theta``.
    """
    theta, upper = list(theta), list(upper)
    direct = list(torch._foreach_mul(theta, upper))
    if lower is None or masks is None or ridge is None:
        return direct
    implicit = torch._foreach_mul(torch._foreach_mul(list(masks), list(lower)), upper)
    torch._foreach_add_(direct, list(implicit), alpha=-1 / ridge)
    return direct
