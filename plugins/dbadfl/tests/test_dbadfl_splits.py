"""Who owns which images, which batch a node takes, and where attackers sit."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.sampling import NodeData, derive, draw_batch, generator, join, split_probes
from plait_dbadfl.splits import dirichlet_split, iid_split, split
from plait_dbadfl.topologies import Topology, from_edges, ring

calm = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


# ---- splits ------------------------------------------------------------------------------------------------------
@calm
@given(st.integers(1, 12), st.sampled_from([0.3, 1.0, 100.0]), st.integers(0, 10**6))
def test_every_image_is_used_exactly_once_and_every_node_has_its_minimum(nodes: int, alpha: float, seed: int) -> None:
    labels = torch.arange(600) % 7
    data = dirichlet_split(labels, nodes, alpha=alpha, seed=seed, min_samples=4)
    assert data.index[data.valid].sort().values.tolist() == list(range(600))
    assert data.nodes == nodes and int(data.lengths.min()) >= 4


def test_a_large_alpha_gives_every_node_its_share_of_every_class() -> None:
    labels = torch.randint(5, (4000,), generator=generator(0))
    data = dirichlet_split(labels, 8, alpha=1e6, seed=1)
    held = torch.stack([torch.bincount(labels[data.index[i, : data.lengths[i]]], minlength=5) for i in range(8)])
    expected = torch.bincount(labels, minlength=5) / 8
    assert (held - expected).abs().max() <= 2


def test_a_small_alpha_gives_every_class_to_few_nodes() -> None:
    labels = torch.arange(4000) % 5
    data = dirichlet_split(labels, 4, alpha=0.01, seed=4, min_samples=1)
    held = torch.stack([torch.bincount(labels[data.index[i, : data.lengths[i]]], minlength=5) for i in range(4)])
    assert (held.max(0).values / 800).mean() > 0.9


def test_the_share_of_a_class_has_the_variance_of_a_dirichlet_draw() -> None:
    labels, nodes, alpha = torch.arange(20_000) % 200, 5, 0.5
    data = dirichlet_split(labels, nodes, alpha=alpha, seed=3, min_samples=1)
    share = torch.bincount(labels[data.index[0, : data.lengths[0]]], minlength=200) / 100
    mean = 1 / nodes
    variance = mean * (1 - mean) / (nodes * alpha + 1)
    assert abs(float(share.mean()) - mean) < 4 * (variance / 200) ** 0.5
    assert float(share.var()) == pytest.approx(variance, rel=0.35)


def test_splits_repeat_with_their_seed_only() -> None:
    labels = torch.arange(300) % 10
    first, again, other = (dirichlet_split(labels, 6, alpha=1.0, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.index, again.index) and torch.equal(first.lengths, again.lengths)
    assert not torch.equal(first.lengths, other.lengths)


def test_iid_sizes_differ_by_at_most_one() -> None:
    data = iid_split(torch.zeros(103, dtype=torch.int64), 10, seed=0)
    assert sorted(data.lengths.tolist()) == [10] * 7 + [11] * 3
    assert data.images().tolist() == list(range(103))


def test_what_cannot_be_split_is_refused_with_alpha_and_the_number_of_nodes() -> None:
    labels = torch.zeros(400, dtype=torch.int64)
    with pytest.raises(DbadflError, match=r"alpha=0.01.*N=20"):
        dirichlet_split(labels, 20, alpha=0.01, seed=0)
    with pytest.raises(DbadflError, match="need 408 images; there are 400"):
        dirichlet_split(labels, 51, alpha=1.0, seed=0)
    with pytest.raises(DbadflError, match="alpha=0"):
        dirichlet_split(labels, 2, alpha=0.0, seed=0)
    with pytest.raises(DbadflError, match="'natural' is unknown"):
        split(labels, 2, kind="natural", seed=0)


# ---- batches -----------------------------------------------------------------------------------------------------
def uneven() -> NodeData:
    return NodeData.of(torch.tensor([0, 1, 1, 2, 2, 2, 2, 2]), 3)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    data = uneven()
    straight = [draw_batch(data, 4, 7, t) for t in range(10)]
    resumed = [draw_batch(data, 4, 7, t) for t in (9, 3)]
    assert torch.equal(straight[9], resumed[0]) and torch.equal(straight[3], resumed[1])
    assert len({tuple(b.flatten().tolist()) for b in straight}) == 10
    assert not torch.equal(straight[0], draw_batch(data, 4, 8, 0))


def test_nodes_draw_only_their_own_images_and_all_of_them_equally() -> None:
    drawn = draw_batch(uneven(), 20_000, 0, 0)
    assert [sorted(set(row)) for row in drawn.tolist()] == [[0], [1, 2], [3, 4, 5, 6, 7]]
    counts = torch.bincount(drawn[2] - 3).double()
    # Chi-square with 4 degrees of freedom: 18.5 is exceeded once in a thousand.
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 18.5


def test_streams_of_one_seed_differ() -> None:
    seeds = {derive(s, name, k) for s in range(20) for name in ("batch", "poison") for k in range(50)}
    assert len(seeds) == 2000
    assert len({s & 0xFFFFFFFF for s in seeds}) == 2000


def test_federations_are_joined_node_after_node() -> None:
    both = join([uneven(), NodeData.of(torch.zeros(7, dtype=torch.int64), 1)])
    assert both.lengths.tolist() == [1, 2, 5, 7]
    assert both.index[3].tolist() == list(range(7)) and both.index[1, :2].tolist() == [1, 2]


def test_probes_are_own_images_once_each_and_can_be_held_out() -> None:
    data = dirichlet_split(torch.arange(600) % 10, 6, alpha=0.5, seed=0)
    nodes = torch.tensor([4, 1])
    probes, left = split_probes(data, nodes, seed=3, limit=24)
    assert left is data
    for row, node in enumerate(nodes.tolist()):
        mine = set(data.index[node, : data.lengths[node]].tolist())
        chosen = probes.index[row, : probes.lengths[row]].tolist()
        assert len(set(chosen)) == len(chosen) == min(24, len(mine)) and set(chosen) <= mine
    probes, left = split_probes(data, nodes, seed=3, hold_out=True)
    held = probes.index[probes.valid].tolist()
    rest = left.index[left.valid].tolist()
    assert sorted(held + rest) == list(range(600))


def test_empty_nodes_and_wrong_owners_are_refused() -> None:
    with pytest.raises(DbadflError, match="without images"):
        NodeData.of(torch.tensor([0, 2]), 3)
    with pytest.raises(DbadflError, match=r"0\.\.1"):
        NodeData.of(torch.tensor([0, 2]), 2)
    with pytest.raises(DbadflError, match="hold_out"):
        split_probes(uneven(), torch.tensor([0]), seed=0, hold_out=True)


# ---- placement ---------------------------------------------------------------------------------------------------
def of_networkx(graph: nx.Graph) -> Topology:
    return from_edges(torch.tensor(list(graph.edges)), len(graph))


def test_on_a_ring_each_placement_is_what_its_name_says() -> None:
    graph = ring(32)
    hops = graph.hops()

    def between(kind: str) -> torch.Tensor:
        chosen = place_attackers(graph, 8, kind, seed=3)
        assert len(chosen.unique()) == 8
        return hops[chosen][:, chosen]

    assert int(between("adjacent").max()) == 7  # eight in a row
    near = between("two-groups")
    assert int(near[:4, :4].max()) == 3 and int(near[4:, 4:].max()) == 3 and int(near[:4, 4:].min()) >= 12
    spread = between("spread") + torch.eye(8, dtype=torch.int64) * 99
    assert int(spread.min()) >= 2 and spread.min(1).values.double().mean() >= 3


def test_structural_placements_take_the_highest_scores() -> None:
    graph = nx.barabasi_albert_graph(40, 2, seed=2)
    for kind, scores in (
        ("degree", dict(graph.degree)),
        ("betweenness", nx.betweenness_centrality(graph)),
        ("pagerank", nx.pagerank(graph)),
    ):
        chosen = place_attackers(of_networkx(graph), 5, kind, seed=0).tolist()
        rest = max(scores[n] for n in range(40) if n not in chosen)
        assert min(scores[n] for n in chosen) >= rest - 1e-9


def test_ties_are_broken_by_the_seed() -> None:
    drawn = {tuple(place_attackers(ring(12), 3, "degree", seed=s).tolist()) for s in range(8)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "attackers=0 is outside 1..11"),
        ({"count": 12}, "attackers=12 is outside 1..11"),
        ({"count": 2, "kind": "list", "positions": (3, 12)}, r"position 12 is outside 0\.\.11"),
        ({"count": 2, "kind": "list", "positions": (3, 3)}, "position 3 is listed twice"),
        ({"count": 3, "kind": "list", "positions": (3, 4)}, "2 positions for attackers=3"),
        ({"count": 2, "positions": (3, 4)}, "use placement='list'"),
        ({"count": 2, "kind": "center"}, "'center' is unknown"),
    ],
)
def test_impossible_placements_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        place_attackers(ring(12), seed=0, **options)


def test_a_list_of_positions_keeps_its_order() -> None:
    chosen = place_attackers(ring(9), 3, "list", seed=0, positions=(8, 0, 4))
    assert chosen.tolist() == [8, 0, 4]
