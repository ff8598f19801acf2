"""``cora-like``: a generated citation graph, a degree-corrected contextual stochastic block model.

All numbers are the card's (Data) [measured there]: with them a GNN needs the graph, and an MLP is far behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from plait.data import Data
from plait_glt.data import node_data, split_by_class
from plait_glt.data_options import CoraLikeLinksOptions, CoraLikeOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph, make_graph, normalise_rows, store_features
from plait_glt.link_data import divided

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CoraLike:
    """Parameters of the generator.

    Attributes:
        class_sizes: nodes per class.
        edges: undirected edges, exactly.
        exponent: of the density of the node propensities, ``p(k) ~ k^-exponent``.
        largest: cap of the propensity, in units of the smallest.
        homophily: probability that an edge which an ordinary node starts stays in its class.
        hard_share: share of the nodes with ``hard_homophily`` instead.
        hard_homophily: theirs.
        words: size of the vocabulary.
        words_per_node: mean of the Poisson number of words.
        topic_share: probability that a word comes from the class topic.
        topic_concentration, background_concentration: of the Dirichlet distributions of topics and background.
    """

    class_sizes: tuple[int, ...] = (351, 217, 418, 818, 426, 298, 180)
    edges: int = 5278
    exponent: float = 2.6
    largest: float = 168.0
    homophily: float = 0.97
    hard_share: float = 0.35
    hard_homophily: float = 0.3
    words: int = 1433
    words_per_node: float = 18.0
    topic_share: float = 0.26
    topic_concentration: float = 0.05
    background_concentration: float = 0.3


def load(options: CoraLikeOptions, seed: int) -> Data:
    """The generated graph; 20 labels per class, 500 validation and 1,000 test nodes, all from one seed."""
    graph_seed, graph = _generated(options, seed)
    parts = split_by_class(graph.y, 20, 500, 1000, graph_seed)
    return node_data("cora-like", graph, *parts, num_classes=len(CoraLike().class_sizes))


def load_links(options: CoraLikeLinksOptions, seed: int) -> Data:
    """The generated graph for link prediction.

    Raises:
        BadInput: shares that cannot be held out.
    """
    return divided("cora-like-links", _generated(options, seed)[1], options, seed)


def _generated(options: CoraLikeOptions, seed: int) -> tuple[int, Graph]:
    graph_seed = seed if options.graph_seed is None else options.graph_seed
    graph = generate(graph_seed, CoraLike(hard_share=options.hard_share, topic_share=options.topic_share))
    if options.normalise_features:
        graph.x = normalise_rows(graph.x)
    graph.x = store_features(graph.x, options.sparse_features)
    return graph_seed, graph


def generate(seed: int, parameters: CoraLike | None = None) -> Graph:
    """A graph with ``x`` binary float32 [n, words], ``edge_index`` and ``y`` int64 [n], the same for the same seed.

    Raises:
        GLTError: parameters that no graph can have.
    """
    p = parameters or CoraLike()
    n, classes = sum(p.class_sizes), len(p.class_sizes)
    if classes < 2 or min(p.class_sizes) < 2:
        raise GLTError(f"class_sizes must be at least two numbers of at least 2, got {p.class_sizes}.")
    if not n <= p.edges <= n * (n - 1) // 8:
        raise GLTError(f"edges must be in {n}..{n * (n - 1) // 8} for {n} nodes, got {p.edges}.")
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(classes), p.class_sizes))
    edges = _draw_edges(label, p, rng)
    x = _draw_words(label, p, rng)
    return make_graph(torch.from_numpy(x), torch.from_numpy(edges), torch.from_numpy(label))


class _Partners:
    """Draws the other end of edges: a node of one class, or of any other class, by propensity."""

    def __init__(self, label: Ints, propensity: Floats) -> None:
        self.order = np.argsort(label, kind="stable")
        self.sizes = np.bincount(label)
        self.ends = np.cumsum(self.sizes)
        self.total = np.cumsum(propensity[self.order])
        self.high = self.total[self.ends - 1]
        self.low = np.concatenate([[0.0], self.high[:-1]])

    def draw(self, own: Ints, stay: npt.NDArray[np.bool_], rng: np.random.Generator) -> Ints:
        """One node for each entry of ``own`` (a class): of that class where ``stay``, else of another one."""
        low, high = self.low[own], self.high[own]
        u = rng.random(len(own))
        inside = low + u * (high - low)
        outside = u * (self.total[-1] - (high - low))
        outside = outside + np.where(outside >= low, high - low, 0.0)
        place = np.searchsorted(self.total, np.where(stay, inside, outside), side="right")
        first, last = self.ends[own] - self.sizes[own], self.ends[own] - 1
        # rounding at a class border must not move a node that stays to the next class
        place = np.where(stay, np.clip(place, first, last), np.minimum(place, len(self.order) - 1))
        partners: Ints = self.order[place]
        return partners


def _draw_edges(label: Ints, p: CoraLike, rng: np.random.Generator) -> Ints:
    n = len(label)
    propensity = np.minimum((1 - rng.random(n)) ** (-1 / (p.exponent - 1)), p.largest)
    homophily = np.where(rng.random(n) < p.hard_share, p.hard_homophily, p.homophily)
    partners = _Partners(label, propensity)
    by_propensity = np.cumsum(propensity)

    def started_by(nodes: Ints) -> Ints:
        """Keys ``low * n + high`` of one edge per node; a node that drew itself gives none."""
        other = partners.draw(label[nodes], rng.random(len(nodes)) < homophily[nodes], rng)
        keys: Ints = np.minimum(nodes, other) * n + np.maximum(nodes, other)
        different: Ints = keys[nodes != other]
        return different

    keys = started_by(np.arange(n))
    # a node without an edge starts one until it has one
    while len(lonely := np.setdiff1d(np.arange(n), np.concatenate([keys // n, keys % n]))):
        keys = np.concatenate([keys, started_by(lonely)])
    for _ in range(1000):
        first = np.unique(keys, return_index=True)[1]
        keys = keys[np.sort(first)]
        if len(keys) >= p.edges:
            chosen = keys[: p.edges]
            edges: Ints = np.stack([chosen // n, chosen % n])
            return edges
        drawn = np.searchsorted(by_propensity, rng.random(p.edges) * by_propensity[-1], side="right")
        keys = np.concatenate([keys, started_by(np.minimum(drawn, n - 1))])
    raise GLTError(f"{p.edges} different edges could not be drawn; lower edges or the spread of the propensities.")


def _draw_words(label: Ints, p: CoraLike, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    n, classes = len(label), len(p.class_sizes)
    topics = rng.dirichlet(np.full(p.words, p.topic_concentration), classes)
    background = rng.dirichlet(np.full(p.words, p.background_concentration))
    node = np.repeat(np.arange(n), rng.poisson(p.words_per_node, n))
    from_topic = rng.random(len(node)) < p.topic_share
    source = np.where(from_topic, label[node], classes)
    # one inverse-distribution table for all sources: source s owns the interval [s, s + 1)
    table = np.cumsum(np.concatenate([topics, background[None]]), axis=1)
    table = (table / table[:, -1:] + np.arange(classes + 1)[:, None]).reshape(-1)
    place = np.searchsorted(table, source + rng.random(len(node)), side="right")
    word = np.clip(place - source * p.words, 0, p.words - 1)
    x = np.zeros((n, p.words), np.float32)
    x[node, word] = 1
    return x
