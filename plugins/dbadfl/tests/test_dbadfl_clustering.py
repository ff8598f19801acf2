"""Grouping attackers by distance, and comparing groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from plait_dbadfl.clustering import adjusted_rand, cluster_attackers, random_clusters, renumber
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.topologies import ring

calm = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def line(*places: float) -> Tensor:
    x = torch.tensor(places)
    return (x[:, None] - x[None]).abs()


@calm
@given(st.lists(st.floats(0, 40), min_size=2, max_size=9), st.floats(0.25, 12))
def test_labels_agree_with_scipys_complete_linkage(places: list[float], tau: float) -> None:
    distances = line(*places).clamp(min=1.0).fill_diagonal_(0)
    labels = cluster_attackers(distances, tau=tau)
    tree = linkage(squareform(distances.double().numpy(), checks=False), method="complete")
    heights = torch.from_numpy(tree[:, 2])
    if len(heights.unique()) < len(heights) or bool((heights - tau - 0.5).abs().lt(1e-6).any()):
        # Equal heights leave the tree to the implementation; what must hold then is the diameter.
        for name in labels.unique():
            assert float(distances[labels == name][:, labels == name].max()) <= tau + 0.5 + 1e-6
        return
    want = torch.from_numpy(fcluster(tree, tau + 0.5, criterion="distance"))
    assert torch.equal(labels, renumber(want))


def test_two_far_groups_on_a_ring_are_found() -> None:
    chosen = torch.tensor([0, 17, 1, 18, 2, 16])
    distances = ring(32).hops(chosen)[:, chosen].float()
    assert cluster_attackers(distances, tau=3).tolist() == [0, 1, 0, 1, 0, 1]
    assert cluster_attackers(distances, n_clusters=2).tolist() == [0, 1, 0, 1, 0, 1]


def test_the_threshold_counts_hops_inclusively() -> None:
    assert cluster_attackers(line(0, 3), tau=3).tolist() == [0, 0]
    assert cluster_attackers(line(0, 3.5), tau=3).tolist() == [0, 0]
    assert cluster_attackers(line(0, 3.6), tau=3).tolist() == [0, 1]


def test_no_threshold_gives_singletons_and_infinity_one_cluster() -> None:
    distances = line(0, 1, 5, 30)
    assert cluster_attackers(distances, tau=0).tolist() == [0, 1, 2, 3]
    assert cluster_attackers(distances, tau=math.inf).tolist() == [0, 0, 0, 0]
    assert cluster_attackers(line(0, 0.01), tau=0).tolist() == [0, 1]
    assert cluster_attackers(distances, n_clusters=4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("distances", "options", "message"),
    [
        (line(0, 1), {"tau": -1.0}, "tau=-1.0"),
        (line(0, 1), {"tau": math.nan}, "tau=nan"),
        (line(0, 1), {"n_clusters": 3}, r"n_clusters=3 is outside 1\.\.2"),
        (line(0), {}, "centralized-one"),
        (torch.zeros(2, 3), {}, r"\[M, M\]; got \(2, 3\)"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), {}, "symmetric"),
        (torch.tensor([[0.0, math.inf], [math.inf, 0.0]]), {}, "finite"),
    ],
)
def test_impossible_clusterings_are_refused(distances: Tensor, options: dict, message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        cluster_attackers(distances, **options)


@calm
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_random_clusters_keep_the_sizes(labels: list[int], seed: int) -> None:
    drawn = random_clusters(torch.tensor(labels), seed=seed)
    sizes = sorted(torch.tensor(labels).unique(return_counts=True)[1].tolist())
    assert sorted(drawn.unique(return_counts=True)[1].tolist()) == sizes
    assert torch.equal(drawn, random_clusters(torch.tensor(labels), seed=seed))


def test_random_clusters_depend_on_the_seed() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert len({tuple(random_clusters(labels, seed=s).tolist()) for s in range(10)}) > 1


def test_the_rand_index_is_adjusted_and_guarded() -> None:
    assert adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2])) == 1.0
    assert adjusted_rand(torch.arange(4), torch.tensor([3, 2, 1, 0])) == 1.0
    assert adjusted_rand(torch.zeros(4), torch.ones(4)) == 1.0
    assert adjusted_rand(torch.arange(4), torch.zeros(4)) == 0.0
    # Hand-computed: 1 pair agrees, of 2 and 2 pairs; expectation 4/6, largest 2.
    assert adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])) == pytest.approx((1 - 1) / (2.5 - 1))
    with pytest.raises(DbadflError, match="3 and 2 attackers"):
        adjusted_rand(torch.arange(3), torch.arange(2))


def test_labels_are_numbered_by_first_appearance() -> None:
    assert renumber(torch.tensor([7, 7, 3, 9, 3])).tolist() == [0, 0, 1, 2, 1]
