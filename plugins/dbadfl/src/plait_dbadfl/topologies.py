"""Who can talk to whom: graphs by networkx or from a file, and their hop distances. Card section 2."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import TOPOLOGIES

__all__ = ["Topology", "make_topology", "read_edges"]

REDRAWS = 1000
SOURCES_AT_ONCE = 1000
"""Rows of the distance matrix held at a time when only its summary is wanted."""


@dataclass(frozen=True, eq=False)
class Topology:
    """A connected graph of participants.

    Args:
        name: its family.
        n: number of nodes N; nodes are 0..N-1.
        edge_index: int64 [2, E], sender and receiver of every directed entry; an undirected edge stands twice. No
            self-loops, no duplicates; sorted by receiver, then sender.
        directed: whether an edge may stand only once.

    Raises:
        DbadflError: nodes out of range, self-loops, or a graph that is not (strongly) connected.
    """

    name: str
    n: int
    edge_index: Tensor
    directed: bool = False

    def __post_init__(self) -> None:
        if self.n < 2:
            raise DbadflError(f"topology {self.name!r}: n={self.n}; a federation needs at least two nodes")
        edges = self.edge_index
        if edges.ndim != 2 or len(edges) != 2:
            raise DbadflError(f"topology {self.name!r}: edge_index has shape {tuple(edges.shape)}, expected [2, E]")
        if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= self.n):
            raise DbadflError(f"topology {self.name!r}: an edge names a node outside 0..{self.n - 1}")
        loops = edges[0][edges[0] == edges[1]]
        if len(loops):
            raise DbadflError(f"topology {self.name!r}: node {int(loops[0])} has an edge to itself; leave it out")
        parts, label = csgraph.connected_components(self.adjacency, directed=True, connection="strong")
        if parts > 1:
            lost = int(np.flatnonzero(label != label[0])[0])
            raise DbadflError(
                f"topology {self.name!r} is disconnected: {parts} parts, node {lost} is not in the part of node 0; "
                "add edges or choose another seed"
            )

    @cached_property
    def adjacency(self) -> Any:
        """``scipy.sparse`` CSR [N, N] of ones; entry (sender, receiver)."""
        sender, receiver = self.edge_index.numpy()
        return sparse.csr_array((np.ones(len(sender), dtype=np.int8), (sender, receiver)), shape=(self.n, self.n))

    @cached_property
    def degrees(self) -> Tensor:
        """|N_i| = number of nodes that i receives from, int64 [N]."""
        return torch.bincount(self.edge_index[1], minlength=self.n)

    def neighbours(self, i: int) -> Tensor:
        """The nodes that i receives from, ascending."""
        return self.edge_index[0][self.edge_index[1] == i]

    def hops(self, sources: Sequence[int] | Tensor | None = None) -> Tensor:
        """Hop distances int64 [S, N] from every source (default: all nodes, [N, N])."""
        indices = None if sources is None else [int(s) for s in sources]
        distances = csgraph.shortest_path(self.adjacency, method="D", unweighted=True, indices=indices)
        return torch.from_numpy(distances.astype(np.int64)).reshape(-1, self.n)

    def hops_to(self, targets: Sequence[int] | Tensor) -> Tensor:
        """Hops from the nearest of ``targets`` to every node, int64 [N]: how far a model of theirs must travel.

        Raises:
            DbadflError: no targets, or one that is no node.
        """
        indices = sorted({int(t) for t in targets})
        if not indices or indices[0] < 0 or indices[-1] >= self.n:
            raise DbadflError(f"hops_to: targets {indices} are not a non-empty set of nodes 0..{self.n - 1}")
        distances = csgraph.dijkstra(self.adjacency, unweighted=True, indices=indices, min_only=True)
        return torch.from_numpy(distances.astype(np.int64))

    @cached_property
    def _hop_summary(self) -> tuple[int, float]:
        largest, total = 0, 0
        for start in range(0, self.n, SOURCES_AT_ONCE):
            block = self.hops(range(start, min(self.n, start + SOURCES_AT_ONCE)))
            largest, total = max(largest, int(block.max())), total + int(block.sum())
        return largest, total / (self.n * (self.n - 1))

    @property
    def diameter(self) -> int:
        """The largest hop distance."""
        return self._hop_summary[0]

    @property
    def mean_hops(self) -> float:
        """Mean hop distance over ordered pairs of different nodes."""
        return self._hop_summary[1]

    def statistics(self) -> dict[str, Any]:
        """What a report says of the graph: nodes, edges, degrees, diameter and mean hop distance."""
        degrees = self.degrees
        return {
            "name": self.name,
            "nodes": self.n,
            "edges": self.edge_index.shape[1] // (1 if self.directed else 2),
            "directed": self.directed,
            "degree_min": int(degrees.min()),
            "degree_mean": float(degrees.double().mean()),
            "degree_max": int(degrees.max()),
            "diameter": self.diameter,
            "mean_hops": self.mean_hops,
        }

    def to_networkx(self) -> Any:
        """A ``networkx`` graph, for pictures and structural scores."""
        graph = nx.DiGraph() if self.directed else nx.Graph()
        graph.add_nodes_from(range(self.n))
        graph.add_edges_from(self.edge_index.T.tolist())
        return graph


def from_edges(edges: Tensor, n: int, *, name: str = "edges", directed: bool = False) -> Topology:
    """A topology of edges int64 [E, 2]; duplicates count once. See `Topology` for errors."""
    pairs = edges.reshape(-1, 2).long()
    if not directed:
        pairs = torch.cat([pairs, pairs.flip(1)])
    if len(pairs):
        pairs = torch.unique(pairs.flip(1), dim=0).flip(1)
    return Topology(name, n, pairs.T.contiguous(), directed)


def ring(n: int) -> Topology:
    """Every node with two neighbours; N >= 3."""
    _at_least("ring", n, 3)
    return _from_networkx("ring", nx.cycle_graph(n))


def torus(n: int) -> Topology:
    """A 2-D grid that wraps around, as square as N allows; both sides are at least 3."""
    _at_least("torus", n, 9)
    rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    if rows < 3:
        raise DbadflError(
            f"topology 'torus': n={n} is no product of two sides of at least 3; try 9, 12, 16, 20, 32, 100"
        )
    return _from_networkx("torus", nx.grid_2d_graph(rows, n // rows, periodic=True))


def watts_strogatz(n: int, seed: int = 0, *, k: int = 4, p: float = 0.2) -> Topology:
    """A ring of ``k`` nearest neighbours whose edges are rewired with probability ``p``, redrawn until connected."""
    if not 2 <= k < n:
        raise DbadflError(f"topology 'watts-strogatz': n={n} must exceed k={k}, and k must be at least 2")
    _probability("watts-strogatz", p)
    try:
        graph = nx.connected_watts_strogatz_graph(n, k, p, tries=REDRAWS, seed=seed)
    except nx.NetworkXError as error:
        raise DbadflError(f"topology 'watts-strogatz': no connected graph in {REDRAWS} draws; raise k={k}") from error
    return _from_networkx("watts-strogatz", graph)


def erdos_renyi(n: int, seed: int = 0, *, p: float | None = None) -> Topology:
    """Every edge with probability ``p`` (default 1.2 ln N / N), redrawn until connected."""
    _at_least("erdos-renyi", n, 2)
    chance = min(1.0, 1.2 * math.log(n) / n) if p is None else p
    _probability("erdos-renyi", chance)
    for attempt in range(REDRAWS):
        graph = nx.fast_gnp_random_graph(n, chance, seed=np.random.RandomState([seed % 2**32, attempt]))
        if nx.is_connected(graph):
            return _from_networkx("erdos-renyi", graph)
    raise DbadflError(
        f"topology 'erdos-renyi': no connected graph in {REDRAWS} draws of n={n}, p={chance:.4g}; raise p"
    )


def exponential(n: int) -> Topology:
    """Directed: i sends to i + 2^k mod N for k < ceil(log2 N)."""
    _at_least("exponential", n, 2)
    steps = 2 ** torch.arange(math.ceil(math.log2(n)))
    sender = torch.arange(n).repeat_interleave(len(steps))
    receiver = (sender + steps.repeat(n)) % n
    return from_edges(torch.stack([sender, receiver], 1), n, name="exponential", directed=True)


def star(n: int) -> Topology:
    """Node 0 in the middle."""
    _at_least("star", n, 3)
    return _from_networkx("star", nx.star_graph(n - 1))


def complete(n: int) -> Topology:
    """Everybody with everybody."""
    _at_least("complete", n, 2)
    pairs = torch.combinations(torch.arange(n))
    return from_edges(pairs, n, name="complete")


def read_edges(path: str | Path, n: int | None = None, *, directed: bool = False) -> Topology:
    """An edge list: CSV lines ``u,v`` of node numbers from 0, with or without the header ``u,v``.

    Args:
        path: the file.
        n: number of nodes N; default: the largest number plus one.
        directed: ``u,v`` means that u sends to v.

    Raises:
        DbadflError: no such file, a line that is not two node numbers, a self-loop, a node outside 0..N-1 (each with
            the line), or a disconnected graph.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DbadflError(f"topology file {file}: cannot be read ({error}); expected CSV lines 'u,v'") from error
    edges: list[tuple[int, int]] = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells == ["u", "v"]):
            continue
        if len(cells) != 2 or not all(cell.isdecimal() for cell in cells):
            raise DbadflError(f"topology file {file}, line {number}: {','.join(row)!r} is not two node numbers 'u,v'")
        u, v = int(cells[0]), int(cells[1])
        if u == v:
            raise DbadflError(f"topology file {file}, line {number}: node {u} has an edge to itself; leave it out")
        if n is not None and max(u, v) >= n:
            raise DbadflError(f"topology file {file}, line {number}: unknown node {max(u, v)}; nodes are 0..{n - 1}")
        edges.append((u, v))
    if not edges:
        raise DbadflError(f"topology file {file} has no edges; expected CSV lines 'u,v'")
    size = n if n is not None else 1 + max(max(edge) for edge in edges)
    return from_edges(torch.tensor(edges), size, name=f"file {file.name}", directed=directed)


def make_topology(
    name: str, n: int, *, seed: int = 0, k: int = 4, p: float | None = None, path: str | Path | None = None
) -> Topology:
    """The topology of that name.

    Args:
        name: one of `TOPOLOGIES`.
        n: number of nodes N.
        seed: of random graphs; the same seed gives the same graph.
        k: Watts-Strogatz: neighbours before rewiring.
        p: Watts-Strogatz: rewiring probability (default 0.2); Erdos-Renyi: edge probability (default 1.2 ln N / N).
        path: ``file``: the edge list.

    Raises:
        DbadflError: an unknown name, an N that the family does not have, or what `Topology` refuses.
    """
    if name == "file":
        if path is None:
            raise DbadflError("topology 'file' needs the path of a CSV edge list 'u,v'")
        return read_edges(path, n)
    makers: dict[str, Callable[[], Topology]] = {
        "ring": lambda: ring(n),
        "torus": lambda: torus(n),
        "watts-strogatz": lambda: watts_strogatz(n, seed, k=k, p=0.2 if p is None else p),
        "erdos-renyi": lambda: erdos_renyi(n, seed, p=p),
        "exponential": lambda: exponential(n),
        "star": lambda: star(n),
        "complete": lambda: complete(n),
    }
    if name not in makers:
        raise DbadflError(f"topology {name!r} is not one of {', '.join(TOPOLOGIES)}")
    return makers[name]()


def _from_networkx(name: str, graph: Any) -> Topology:
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    edges = torch.tensor([(numbers[u], numbers[v]) for u, v in graph.edges], dtype=torch.int64)
    return from_edges(edges, len(numbers), name=name)


def _at_least(name: str, n: int, least: int) -> None:
    if n < least:
        raise DbadflError(f"topology {name!r}: n={n} is too small; it needs at least {least} nodes")


def _probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise DbadflError(f"topology {name!r}: p={p} is not a probability")
