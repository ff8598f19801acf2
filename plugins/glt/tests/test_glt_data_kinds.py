"""Labels, features and splits as other tools write them: read right, or refused in a line before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plait
from plait.errors import BadInput, PlaitError
from plait.run import execute
from plait.storage import places
from plait_glt.config import GLTConfig
from plait_glt.data import node_data, split_by_class
from plait_glt.errors import GLTError
from plait_glt.graphs import make_graph, node_ids, node_labels
from plait_glt.links import divide_links
from plait_glt.models import GCN
from plait_glt.pyg import Data as Graph
from plait_glt.rounds import GraphLotteryTickets
from plait_glt.tasks import LabelTask, LinkTask, NodeTask
from plait_glt.tiny_graphs import karate_graph

KARATE = karate_graph()
X, Y, EDGES = KARATE.x.to_dense(), KARATE.y, KARATE.edge_index
IDS = torch.arange(0, 34, 2), torch.arange(1, 34, 4), torch.arange(3, 34, 4)
SHORT: dict[str, Any] = {"rounds": 1, "p_g": 0.3, "p_theta": 0.5, "mask_epochs": 3, "fix_epochs": 2, "warmup": 0}


def masks() -> list[Tensor]:
    return [torch.isin(torch.arange(34), ids) for ids in IDS]


def results_of(x: Tensor, y: Tensor, splits: Any) -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    search = GraphLotteryTickets(
        GCN(34, 4, 8), Graph(x=x, edge_index=EDGES, y=y), splits[0], splits[1], splits[2], GLTConfig(**SHORT)
    )
    return [(r.edges, r.accuracy, r.validation_accuracy, r.macs) for r in search.run()]


def unlabelled() -> tuple[Tensor, list[Tensor]]:
    """Node 33 (of the validation split) without a label, and splits without it."""
    label = Y.clone()
    label[[33]] = -1
    return label, [ids[ids != 33] for ids in IDS]


# ---- the library ----------------------------------------------------------------------------------------------------
def test_what_can_only_mean_one_thing_gives_the_same_tickets() -> None:
    plain = results_of(X, Y, IDS)
    assert results_of(X, Y.reshape(-1, 1), IDS) == plain
    assert results_of(X, Y.int(), [ids.int() for ids in IDS]) == plain
    assert results_of(X, Y.to(torch.uint8), masks()) == plain
    assert results_of(X, Y, [mask.reshape(-1, 1) for mask in masks()]) == plain
    assert results_of(X, Y, [ids.numpy() for ids in IDS]) == plain
    label, splits = unlabelled()
    assert results_of(X, label, splits) == results_of(X, Y, splits)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (Y.float(), r"must be int64 .*torch.float32 .*y\.long\(\)"),
        (Y.double().masked_fill(torch.arange(34) == 5, torch.nan), "node 5 has nan"),
        (Y[:30], "34 rows of features but 30 labels"),
        (Y.reshape(-1, 1, 1), r"\[nodes\]"),
        (Y.reshape(-1, 1).expand(34, 3), "LabelTask"),
        (
            Y.masked_fill(torch.isin(torch.arange(34), torch.tensor([2, 8])), -1),
            r"2 nodes of the train split.*first: 2, 8.;",
        ),
        (None, "no labels y"),
    ],
)
def test_other_labels_are_refused(label: Tensor, message: str) -> None:
    with pytest.raises(GLTError, match=message):
        NodeTask(X, EDGES, label, *IDS)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (torch.zeros(34, 10, dtype=torch.bool), r"10 divisions side by side.*mask\[:, 0\]"),
        (torch.zeros(30, dtype=torch.bool), "for 34 nodes"),
        (torch.zeros(34, dtype=torch.uint8), r"mask\.bool\(\)"),
        (torch.rand(34), "must be node ids"),
        (torch.zeros(2, 3, dtype=torch.int64), "must be node ids"),
        (torch.tensor(3), "must be node ids"),
    ],
)
def test_what_is_no_split_is_refused(nodes: Tensor, message: str) -> None:
    with pytest.raises(GLTError, match=message):
        node_ids("train", nodes, 34)
    with pytest.raises(GLTError, match=message):
        NodeTask(X, EDGES, Y, nodes, IDS[1], IDS[2])
    with pytest.raises(BadInput, match=message):
        node_data("karate", KARATE, nodes, IDS[1], IDS[2], num_classes=4)


def test_features_that_are_not_finite_are_named_by_every_task() -> None:
    x = X.clone()
    x[7, 3] = torch.nan
    with pytest.raises(GLTError, match=r"not finite .*node 7"):
        NodeTask(x, EDGES, Y, *IDS)
    with pytest.raises(GLTError, match="not finite"):
        LabelTask(x, EDGES, torch.ones(34, 2), *IDS)
    with pytest.raises(GLTError, match="not finite"):
        LinkTask(x, divide_links(EDGES, 34))
    with pytest.raises(BadInput, match="data own: the features hold values that are not finite"):
        node_data("own", Graph(x=x, edge_index=EDGES, y=Y), *IDS, num_classes=4)


def test_features_of_another_precision_are_never_narrowed_without_a_word() -> None:
    task = NodeTask(X.double(), EDGES, Y, *IDS)
    with pytest.raises(
        GLTError, match=r"torch\.float64 and the network's weights torch\.float32.*x\.to\(torch\.float32\)"
    ):
        GraphLotteryTickets.on(GCN(34, 4, 8), task, GLTConfig(**SHORT))
    search = GraphLotteryTickets.on(GCN(34, 4, 8).double(), task, GLTConfig(**SHORT))
    search.run()
    assert search.model.edge_mask.dtype == torch.float64
    with pytest.raises(GLTError, match=r"float matrix .*x\.float\(\)"):
        NodeTask(X.bool(), EDGES, Y, *IDS)


def test_labels_of_many_kinds_without_a_value() -> None:
    label = torch.randint(2, (34, 3), generator=torch.Generator().manual_seed(0)).float()
    label[33] = -1
    splits = unlabelled()[1]
    outputs = torch.linspace(-1, 1, 34 * 3).reshape(34, 3)
    filled = label.clamp(min=0)
    assert LabelTask(X, EDGES, label, *splits).score(outputs, "test") == LabelTask(X, EDGES, filled, *splits).score(
        outputs, "test"
    )
    with pytest.raises(GLTError, match=r"1 nodes of the validation split have no label .*first: 33"):
        LabelTask(X, EDGES, label, *IDS)
    label[33] = torch.nan
    with pytest.raises(GLTError, match="Some are nan"):
        LabelTask(X, EDGES, label, *splits)
    label[33] = 2
    with pytest.raises(GLTError, match="zeros and ones"):
        LabelTask(X, EDGES, label, *splits)


def test_labels_become_whole_numbers_per_node() -> None:
    assert torch.equal(node_labels(torch.tensor([[2], [0], [-1]], dtype=torch.int16), 3), torch.tensor([2, 0, -1]))
    assert torch.equal(node_labels(torch.tensor([True, False]), 2), torch.tensor([1, 0]))
    assert make_graph(X, EDGES, Y.reshape(-1, 1)).y.shape == (34,)


def test_a_division_by_class_leaves_out_nodes_without_a_label() -> None:
    label = torch.tensor([0, 1] * 20)
    bare = label.clone()
    bare[5] = -1
    parts = split_by_class(bare, 4, 10, 12, 0)
    assert [len(part) for part in parts] == [8, 10, 12] and 5 not in torch.cat(parts).tolist()
    assert np.bincount(label[parts[0]].numpy()).tolist() == [4, 4]


# ---- plait's data, and a run ----------------------------------------------------------------------------------------
def test_data_of_a_graph_as_ogb_has_it() -> None:
    label, splits = unlabelled()
    graph = Graph(x=X, edge_index=EDGES, y=label.reshape(-1, 1))
    data = node_data("own", graph, *splits, num_classes=4)
    data.check("own")
    assert data.info.task == "classification" and graph.y.shape == (34, 1)
    assert torch.equal(data.test.__getitems__([0, 1])["label"], Y[splits[2][:2]])
    masked = node_data("own", KARATE, *masks(), num_classes=4)
    assert masked.train.graph is KARATE and torch.equal(masked.train.fields["node"], IDS[0])  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"data own: 1 nodes of the validation split have no label .*first: 33"):
        node_data("own", graph, *IDS, num_classes=4)
    label[0] = -2
    with pytest.raises(BadInput, match=r"-2\.\.3 lie outside"):
        node_data("own", Graph(x=X, edge_index=EDGES, y=label), splits[0][1:], *splits[1:], num_classes=4)


def of_ogb(seed: int) -> plait.Data:
    """Labels [n, 1] with a node that has none, splits as masks."""
    label, splits = unlabelled()
    graph = Graph(x=X, edge_index=EDGES, y=label.reshape(-1, 1))
    first, second, third = (torch.isin(torch.arange(34), ids) for ids in splits)
    return node_data("own", graph, first, second, third, num_classes=4)


def plain(seed: int) -> plait.Data:
    """The same, spelt out."""
    return node_data("own", Graph(x=X, edge_index=EDGES, y=Y), *unlabelled()[1], num_classes=4)


def double(seed: int) -> plait.Data:
    """Features of another precision than the network's."""
    return node_data("own", Graph(x=X.double(), edge_index=EDGES, y=Y), *IDS, num_classes=4)


def run(out: Path, source: Any) -> plait.Run:
    plan = plait.plan(
        plugins={"glt": SHORT}, data=f"{__name__}:{source.__name__}", model="gcn", settings={"model.hidden": 8}
    )
    return execute(plan, places.at(out), artifacts=False)


def test_a_run_on_a_graph_as_ogb_has_it(tmp_path: Path) -> None:
    odd, same = run(tmp_path / "odd", of_ogb), run(tmp_path / "plain", plain)
    for name in ("glt/accuracy", "glt/validation_accuracy", "glt/kept_edges", "glt/macs", "task/accuracy"):
        assert odd.metrics[name] == same.metrics[name]


def test_a_run_on_features_of_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises((PlaitError, GLTError), match=r"float64"):
        run(tmp_path / "run", double)
