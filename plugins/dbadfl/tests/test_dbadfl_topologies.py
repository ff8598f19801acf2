"""Graphs, mixing matrices and the spread of an impulse."""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_dbadfl import topologies
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing, _second_eigenvalue, make_mixing
from plait_dbadfl.names import TOPOLOGIES
from plait_dbadfl.topologies import from_edges, make_topology, read_edges

NAMES = [name for name in TOPOLOGIES if name != "file"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [9, 32])
def test_graphs_agree_with_networkx(name: str, n: int) -> None:
    topology = make_topology(name, n, seed=4)
    graph = topology.to_networkx()
    distances = dict(nx.all_pairs_shortest_path_length(graph))
    oracle = torch.tensor([[distances[i][j] for j in range(n)] for i in range(n)])
    assert torch.equal(topology.hops(), oracle)
    assert topology.diameter == int(oracle.max())
    assert topology.mean_hops == pytest.approx(float(oracle.sum()) / (n * (n - 1)))
    assert torch.equal(topology.hops([3, 1]), oracle[[3, 1]])
    assert torch.equal(topology.hops_to([2, 5]), oracle[[2, 5]].amin(0))
    assert torch.equal(topology.edge_index, make_topology(name, n, seed=4).edge_index)
    degree = graph.in_degree if topology.directed else graph.degree
    assert topology.degrees.tolist() == [degree[i] for i in range(n)]
    assert set(topology.neighbours(1).tolist()) == set(
        graph.predecessors(1) if topology.directed else graph.neighbors(1)
    )


def test_shapes_of_the_families() -> None:
    assert set(make_topology("ring", 7).degrees.tolist()) == {2}
    assert set(make_topology("torus", 32).degrees.tolist()) == {4}
    assert make_topology("torus", 32).diameter == 2 + 4
    assert make_topology("complete", 6).edge_index.shape == (2, 30)
    assert sorted(make_topology("star", 6).degrees.tolist()) == [1, 1, 1, 1, 1, 5]
    exponential = make_topology("exponential", 10)
    assert exponential.directed
    assert sorted(exponential.neighbours(0).tolist()) == [2, 6, 8, 9]
    small_world = make_topology("watts-strogatz", 50, seed=1)
    assert small_world.edge_index.shape[1] == 2 * 50 * 2
    assert not torch.equal(small_world.edge_index, make_topology("watts-strogatz", 50, seed=2).edge_index)


def test_erdos_renyi_is_redrawn_until_connected() -> None:
    # At this p most first draws are disconnected.
    for seed in range(8):
        topology = make_topology("erdos-renyi", 30, seed=seed, p=0.08)
        assert nx.is_connected(topology.to_networkx())
    with pytest.raises(DbadflError, match=r"no connected graph in 1000 draws of n=40, p=0\.001"):
        make_topology("erdos-renyi", 40, p=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", 2), "needs at least 3"),
        (("torus", 14), "n=14 is no product"),
        (("torus", 6), "needs at least 9"),
        (("watts-strogatz", 4), "must exceed k=4"),
        (("moebius", 4), "is not one of ring, torus"),
        (("file", 4), "needs the path"),
        (("complete", 1), "needs at least 2"),
    ],
)
def test_bad_sizes(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        make_topology(*arguments)


def test_edge_list_file(tmp_path: Path) -> None:
    file = tmp_path / "edges.csv"
    file.write_text("u,v\n0,1\n1, 2\n\n2,1\n2,3\n")
    topology = read_edges(file)
    assert topology.n == 4
    assert topology.hops([0])[0].tolist() == [0, 1, 2, 3]
    assert topology.edge_index.shape == (2, 6)
    ring = tmp_path / "ring.csv"
    ring.write_text("\n".join(f"{i},{(i + 1) % 5}" for i in range(5)))
    assert torch.equal(make_topology("file", 5, path=ring).edge_index, make_topology("ring", 5).edge_index)
    assert read_edges(ring, directed=True).hops([1])[0].tolist() == [4, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\n1,1\n", "line 2: node 1 has an edge to itself"),
        ("0,1\n1,5\n", r"line 2: unknown node 5; nodes are 0..3"),
        ("0,1\n1,x\n", "line 2: '1,x' is not two node numbers"),
        ("0,1\n1,-2\n", "line 2: '1,-2' is not two node numbers"),
        ("0,1,2\n", "line 1"),
        ("u,v\n", "has no edges"),
        ("0,1\n2,3\n", "is disconnected: 2 parts, node 2"),
        ("0,1\n1,2\n", "is disconnected: 2 parts, node 3"),
    ],
)
def test_bad_edge_lists(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "edges.csv"
    file.write_text(text)
    with pytest.raises(DbadflError, match=message):
        read_edges(file, 4)
    with pytest.raises(DbadflError, match="cannot be read"):
        read_edges(tmp_path / "none.csv")


def test_a_directed_graph_must_be_strongly_connected() -> None:
    with pytest.raises(DbadflError, match="disconnected"):
        from_edges(torch.tensor([[0, 1], [1, 2]]), 3, directed=True)


# ---- mixing ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_their_formula(name: str) -> None:
    topology = make_topology(name, 16, seed=2)
    degrees = topology.degrees.tolist()
    for rule in ("metropolis", "uniform"):
        if rule == "metropolis" and topology.directed:
            continue
        expected = torch.zeros(16, 16, dtype=torch.float64)
        for sender, receiver in topology.edge_index.T.tolist():
            other = max(degrees[sender], degrees[receiver]) if rule == "metropolis" else degrees[receiver]
            expected[receiver, sender] = 1 / (1 + other)
        expected += torch.diag(1 - expected.sum(1))
        mixing = make_mixing(topology, rule)  # type: ignore[arg-type]
        torch.testing.assert_close(mixing.dense(), expected)
        torch.testing.assert_close(mixing.csr().to_dense(), expected)
    assert make_mixing(topology).is_doubly_stochastic
    assert make_mixing(make_topology("star", 5), "uniform").is_doubly_stochastic is False


def test_exponential_and_average_weights() -> None:
    mixing = make_mixing(make_topology("exponential", 10), "exponential")
    assert mixing.is_doubly_stochastic
    assert set(mixing.weights.tolist()) == {1 / 5}
    average = make_mixing(make_topology("complete", 6), "average")
    torch.testing.assert_close(average.dense(), torch.full((6, 6), 1 / 6, dtype=torch.float64))
    for rule, graph in (("exponential", "ring"), ("average", "ring"), ("metropolis", "exponential")):
        with pytest.raises(DbadflError, match=f"'{rule}' need"):
            make_mixing(make_topology(graph, 12), rule)  # type: ignore[arg-type]


def test_rows_must_sum_to_one() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[2, 1] = 2e-6
    with pytest.raises(DbadflError, match=r"row 2 of W sums to 1.000002"):
        Mixing.from_dense(matrix)
    matrix[2, 1] = 5e-7
    assert Mixing.from_dense(matrix).senders.tolist() == [1]
    matrix[2, 1] = float("nan")
    with pytest.raises(DbadflError, match="row 2 of W sums to nan"):
        Mixing.from_dense(matrix)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 12), st.integers(0, 999))
def test_mixing_is_the_matrix_product(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(n, n, generator=generator, dtype=torch.float64)
    matrix *= torch.rand(n, n, generator=generator) < 0.4
    matrix += torch.diag(torch.full((n,), 0.1, dtype=torch.float64))
    matrix /= matrix.sum(1, keepdim=True)
    mixing = Mixing.from_dense(matrix)
    parameters = [torch.randn(n, 3, 2, generator=generator, dtype=torch.float64), torch.randn(n, generator=generator)]
    expected = [(matrix.to(p.dtype) @ p.reshape(n, -1)).reshape(p.shape) for p in parameters]
    mixing.mix_(parameters)
    for got, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_sparse_and_dense_products_agree() -> None:
    for name, n, dense in (("ring", 12, True), ("ring", 60, False), ("complete", 12, True)):
        mixing = make_mixing(make_topology(name, n))
        assert mixing.dense_is_faster is dense
        models = torch.randn(n, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(mixing.mixed(models), mixing.dense() @ models)


def test_pairs_leave_the_others_alone() -> None:
    models = torch.arange(10.0).reshape(5, 2)
    kept = models.clone()
    Mixing.pairs(5, torch.tensor([1, 3]), torch.tensor([3, 1])).mix_([models])
    assert torch.equal(models[[0, 2, 4]], kept[[0, 2, 4]])
    assert torch.equal(models[[1, 3]], torch.tensor([[4.0, 5.0], [4.0, 5.0]]))
    Mixing.pairs(5, torch.tensor([0]), torch.tensor([4]), torch.tensor([0.25])).mix_([models])
    assert torch.equal(models[0], torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("name", ["ring", "torus", "watts-strogatz", "exponential", "star"])
def test_an_impulse_spreads_one_hop_per_round_and_the_mean_is_conserved(name: str) -> None:
    topology = make_topology(name, 32, seed=3)
    mixing, source = make_mixing(topology), 5
    reach = topology.hops([source])[0]
    models = torch.zeros(32, 1, dtype=torch.float64)
    models[source] = 1
    for round in range(1, topology.diameter + 2):
        mixing.mix_([models])
        assert torch.equal(models[:, 0] > 0, reach <= round)
        assert float(models.mean()) == pytest.approx(1 / 32, rel=1e-12)


def test_relabelled_nodes_give_relabelled_models() -> None:
    topology = make_topology("watts-strogatz", 20, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    moved = from_edges(order[topology.edge_index].T, 20)
    models = torch.randn(20, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    there = torch.empty_like(models)
    there[order] = models
    torch.testing.assert_close(make_mixing(moved).mixed(there)[order], make_mixing(topology).mixed(models))


def test_spectral_gap() -> None:
    for n in (8, 31):
        expected = 2 / 3 * (1 - math.cos(2 * math.pi / n))
        assert make_mixing(make_topology("ring", n)).spectral_gap() == pytest.approx(expected)
    assert make_mixing(make_topology("complete", 9)).spectral_gap() == pytest.approx(1)
    # Large graphs take an iterative path: small ones through it, against the dense one.
    for name in ("ring", "torus", "watts-strogatz", "erdos-renyi", "exponential", "star"):
        for rule in ("uniform", None):
            mixing = make_mixing(make_topology(name, 64, seed=1), rule)  # type: ignore[arg-type]
            assert 1 - _second_eigenvalue(mixing.to_scipy()) == pytest.approx(mixing.spectral_gap(), abs=1e-6)
    long = make_mixing(make_topology("ring", 2000)).spectral_gap()
    assert long == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / 2000)), rel=1e-3)


def test_neighbourhoods_side_by_side() -> None:
    mixing = make_mixing(make_topology("star", 6))
    index, mask, entry = mixing.padded()
    assert index.shape == (6, 5)
    assert index[0].tolist() == [1, 2, 3, 4, 5]
    assert mask.sum(1).tolist() == [5, 1, 1, 1, 1, 1]
    assert torch.equal(mixing.senders[entry[mask]], index[mask])
    blocks = [b.tolist() for b in mixing.blocks(8)]
    # The hub alone, then the leaves: their padding does not follow the hub's degree.
    assert blocks == [[0], [1, 2, 3, 4], [5]]
    assert sorted(torch.cat(list(mixing.blocks(1))).tolist()) == list(range(6))


def test_ten_thousand_nodes_stay_sparse() -> None:
    topology = make_topology("torus", 10_000)
    mixing = make_mixing(topology)
    assert len(mixing.receivers) == 40_000
    assert not mixing.dense_is_faster
    models = torch.ones(10_000, 3)
    mixing.mix_([models])
    torch.testing.assert_close(models, torch.ones(10_000, 3))
    assert topology.hops_to([0]).max() == 100
    assert mixing.spectral_gap() == pytest.approx(2 / 5 * (1 - math.cos(2 * math.pi / 100)), rel=1e-3)
    assert topologies.SOURCES_AT_ONCE * 10_000 * np.dtype(np.float64).itemsize < 2**27
