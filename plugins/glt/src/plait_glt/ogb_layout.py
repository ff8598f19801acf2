"""``ogb`` and ``ogb-labels``: node property sets of the Open Graph Benchmark (Hu et al. 2020) from their folders.

ogbn-mag has four kinds of nodes. Only its papers have features and labels, so what is taken is the graph of papers that
cite papers, with its 349 venues as classes; authors, institutions and fields are left out. ogbn-proteins has no
features of nodes: a node's are the mean of those of its edges.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import Data
from plait.errors import BadInput
from plait_glt.data import node_data
from plait_glt.data_options import OgbLabelsOptions, OgbOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph, make_graph, normalise_rows
from plait_glt.ogb_files import PARTS, Layout, column, split_files, table

SPLITS = {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking", "ogbn-mag": "time"}
COUNTS = ("num-node-list", "num-edge-list")
CITES = ("paper", "cites", "paper")
MAG = (
    "num-node-dict",
    "triplet-type-list",
    "nodetype-has-label",
    f"relations/{'___'.join(CITES)}/edge",
    f"relations/{'___'.join(CITES)}/num-edge-list",
    "node-feat/paper/node-feat",
    "node-label/paper/node-label",
)


def load(options: OgbOptions, seed: int) -> Data:
    """The graph, made undirected, with the published division; ``seed`` changes nothing.

    Raises:
        BadInput: ``ogb`` is not installed, a folder or file is missing (named) or damaged, or the parts do not fit.
    """
    mag = options.graph == "ogbn-mag"
    raw_files = MAG if mag else ("edge", "node-feat", "node-label", *COUNTS)
    kind = SPLITS[options.graph]
    layout = Layout("ogb", options.graph, raw_files, split_files(kind, inside="paper" if mag else ""))
    raw, split = layout.find(options.root)
    if mag:
        graphs = layout.read(raw, lambda ogb: ogb.read_csv_heterograph_raw(raw))
        tables = _papers(raw, graphs)
    else:
        (tables,) = layout.read(raw, lambda ogb: ogb.read_csv_graph_raw(raw))
    label = torch.from_numpy(
        column(os.path.join(raw, "node-label/paper/node-label.csv.gz" if mag else "node-label.csv.gz"))
    )
    x = torch.from_numpy(np.asarray(tables["node_feat"], np.float32))
    graph = _made(raw, options, x, torch.from_numpy(tables["edge_index"]), label, "ogb")
    parts = _division(layout, split)
    return node_data("ogb", graph, *parts, num_classes=int(label.max()) + 1, extra={"name": options.graph})


def load_labels(options: OgbLabelsOptions, seed: int) -> Data:
    """Proteins, their associations in both directions, and 112 labels; ``seed`` changes nothing.

    Raises:
        BadInput: as `load`.
    """
    layout = Layout("ogb-labels", "ogbn-proteins", ("edge", "edge-feat", "node-label", *COUNTS), split_files("species"))
    raw, split = layout.find(options.root)
    (tables,) = layout.read(raw, lambda ogb: ogb.read_csv_graph_raw(raw))
    label = torch.from_numpy(table(os.path.join(raw, "node-label.csv.gz")))
    edges = torch.from_numpy(tables["edge_index"])
    weights = torch.from_numpy(np.asarray(tables["edge_feat"], np.float32))
    try:
        x = mean_of_edges(edges, weights, len(label))
    except GLTError as error:
        raise BadInput(f"data ogb-labels: {raw}: {error}") from None
    graph = _made(raw, options, x, edges, label, "ogb-labels")
    parts = _division(layout, split)
    return node_data("ogb-labels", graph, *parts, num_classes=label.shape[1], extra={"name": "ogbn-proteins"})


def mean_of_edges(edge_index: Tensor, edge_features: Tensor, n: int) -> Tensor:
    """For every node the mean of the features of the edges that it has an end of; zeros without an edge.

    Args:
        edge_index: int64 [2, E], each edge once.
        edge_features: float [E, d].
        n: number of nodes.

    Returns:
        [n, d].

    Raises:
        GLTError: as many features as edges are not there, or an edge is out of range.
    """
    if len(edge_features) != edge_index.shape[1]:
        raise GLTError(f"there are {edge_index.shape[1]} edges but features of {len(edge_features)}.")
    ends = edge_index.reshape(-1)
    if len(ends) and (int(ends.min()) < 0 or int(ends.max()) >= n):
        raise GLTError(f"an edge names a node outside 0..{n - 1}.")
    total = edge_features.new_zeros(n, edge_features.shape[1])
    for end in edge_index:
        total.index_add_(0, end, edge_features)
    return total / torch.bincount(ends, minlength=n).clamp(min=1).unsqueeze(1)


def _papers(raw: str, graphs: list[dict[str, Any]]) -> dict[str, Any]:
    for graph in graphs[:1]:
        if CITES in graph["edge_index_dict"] and "paper" in (graph["node_feat_dict"] or {}):
            return {"edge_index": graph["edge_index_dict"][CITES], "node_feat": graph["node_feat_dict"]["paper"]}
    raise BadInput(f"data ogb: {raw}: has no papers with features that cite papers.")


def _made(
    raw: str, options: OgbOptions | OgbLabelsOptions, x: Tensor, edges: Tensor, label: Tensor, source: str
) -> Graph:
    try:
        x = normalise_rows(x) if options.normalise_features else x
        return make_graph(x, edges, label, sparse=options.sparse_features)
    except GLTError as error:
        raise BadInput(f"data {source}: {raw}: {error}") from None


def _division(layout: Layout, split: str) -> list[Tensor]:
    files = [os.path.join(split, file) for file in layout.split]
    assert len(files) == len(PARTS)
    return [torch.from_numpy(column(file)) for file in files]
