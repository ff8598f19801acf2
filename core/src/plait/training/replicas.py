"""Norms and factors for models that hold many networks at once: parameters [N, ...], one slice for each replica.

A method that reduces over the parameters of a network (a gradient norm, clipping, a trust ratio) must do so for every
replica by itself. With ``replicas`` None these functions are the ordinary ones over all tensors together.

Half precision is computed in float32, so that squares neither overflow nor vanish, and written back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16, torch.complex32)


def wide(tensor: Tensor) -> Tensor:
    """Real numbers whose squares can be summed: half precision as float32, complex numbers as pairs [..., 2]."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.dtype in HALVES else tensor


@torch.no_grad()
def norm(tensors: Sequence[Tensor], replicas: int | None = None) -> Tensor:
    """One Euclidean norm over all tensors together: 0-dim, or [N] for stacked replicas.

    Args:
        tensors: any shapes, floating point or complex; with replicas each [N, ...].
        replicas: N, or None for one network (``trainer.replicas``).

    Raises:
        ValueError: a tensor whose first dimension is not N.
    """
    if not tensors:
        return torch.zeros(() if replicas is None else (replicas,))
    if replicas is None:
        whole: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([wide(t) for t in tensors], 2)))
        return whole
    odd = [tuple(t.shape) for t in tensors if t.ndim == 0 or len(t) != replicas]
    if odd:
        raise ValueError(f"a tensor of shape {odd[0]} among the parameters of {replicas} replicas [{replicas}, ...]")
    each = [torch.linalg.vector_norm(wide(t).reshape(replicas, -1), dim=1) for t in tensors]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return norms


@torch.no_grad()
def scaled(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Every tensor, in its own dtype, times a factor: 0-dim, or [N] with one value for each replica."""
    if factor.ndim == 0 and all(t.dtype not in HALVES for t in tensors):
        return list(torch._foreach_mul(list(tensors), factor))
    products = []
    for t in tensors:
        dtype = torch.promote_types(t.dtype, torch.float32)
        each = factor.reshape(-1, *[1] * (t.ndim - 1)) if factor.ndim else factor
        products.append((t.to(dtype) * each.to(t.device, dtype)).to(t.dtype))
    return products


@torch.no_grad()
def clip_norm(parameters: Sequence[Tensor], limit: float, replicas: int | None = None) -> Tensor:
    """Scale ``p.grad`` so that its norm (each replica's own norm) is at most ``limit``; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if replicas is None and all(g.dtype not in HALVES for g in gradients):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    before = norm(gradients, replicas)
    torch._foreach_copy_(gradients, scaled(gradients, (limit / (before + 1e-6)).clamp(max=1)))
    return before
