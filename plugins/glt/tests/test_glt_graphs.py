"""Edge lists, ids, hashes, features: against networkx, scipy-free identities and hand-computed cases."""

from __future__ import annotations

import hashlib

import networkx as nx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.graphs import (
    check_edges,
    clean_edges,
    degrees,
    edge_homophily,
    graph_hash,
    isolated_nodes,
    make_graph,
    normalise_rows,
    store_features,
    undirected_ids,
)
from plait_glt.tiny_graphs import karate_graph, path_edges, two_triangles, two_triangles_edges

pytestmark = pytest.mark.smoke

OPEN = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
LISTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=40)


def edges_of(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()


@OPEN
@given(LISTS)
def test_cleaning_agrees_with_networkx(pairs: list[tuple[int, int]]) -> None:
    graph = nx.Graph()
    graph.add_nodes_from(range(9))
    graph.add_edges_from(pair for pair in pairs if pair[0] != pair[1])
    cleaned = clean_edges(edges_of(pairs), 9)
    expected = sorted({(a, b) for u, v in graph.edges for a, b in ((u, v), (v, u))})
    assert [tuple(pair) for pair in cleaned.t().tolist()] == expected
    assert torch.equal(clean_edges(cleaned, 9), cleaned)
    assert isolated_nodes(cleaned, 9).tolist() == sorted(nx.isolates(graph))
    assert degrees(cleaned, 9).tolist() == [degree for _, degree in sorted(graph.degree)]
    edge_id, couples = undirected_ids(cleaned, 9)
    assert couples.shape[1] == graph.number_of_edges() == (int(edge_id.max()) + 1 if len(edge_id) else 0)
    low, high = cleaned.amin(0), cleaned.amax(0)
    assert torch.equal(couples[0][edge_id], low) and torch.equal(couples[1][edge_id], high)
    directed = clean_edges(edges_of(pairs), 9, undirected=False)
    assert [tuple(pair) for pair in directed.t().tolist()] == sorted({pair for pair in pairs if pair[0] != pair[1]})


def test_ids_of_a_graph_that_lost_one_direction() -> None:
    edge_id, couples = undirected_ids(torch.tensor([[0, 2, 1], [1, 1, 2]]))
    assert edge_id.tolist() == [0, 1, 1]
    assert couples.tolist() == [[0, 1], [1, 2]]


def test_hash_is_sha256_of_the_entries_and_changes_with_them() -> None:
    edges = path_edges(3)
    raw = b"3 4 " + b"".join(int(v).to_bytes(8, "little") for v in edges.reshape(-1))
    assert graph_hash(edges, 3) == hashlib.sha256(raw).hexdigest()
    others = [graph_hash(edges, 4), graph_hash(edges[:, 1:], 3), graph_hash(edges.flip(1), 3)]
    assert len({graph_hash(edges, 3), *others}) == 4


def test_tiny_graphs() -> None:
    assert path_edges(6).tolist() == [[0, 1, 1, 2, 2, 3, 3, 4, 4, 5], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4]]
    assert nx.utils.edges_equal(
        nx.Graph(two_triangles_edges().t().tolist()).edges,
        nx.Graph([(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]).edges,
    )
    graph = two_triangles()
    assert edge_homophily(graph.edge_index, graph.y) == pytest.approx(6 / 7)
    club = nx.karate_club_graph()
    karate = karate_graph(2)
    assert karate.y.tolist() == [int(club.nodes[node]["club"] == "Officer") for node in range(34)]
    assert {tuple(sorted(pair)) for pair in karate.edge_index.t().tolist()} == {tuple(sorted(e)) for e in club.edges}
    assert torch.bincount(karate_graph(4).y).tolist() == [13, 12, 4, 5]


def test_isolated_nodes_of_a_pruned_graph() -> None:
    edges = path_edges(4)
    kept = (edges != 0).all(0)
    assert isolated_nodes(edges, 4, kept).tolist() == [0]
    assert isolated_nodes(edges, 4, torch.zeros(6, dtype=torch.bool)).tolist() == [0, 1, 2, 3]
    assert isolated_nodes(edges[:, :0], 2).tolist() == [0, 1]


def test_features_in_every_layout_are_the_same_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(30, 50, generator=generator) < 0.03).float() * torch.rand(30, 50, generator=generator)
    x[4] = 0
    stored = store_features(x)
    assert stored.layout == torch.sparse_csr and torch.equal(stored.to_dense(), x)
    assert store_features(x + 1).layout == torch.strided and store_features(x, "no").layout == torch.strided
    assert store_features(x.to_sparse_coo(), "yes").layout == torch.sparse_csr
    assert torch.equal(store_features(x.to_sparse_coo() * 1, "no"), x)
    dense, sparse = normalise_rows(x), normalise_rows(x.to_sparse_coo())
    torch.testing.assert_close(sparse.to_dense(), dense)
    filled = x.sum(1) > 0
    torch.testing.assert_close(dense.sum(1), filled.float())
    assert not filled[4]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([[0, 1], [1, 3]]), r"entry 1 joins 1 and 3, but nodes are 0\.\.2 \(1 of 2"),
        (torch.tensor([[0, -1], [1, 2]]), "joins -1 and 2"),
        (torch.tensor([[0, 1], [1, 2]], dtype=torch.int32), "int64"),
        (torch.tensor([0, 1]), r"\[2, E\]"),
    ],
)
def test_bad_edges_are_refused(edges: Tensor, message: str) -> None:
    with pytest.raises(GLTError, match=message):
        check_edges(edges, 3)


def test_bad_graphs_are_refused() -> None:
    x, edges, label = torch.eye(3), path_edges(3), torch.zeros(3, dtype=torch.int64)
    assert make_graph(x, edges, label).num_nodes == 3
    with pytest.raises(GLTError, match="3 rows of features but 2 labels"):
        make_graph(x, edges, label[:2])
    with pytest.raises(GLTError, match="not finite"):
        make_graph(x * torch.nan, edges, label)
    with pytest.raises(GLTError, match="not finite"):
        make_graph((x / 0).nan_to_num(0, torch.inf).to_sparse_csr(), edges, label)
    with pytest.raises(GLTError, match="float matrix"):
        make_graph(x.long(), edges, label)
    with pytest.raises(GLTError, match="labels must be int64"):
        make_graph(x, edges, label.float())
    with pytest.raises(GLTError, match="out of range"):
        make_graph(x[:2], edges, label[:2])
