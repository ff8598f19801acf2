"""Where the attackers sit in the graph. Card, "Metrics" (placement sensitivity) and "Baselines"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import PLACEMENTS
from plait_dbadfl.sampling import generator
from plait_dbadfl.topologies import Topology

__all__ = ["place_attackers"]

STRUCTURAL = ("degree", "betweenness", "pagerank")


def place_attackers(
    topology: Topology, count: int, kind: str = "random", *, seed: int, positions: Sequence[int] = ()
) -> Tensor:
    """Choose the attackers' nodes.

    Args:
        topology: the graph of N nodes.
        count: M, in 1..N-1.
        kind: ``"random"`` (default); ``"adjacent"``: a random node and those nearest to it; ``"two-groups"``: the same
            around two nodes as far apart as possible; ``"spread"``: a random node, then greedily the one farthest from
            those chosen; ``"degree"``, ``"betweenness"``, ``"pagerank"``: the highest scores (Yar et al.,
            arXiv 2301.09732); ``"list"``: ``positions``. Ties are broken at random.
        seed: of the choice.
        positions: for ``"list"``, M nodes.

    Returns:
        int64 [M], in the order chosen.

    Raises:
        DbadflError: unknown kind, M < 1 or M >= N, a position out of range or listed twice.
    """
    nodes = topology.n
    if kind not in PLACEMENTS:
        raise DbadflError(f"placement={kind!r} is unknown; choose one of {', '.join(PLACEMENTS)}")
    if kind == "list":
        return _checked_list(positions, nodes, count)
    if positions:
        raise DbadflError(f"positions are given, but placement={kind!r}; use placement='list'")
    _check_count(count, nodes)
    # A random renumbering breaks all ties: of equal scores the first in this order wins.
    order = torch.randperm(nodes, generator=generator(seed, "placement"))
    if kind == "random":
        return order[:count]
    if kind in STRUCTURAL:
        scores = _structural_scores(topology, kind)[order]
        return order[scores.argsort(descending=True, stable=True)[:count]]
    if kind == "spread":
        return _spread(topology, count, order)
    hops = topology.hops(order[:1])[0]
    if kind == "adjacent":
        return _nearest(hops, order, count)
    other = _nearest(-hops, order, 1)
    first = _nearest(hops, order, (count + 1) // 2)
    rest = topology.hops(other)[0]
    taken = torch.zeros(nodes, dtype=torch.bool)
    taken[first] = True
    return torch.cat([first, _nearest(rest.masked_fill(taken, nodes), order, count // 2)])


def _check_count(count: int, nodes: int) -> None:
    if not 1 <= count < nodes:
        raise DbadflError(
            f"attackers={count} is outside 1..{nodes - 1}: with N={nodes} nodes at least one must stay benign"
        )


def _checked_list(positions: Sequence[int], nodes: int, count: int) -> Tensor:
    outside = [p for p in positions if not 0 <= p < nodes]
    if outside:
        raise DbadflError(f"attacker position {outside[0]} is outside 0..{nodes - 1}")
    if len(set(positions)) != len(positions):
        twice = next(p for k, p in enumerate(positions) if p in positions[:k])
        raise DbadflError(f"attacker position {twice} is listed twice")
    if len(positions) != count:
        raise DbadflError(f"placement='list' has {len(positions)} positions for attackers={count}")
    _check_count(count, nodes)
    return torch.tensor(list(positions), dtype=torch.int64)


def _nearest(hops: Tensor, order: Tensor, count: int) -> Tensor:
    return order[hops[order].argsort(stable=True)[:count]]


def _spread(topology: Topology, count: int, order: Tensor) -> Tensor:
    chosen = [order[0]]
    nearest = torch.full((topology.n,), topology.n)
    while len(chosen) < count:  # each choice depends on those before
        nearest = torch.minimum(nearest, topology.hops(torch.stack(chosen[-1:]))[0])
        chosen.append(_nearest(-nearest, order, 1)[0])
    return torch.stack(chosen)


def _structural_scores(topology: Topology, kind: str) -> Tensor:
    import networkx as nx

    if kind == "degree":
        return topology.degrees
    graph = topology.to_networkx()
    scores = nx.betweenness_centrality(graph) if kind == "betweenness" else nx.pagerank(graph)
    # Rounded, because equal nodes differ in the last bits.
    return torch.tensor([scores[node] for node in range(topology.n)], dtype=torch.float64).round(decimals=10)
