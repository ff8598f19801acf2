"""Graphs as canonical edge lists: cleaning, undirected ids, hash, simple measures, and checks with clear errors."""

from __future__ import annotations

import hashlib
import warnings
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.pyg import Data

Graph: TypeAlias = Data
"""The graph type: PyG's, with ``x``, ``edge_index``, ``y`` and ``num_nodes``."""
SPARSE_BELOW = 0.05
"""Share of non-zero features under which ``sparse="auto"`` keeps the features as a CSR matrix."""
Sparse = Literal["auto", "yes", "no"]


def make_graph(x: Tensor, edge_index: Tensor, label: Tensor, *, sparse: Sparse = "no") -> Graph:
    """A checked `torch_geometric.data.Data` with ``x``, ``edge_index``, ``y`` and ``num_nodes``.

    The edges become canonical: both directions of every edge, sorted by source then target, without self-loops and
    duplicates.

    Args:
        x: features, float [n, F], dense or a sparse CSR or COO tensor.
        edge_index: int64 [2, E], in any order and direction.
        label: int64 [n], or [n, K] for many labels of a node.
        sparse: keep ``x`` as a CSR tensor; ``auto`` does so under 5 % non-zero entries.

    Raises:
        GLTError: features and labels of different length, features that are not finite, edges out of range.
    """
    if x.dim() != 2 or not x.is_floating_point():
        raise GLTError(f"the features must be a float matrix [nodes, F], got {x.dtype} of shape {tuple(x.shape)}.")
    if label.dim() not in (1, 2) or label.dtype != torch.int64:
        raise GLTError(
            f"the labels must be int64 [nodes] or [nodes, K], got {label.dtype} of shape {tuple(label.shape)}."
        )
    if len(label) != x.shape[0]:
        raise GLTError(f"there are {x.shape[0]} rows of features but {len(label)} labels; each node needs one of both.")
    values = x if x.layout == torch.strided else x.values() if x.layout == torch.sparse_csr else x.coalesce().values()
    if not bool(torch.isfinite(values).all()):
        raise GLTError("the features hold values that are not finite (nan or inf).")
    n = len(label)
    return Graph(x=store_features(x, sparse), edge_index=clean_edges(edge_index, n), y=label, num_nodes=n)


def check_edges(edge_index: Tensor, n: int) -> None:
    """Refuse what is no edge list of a graph with ``n`` nodes.

    Raises:
        GLTError: not int64 [2, E], or an entry outside 0..n-1 (the first one is named).
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise GLTError(f"edge_index must be int64 [2, E], got {edge_index.dtype} of shape {tuple(edge_index.shape)}.")
    bad = ((edge_index < 0) | (edge_index >= n)).any(0).nonzero()
    if len(bad):
        source, target = edge_index[:, bad[0, 0]].tolist()
        raise GLTError(
            f"edge_index entry {int(bad[0, 0])} joins {source} and {target}, but nodes are 0..{n - 1} "
            f"({len(bad)} of {edge_index.shape[1]} entries are out of range)."
        )


def clean_edges(edge_index: Tensor, n: int, *, undirected: bool = True) -> Tensor:
    """The edges without self-loops and duplicates, sorted by source then target, int64 [2, E'].

    Args:
        edge_index: int64 [2, E].
        n: number of nodes.
        undirected: add the opposite direction of every entry (card, Data).

    Raises:
        GLTError: as `check_edges`.
    """
    check_edges(edge_index, n)
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    if undirected:
        source, target = torch.cat([source, target]), torch.cat([target, source])
    keys = torch.unique(source * n + target)
    return torch.stack([keys // n, keys % n]) if len(keys) else edge_index.new_zeros((2, 0))


def undirected_ids(edge_index: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Number the undirected edges.

    Args:
        edge_index: int64 [2, E], directed entries; an edge may be there in one direction or in both.
        n: number of nodes; default the largest id + 1.

    Returns:
        ``edge_id`` int64 [E] with values 0..U-1, the same for both directions, and ``pairs`` int64 [2, U] with the
        smaller node first, sorted.
    """
    low, high = edge_index.amin(0), edge_index.amax(0)
    size = n if n is not None else int(edge_index.max()) + 1 if edge_index.numel() else 1
    keys, edge_id = torch.unique(low * size + high, return_inverse=True)
    return edge_id, torch.stack([keys // size, keys % size])


def graph_hash(edge_index: Tensor, n: int) -> str:
    """SHA-256 of the node count and the entries in their order, as hex: masks of E numbers fit this list only."""
    digest = hashlib.sha256(f"{n} {edge_index.shape[1]} ".encode())
    digest.update(edge_index.detach().cpu().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def degrees(edge_index: Tensor, n: int) -> Tensor:
    """Directed entries that leave each node, int64 [n]; the degree where both directions are listed."""
    return torch.bincount(edge_index[0], minlength=n)


def isolated_nodes(edge_index: Tensor, n: int, kept: Tensor | None = None) -> Tensor:
    """Ids of the nodes without any edge, int64.

    Args:
        edge_index: int64 [2, E].
        n: number of nodes.
        kept: bool [E], entries that count; default all.
    """
    left = edge_index if kept is None else edge_index[:, kept]
    touched = torch.zeros(n, dtype=torch.bool, device=edge_index.device)
    touched[left.reshape(-1)] = True
    return (~touched).nonzero().reshape(-1)


def edge_homophily(edge_index: Tensor, label: Tensor) -> float:
    """Share of the entries that join two nodes of one class; nan without edges."""
    same = label[edge_index[0]] == label[edge_index[1]]
    return float(same.double().mean())


# ---- features -------------------------------------------------------------------------------------------------------
def store_features(x: Tensor, sparse: Sparse = "auto") -> Tensor:
    """Features [n, F] as a CSR tensor or a dense one; `torch.nn.functional.linear` takes and differentiates both.

    On Cora the product with the first weights is several times cheaper in CSR form, forward and backward.
    """
    if sparse == "no":
        return x if x.layout == torch.strided else x.to_dense()
    if sparse == "auto":
        entries = int(x.count_nonzero()) if x.layout == torch.strided else x._nnz()
        if entries >= SPARSE_BELOW * x.shape[0] * x.shape[1]:
            return x if x.layout == torch.strided else x.to_dense()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "CSR is in beta state", once per process
        return x.to_sparse_csr()


def normalise_rows(x: Tensor) -> Tensor:
    """Every row of [n, F] divided by its sum; rows of zeros stay. Dense or COO; COO gives COO."""
    if x.layout == torch.strided:
        total = x.sum(1, keepdim=True)
        return torch.where(total != 0, x / total, x)
    x = x.coalesce()
    rows, values = x.indices()[0], x.values()
    total = torch.zeros(x.shape[0], dtype=values.dtype).index_add_(0, rows, values)[rows]
    scaled = torch.where(total != 0, values / total, values)
    return torch.sparse_coo_tensor(x.indices(), scaled, x.shape, is_coalesced=True, check_invariants=False)
