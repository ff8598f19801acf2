"""The weighted neighbour sum, its exact gradients of any order, in memory O(E) + O(n H)."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class _Side(NamedTuple):
    """CSR structure of an n x n matrix with one entry per edge, and the edge of each entry."""

    crow: Tensor
    col: Tensor
    edge: Tensor


class _Plan(NamedTuple):
    """The edges sorted by target and by source."""

    n: int
    by_target: _Side
    by_source: _Side
    position: Tensor

    def matrix(self, weight: Tensor, transpose: bool) -> Tensor:
        side = self.by_source if transpose else self.by_target
        return torch.sparse_csr_tensor(side.crow, side.col, weight[side.edge], (self.n, self.n), check_invariants=False)


_HAS_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
_plans: Any = WeakTensorKeyDictionary()


def transform(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for features [n, F] that are dense or CSR; CSR ones keep their precision under autocast."""
    if x.layout == torch.strided:
        return nn.functional.linear(x, weight, bias)
    with _full_precision(x):
        return nn.functional.linear(x, weight, bias)


def _full_precision(x: Tensor) -> torch.autocast:
    # sparse products have no bfloat16 form on the CPU
    return torch.autocast(x.device.type, enabled=False)


def neighbour_sum(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """``out[t] = sum over edges (s, t) of weight * x[s]``, float [n, H].

    Differentiable in ``x`` and ``weight``, any number of times. Sparse products where they exist (float32 and float64,
    on the CPU with MKL and on CUDA); gather and `index_add` elsewhere, and while torch traces or transforms functions.

    Args:
        x: float [n, H]; the sum has the wider type of ``x`` and ``weight``.
        edge_index: int64 [2, E], source and target of each entry. Its sorted form is kept as long as the tensor lives.
        weight: float [E].
    """
    if x.dtype != weight.dtype:
        wider = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(wider), weight.to(wider)
    if not _has_sparse_products(x, weight):
        messages = x.index_select(0, edge_index[0]) * weight.unsqueeze(1)
        return torch.zeros_like(x).index_add(0, edge_index[1], messages)
    out: Tensor = _Sum.apply(weight, x, _plan_of(edge_index, x.shape[0]), False)
    return out


def _has_sparse_products(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if x.dtype not in (torch.float32, torch.float64):
        return False
    return x.device.type == "cuda" or (x.device.type == "cpu" and _HAS_MKL)


def _plan_of(edge_index: Tensor, n: int) -> _Plan:
    version = 0 if edge_index.is_inference() else edge_index._version
    kept = _plans.get(edge_index)
    if kept is None or kept[0] != (version, n):
        kept = ((version, n), _make_plan(edge_index.detach(), n))
        _plans[edge_index] = kept
    plan: _Plan = kept[1]
    return plan


def _make_plan(edge_index: Tensor, n: int) -> _Plan:
    if not _plans:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "CSR is in beta state", once per process
            torch.eye(1).to_sparse_csr()
    source, target = edge_index
    by_target, by_source = _side(target, source, n), _side(source, target, n)
    position = torch.empty_like(by_target.edge)
    position[by_target.edge] = torch.arange(len(position), device=position.device)
    return _Plan(n, by_target, by_source, position)


def _side(row: Tensor, col: Tensor, n: int) -> _Side:
    edge = torch.argsort(row * n + col, stable=True)
    crow = torch.zeros(n + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=n), 0, out=crow[1:])
    # 32-bit indices are what MKL and cuSPARSE compute with; others are converted at every product
    index = torch.int32 if max(n, len(row)) < 2**31 - 1 else torch.int64
    return _Side(crow.to(index), col[edge].to(index), edge)


class _Sum(torch.autograd.Function):
    """A x, or A^T x, where A[t, s] is the weight of edge (s, t)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, plan: _Plan, transpose: bool) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.plan, ctx.transpose = plan, transpose
        with _full_precision(x):
            return plan.matrix(weight, transpose) @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, x = ctx.saved_tensors
        at_target, at_source = (x, grad) if ctx.transpose else (grad, x)
        d_weight = _Dot.apply(at_target, at_source, ctx.plan) if ctx.needs_input_grad[0] else None
        d_x = _Sum.apply(weight, grad, ctx.plan, not ctx.transpose) if ctx.needs_input_grad[1] else None
        return d_weight, d_x, None, None


class _Dot(torch.autograd.Function):
    """``a[t] . b[s]`` of every edge (s, t), [E]: the gradient of the sum in its weights."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, plan: _Plan) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.plan = plan
        side = plan.by_target
        pattern = torch.sparse_csr_tensor(
            side.crow, side.col, a.new_zeros(len(side.edge)), (plan.n, plan.n), check_invariants=False
        )
        with _full_precision(a):
            sampled = torch.sparse.sampled_addmm(pattern, a.contiguous(), b.contiguous().t(), beta=0)
        values: Tensor = sampled.values()
        return values[plan.position]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        d_a = _Sum.apply(grad, b, ctx.plan, False) if ctx.needs_input_grad[0] else None
        d_b = _Sum.apply(grad, a, ctx.plan, True) if ctx.needs_input_grad[1] else None
        return d_a, d_b, None
