"""Multiply-accumulates of one inference pass over the whole graph. Card, "Metrics".

The order of the products is the models': transform first, then propagate, ``P (X W)``. A layer costs
``nnz(P) * d_out`` for the propagation, self-loops included, and for the transform one product per kept weight and node,
or, where X is the sparse input, one per non-zero of X that meets a kept weight. Normalisation and activations are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plait_glt.errors import GLTError
from plait_glt.models.ugs_gin import UGSGIN
from plait_glt.pyg import GATConv, GCNConv, GINConv, MessagePassing


class Propagation(NamedTuple):
    """One neighbour sum: its width, and whether P has an entry for each node beside the edges."""

    width: int
    self_loops: bool


def column_nonzeros(x: Tensor) -> Tensor:
    """Non-zero entries of each feature [F], int64; x [n, F] dense, CSR or COO."""
    if x.layout == torch.strided:
        return (x != 0).sum(0)
    x = x.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    columns = x.indices()[1][x.values() != 0]
    return torch.bincount(columns, minlength=x.shape[1])


def transform_macs(kept: Tensor, num_nodes: int, column_counts: Tensor | None = None) -> int:
    """MACs of ``X W`` with a sparse W.

    Args:
        kept: mask of W in PyG's layout [d_out, d_in].
        num_nodes: n.
        column_counts: non-zeros of each column of a sparse X [d_in]; None for a dense one.

    Raises:
        GLTError: column counts that do not fit.
    """
    per_input = (kept != 0).sum(0)
    if column_counts is None:
        return num_nodes * int(per_input.sum())
    if column_counts.shape != per_input.shape:
        raise GLTError(f"macs: {len(column_counts)} input columns for a weight matrix of {len(per_input)} inputs.")
    return int((column_counts.to(per_input.device) * per_input).sum())


def inference_macs(
    kept_weights: Sequence[Tensor],
    num_edges: int,
    num_nodes: int,
    x: Tensor | None = None,
    *,
    propagated: Sequence[Propagation] | None = None,
) -> int:
    """MACs of a GCN-like network.

    Args:
        kept_weights: masks of the weight matrices in order, [d_out, d_in] each.
        num_edges: kept directed entries of A.
        num_nodes: n.
        x: the input features, counted by their non-zeros; None counts them as dense.
        propagated: the neighbour sums (`propagations`); default one of every matrix's d_out with self-loops.
    """
    if propagated is None:
        propagated = [Propagation(mask.shape[0], True) for mask in kept_weights]
    sums = sum(p.width * (num_edges + p.self_loops * num_nodes) for p in propagated)
    counts: list[Tensor | None] = [None if x is None else column_nonzeros(x)]
    counts += [None] * (len(kept_weights) - len(counts))
    return sums + sum(transform_macs(mask, num_nodes, c) for mask, c in zip(kept_weights, counts, strict=False))


def propagations(network: nn.Module) -> list[Propagation] | None:
    """Width and self-loops of each of PyG's GCN, GIN and GAT convolutions and of UGS's GIN; None for other networks.

    GAT's attention scores are not counted, GIN's own term is an addition and not a product.
    """
    known = []
    for module in network.modules():
        if isinstance(module, GCNConv):
            known.append(Propagation(module.out_channels, True))
        elif isinstance(module, GATConv):
            known.append(Propagation(module.heads * module.out_channels, True))
        elif isinstance(module, GINConv):
            first = next((m for m in module.nn.modules() if isinstance(getattr(m, "weight", None), Tensor)), None)
            if first is None:
                return None
            known.append(Propagation(first.weight.shape[0], False))
        elif isinstance(module, UGSGIN):
            known += [Propagation(layer.out_features, False) for layer in module.layers if isinstance(layer, nn.Linear)]
        elif isinstance(module, MessagePassing):
            return None
    return known or None


def saving(dense: int, pruned: int) -> float:
    """``1 - pruned / dense``, the share of the MACs that a ticket saves."""
    if dense <= 0:
        raise GLTError(f"macs: the dense network has {dense} MACs.")
    return 1 - pruned / dense
