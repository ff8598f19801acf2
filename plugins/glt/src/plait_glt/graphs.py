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
        label: whole numbers [n] or [n, 1], or [n, K] for many labels of a node; -1 for a node without a label.
        sparse: keep ``x`` as a CSR tensor; ``auto`` does so under 5 % non-zero entries.

    Raises:
        GLTError: as `check_features` and `node_labels`, or edges out of range.
    """
    check_features(x)
    label = node_labels(label, x.shape[0])
    n = len(label)
    return Graph(x=store_features(x, sparse), edge_index=clean_edges(edge_index, n), y=label, num_nodes=n)


def check_features(x: Tensor) -> None:
    """Refuse what are no features.

    Raises:
        GLTError: no float matrix [nodes, F], or values that are not finite.
    """
    if x.dim() != 2 or not x.is_floating_point():
        hint = " Convert whole numbers with x.float()." if x.dim() == 2 and not x.is_complex() else ""
        raise GLTError(f"the features must be a float matrix [nodes, F], got {x.dtype} of {tuple(x.shape)}.{hint}")
    values = x if x.layout == torch.strided else x.values() if x.layout == torch.sparse_csr else x.coalesce().values()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        where = f"; first in node {int((~finite).any(1).nonzero()[0])}" if x.layout == torch.strided else ""
        raise GLTError(f"the features hold values that are not finite (nan or inf{where}).")


def node_labels(label: Tensor | None, n: int) -> Tensor:
    """Labels as int64 [n], or [n, K] for many labels of a node.

    Args:
        label: whole numbers of any width, or bool, [n], [n, 1] (as OGB has them) or [n, K]. -1 stands for no label.
        n: number of nodes.

    Raises:
        GLTError: none, another shape, not as many as nodes, or numbers that are not whole by their type.
    """
    if label is None:
        raise GLTError("the graph has no labels y.")
    if label.dim() not in (1, 2) or label.is_floating_point() or label.is_complex():
        missing = label.isnan().nonzero()
        nan = f"; node {int(missing[0, 0])} has nan: write -1 for a label that is missing" if len(missing) else ""
        hint = "; convert whole numbers with y.long()" if label.is_floating_point() and not nan else nan
        raise GLTError(
            f"the labels must be int64 [nodes] or [nodes, K], got {label.dtype} of shape {tuple(label.shape)}{hint}."
        )
    if len(label) != n:
        raise GLTError(f"there are {n} rows of features but {len(label)} labels; each node needs one of both.")
    return (label.squeeze(1) if label.shape[1:] == (1,) else label).long()


def node_ids(name: str, nodes: Tensor, n: int) -> Tensor:
    """The nodes of a split, int64 [m].

    Args:
        name: of the split, for messages.
        nodes: ids of any whole type, or a bool mask [n] or [n, 1].
        n: number of nodes.

    Raises:
        GLTError: a mask of another shape (several divisions side by side are told apart), or anything else.
    """
    nodes = torch.as_tensor(nodes)
    if nodes.dtype == torch.bool:
        if nodes.dim() == 2 and nodes.shape[0] == n and nodes.shape[1] != 1:
            raise GLTError(
                f"split {name!r} is a mask of shape {tuple(nodes.shape)}: {nodes.shape[1]} divisions side by side. "
                "Take one of them, mask[:, 0]."
            )
        if nodes.shape not in ((n,), (n, 1)):
            raise GLTError(f"split {name!r} is a mask of shape {tuple(nodes.shape)} for {n} nodes.")
        return nodes.reshape(n).nonzero().squeeze(1)
    if nodes.dim() != 1 or nodes.is_complex() or (nodes.is_floating_point() and len(nodes)):
        raise GLTError(
            f"split {name!r} must be node ids, int64 [m], or a bool mask [{n}], "
            f"got {nodes.dtype} of shape {tuple(nodes.shape)}."
        )
    if nodes.dtype == torch.uint8 and len(nodes) == n and n > 1 and int(nodes.max()) <= 1:
        raise GLTError(f"split {name!r} looks like a mask of zeros and ones: convert it with mask.bool().")
    return nodes.long()


def check_labelled(name: str, nodes: Tensor, label: Tensor) -> None:
    """Refuse a split with nodes that have no label.

    Raises:
        GLTError: the first of them are named.
    """
    bare = nodes[(label[nodes] < 0).reshape(len(nodes), -1).any(1)]
    if len(bare):
        first = ", ".join(str(node) for node in bare[:5].tolist())
        raise GLTError(
            f"{len(bare)} nodes of the {name} split have no label (it is below 0; first: {first}); "
            "take them out of the split."
        )


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
