"""Graphs small enough to check by hand, and Zachary's karate club with its split (data source ``karate``)."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.data import Data
from plait_glt.data import node_data, split_by_class
from plait_glt.data_options import KarateLinksOptions, KarateOptions
from plait_glt.graphs import Graph, clean_edges, make_graph
from plait_glt.link_data import divided

OFFICER = (9, 14, 15, 18, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
"""Members who went with the officer when the club broke up (Zachary 1977); the others stayed with Mr. Hi."""


def path_edges(n: int = 6) -> Tensor:
    """The path 0-1-...-(n-1) as int64 [2, 2(n-1)]."""
    steps = torch.arange(n - 1)
    return clean_edges(torch.stack([steps, steps + 1]), n)


def two_triangles_edges() -> Tensor:
    """Triangles 0-1-2 and 3-4-5 joined by the edge 2-3, int64 [2, 14]."""
    return clean_edges(torch.tensor([[0, 0, 1, 3, 3, 4, 2], [1, 2, 2, 4, 5, 5, 3]]), 6)


def path_graph(n: int = 6) -> Graph:
    """The path with one-hot features; the first half is class 0, the second class 1."""
    return make_graph(torch.eye(n), path_edges(n), (torch.arange(n) >= n // 2).long())


def two_triangles() -> Graph:
    """The two triangles with one-hot features; each triangle is a class."""
    return make_graph(torch.eye(6), two_triangles_edges(), torch.tensor([0, 0, 0, 1, 1, 1]))


def karate_graph(classes: int = 4) -> Graph:
    """Zachary's karate club: 34 people, 78 friendships, one-hot features.

    Args:
        classes: 2, the sides of the break-up, or 4, the modularity clusters that GNN papers use.
    """
    from torch_geometric.datasets import KarateClub

    club = KarateClub()[0]
    label = club.y if classes == 4 else torch.zeros(34, dtype=torch.int64).index_fill_(0, torch.tensor(OFFICER), 1)
    return make_graph(club.x, club.edge_index, label)


def load(options: KarateOptions, seed: int) -> Data:
    """The karate club; the labelled nodes per class, and the halves of the rest, are drawn by ``seed``."""
    graph = karate_graph(options.classes)
    rest = 34 - options.classes * options.labels_per_class
    parts = split_by_class(graph.y, options.labels_per_class, rest // 2, rest - rest // 2, seed)
    return node_data("karate", graph, *parts, num_classes=options.classes)


def load_links(options: KarateLinksOptions, seed: int) -> Data:
    """The karate club for link prediction.

    Raises:
        BadInput: shares that cannot be held out.
    """
    return divided("karate-links", karate_graph(), options, seed)
