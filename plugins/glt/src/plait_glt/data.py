"""One graph as plait data: splits over its nodes, batches that carry the whole graph, outputs read at the nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import Batch, Data, DataInfo
from plait.declare.results import Metric
from plait.errors import BadInput
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph, check_features, check_labelled, degrees, node_ids, node_labels
from plait_glt.measures import mean_roc_auc

FIELDS = frozenset({"graph", "node", "label", "group", "index"})
GROUPS = ["low degree", "high degree"]
AT_ONCE = 1 << 30
"""A pass over the graph computes all nodes, so an evaluation takes all of its rows in one."""


class GraphSplit:
    """Examples on one graph: a batch has their rows of the fields, and the whole graph once, not copied.

    Args:
        graph: the graph.
        fields: columns, name -> tensor [m, ...].
    """

    in_memory = True
    at_once = AT_ONCE

    def __init__(self, graph: Graph, fields: dict[str, Tensor]) -> None:
        self.graph, self.fields = graph, fields

    def __len__(self) -> int:
        return len(self.fields["index"])

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        batch = Batch({name: value.index_select(0, picked) for name, value in self.fields.items()})
        batch["graph"] = self.graph
        return batch


class NodeSplit(GraphSplit):
    """Some nodes of a graph as a plait split: a batch has the whole graph once, and a row per node.

    A batch has ``node`` int64 [B] (id in the graph), ``label`` [B], ``group`` [B] (1 above the median degree of the
    graph), ``index`` [B] (row in the split) and ``graph``, the `torch_geometric.data.Data` itself, not copied.

    Args:
        graph: with ``x``, ``edge_index``, ``y`` and ``num_nodes`` (`graphs.make_graph`).
        nodes: ids, int64 [m].
    """

    def __init__(self, graph: Graph, nodes: Tensor) -> None:
        fields = {
            "node": nodes,
            "label": graph.y.index_select(0, nodes),
            "group": degree_group(graph).index_select(0, nodes),
            "index": torch.arange(len(nodes)),
        }
        super().__init__(graph, fields)


def degree_group(graph: Graph) -> Tensor:
    """1 for nodes whose degree is above the graph's median degree, else 0; int64 [n]."""
    degree = degrees(graph.edge_index, int(graph.num_nodes or 0))
    return (degree > degree.median()).long()


def forward(model: Any, batch: Any) -> Any:
    """Logits of ALL nodes, [n, C]: ``model(x, edge_index)``."""
    graph = batch["graph"]
    return model(graph.x, graph.edge_index)


def readout(outputs: Any, batch: Any) -> Any:
    """Rows of the batch's nodes, [B, C], out of those of all nodes."""
    return outputs[batch["node"]]


def node_data(
    source: str,
    graph: Graph,
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
    notes: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> Data:
    """The plait data of a node classification, or of many labels of each node where ``graph.y`` is [n, K].

    Args:
        source: name for messages.
        graph: from `graphs.make_graph`, or another one of PyG with ``x``, ``edge_index`` and ``y``; labels may be
            [n, 1], and -1 at nodes of no split.
        train, validation, test: node ids, or bool masks [n].
        num_classes: C, or K.
        class_names: C names, or none.
        notes: lines shown to the user.
        extra: more facts for ``info.extra``, beside ``nodes``, ``edges`` (undirected) and ``directed_entries``.

    Raises:
        BadInput: features that are not finite, labels that are no whole numbers, splits that are neither ids nor masks,
            and as `check_splits`.
    """
    graph = _checked(source, graph)
    splits = {"train": train, "validation": validation, "test": test}
    try:
        splits = {name: node_ids(name, nodes, int(graph.num_nodes or 0)) for name, nodes in splits.items()}
    except GLTError as error:
        raise BadInput(f"data {source}: {error}") from None
    check_splits(source, graph, splits, num_classes)
    n, entries = int(graph.num_nodes or 0), int(graph.edge_index.shape[1])
    many = graph.y.ndim == 2
    info = DataInfo(
        "multilabel" if many else "classification",
        (int(graph.x.shape[1]),),
        num_classes,
        num_groups=len(GROUPS),
        fields=FIELDS,
        extra={"nodes": n, "edges": entries // 2, "directed_entries": entries, **(extra or {})},
    )
    names: dict[str, Sequence[str]] = {"group": GROUPS}
    if class_names:
        names["label"] = list(class_names)
    first, second, third = (NodeSplit(graph, nodes) for nodes in splits.values())
    data = Data(info, first, second, third, forward=forward, readout=readout, names=names, notes=notes)
    data.figures = label_figures if many else None
    return data


def _checked(source: str, graph: Graph) -> Graph:
    """The graph with labels as `graphs.node_labels` has them; a copy where they were not so."""
    try:
        check_features(graph.x)
        label = node_labels(graph.y, int(graph.x.shape[0]))
    except GLTError as error:
        raise BadInput(f"data {source}: {error}") from None
    if label.dtype == graph.y.dtype and label.shape == graph.y.shape:
        return graph
    graph = copy.copy(graph)
    graph.y = label
    return graph


def label_figures(outputs: Tensor, fields: Mapping[str, Any]) -> dict[str, Metric]:
    """The mean ROC-AUC over the labels in %; nan where no label of the split has both kinds of nodes."""
    return {"auc": percent(lambda: mean_roc_auc(outputs, fields["label"]))}


def percent(figure: Callable[[], float]) -> Metric:
    """A figure in %, or nan where there is none (outputs that are not finite, which the next step refuses)."""
    try:
        return Metric(100 * figure(), "%", "higher")
    except GLTError:
        return Metric(float("nan"), "%", "higher")


def check_splits(source: str, graph: Graph, splits: Mapping[str, Tensor], num_classes: int) -> None:
    """Refuse splits that would spoil a run.

    Raises:
        BadInput: a node out of range, twice in a split or in two splits, a label out of range, a class without a
            training label, a node without a label (-1). Many labels of a node must be zeros and ones.
    """
    n = int(graph.num_nodes or 0)
    owner = torch.full((n,), -1, dtype=torch.int64)
    names = list(splits)
    for number, (name, nodes) in enumerate(splits.items()):
        if not len(nodes):
            raise BadInput(f"data {source}: the {name} split has no node.")
        if int(nodes.min()) < 0 or int(nodes.max()) >= n:
            wrong = int(nodes.min()) if int(nodes.min()) < 0 else int(nodes.max())
            raise BadInput(f"data {source}: the {name} split lists node {wrong}, but nodes are 0..{n - 1}.")
        taken = nodes[owner[nodes] >= 0]
        if len(taken):
            other = names[int(owner[taken[0]])]
            raise BadInput(
                f"data {source}: {len(taken)} nodes are in the {other} split and in the {name} split "
                f"(first: node {int(taken[0])}); the splits must not overlap."
            )
        if len(torch.unique(nodes)) < len(nodes):
            raise BadInput(f"data {source}: the {name} split lists a node twice.")
        owner[nodes] = number
        try:
            check_labelled(name, nodes, graph.y)
        except GLTError as error:
            raise BadInput(f"data {source}: {error}") from None
    low, high = int(graph.y.min()), int(graph.y.max())
    low = 0 if low == -1 else low  # of nodes in no split
    if graph.y.ndim == 2:
        if low < 0 or high > 1:
            raise BadInput(f"data {source}: labels {low}..{high}; many labels of a node must be zeros and ones.")
        return
    if low < 0 or high >= num_classes:
        raise BadInput(f"data {source}: labels {low}..{high} lie outside 0..{num_classes - 1}.")
    counts = torch.bincount(graph.y[splits["train"]], minlength=num_classes)
    missing = (counts == 0).nonzero().reshape(-1).tolist()
    if missing:
        raise BadInput(f"data {source}: no training node has the label {', '.join(map(str, missing))}.")


def split_by_class(
    label: Tensor, labels_per_class: int, validation: int, test: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Node ids of the Planetoid kind of division: so many training labels per class, then counts of the rest.

    Args:
        label: int64 [n]; nodes with -1 are in no part.
        labels_per_class: training nodes of each class.
        validation, test: nodes of either, any class.
        seed: of the draw.

    Raises:
        BadInput: too few nodes.
    """
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[label.numpy()[order] >= 0]
    shuffled = label.numpy()[order]
    by_class = np.argsort(shuffled, kind="stable")
    sizes = np.bincount(shuffled)
    if int(sizes.min()) <= labels_per_class:
        small = int(sizes.argmin())
        raise BadInput(f"class {small} has {int(sizes[small])} nodes, too few for {labels_per_class} training labels.")
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = rank < labels_per_class
    train, rest = order[chosen], order[~chosen]
    if len(rest) < validation + test:
        raise BadInput(f"{len(rest)} nodes are left for {validation} validation and {test} test nodes.")
    parts = (np.sort(train), np.sort(rest[:validation]), np.sort(rest[validation : validation + test]))
    first, second, third = (torch.from_numpy(part.astype(np.int64)) for part in parts)
    return first, second, third
