"""Interactions of pairs that may run at the same time without changing what one after the other would give."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def waves(
    first: Tensor, second: Tensor, n: int, effect: Literal["both", "second"] = "both"
) -> list[tuple[Tensor, Tensor]]:
    """Split a sequence of interactions into waves; in a wave no two interactions disturb each other.

    Run wave by wave, the outcome is that of the sequence in its order. The loop is over waves, about log N of them.

    Args:
        first, second: int64 [m], the two nodes of every interaction, in order.
        n: number of nodes.
        effect: ``both`` nodes change (swarm), or the ``second`` changes and the first is only read (push gossip).

    Returns:
        (first, second) of every wave.
    """
    disjoint = []
    left = torch.arange(len(first))
    while len(left):
        a, b = first[left], second[left]
        if effect == "both":
            touched = _earliest(torch.cat([a, b]), left.repeat(2), n)
            ready = (touched[a] == left) & (touched[b] == left)
        else:
            written, read = _earliest(b, left, n), _earliest(a, left, n)
            ready = (written[a] > left) & (written[b] == left) & (read[b] > left)
        disjoint.append((a[ready], b[ready]))
        left = left[~ready]
    return disjoint


def random_matching(edges: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A maximal matching of undirected edges int64 [2, E]: the greedy one over a random order; [2, m], m <= N/2."""
    order = torch.randperm(edges.shape[1], generator=generator)
    left, taken = edges[:, order], []
    while left.shape[1]:
        rank = torch.arange(left.shape[1])
        touched = _earliest(left.flatten(), rank.repeat(2), n)
        ready = (touched[left] == rank).all(0)
        taken.append(left[:, ready])
        busy = torch.zeros(n, dtype=torch.bool)
        busy[taken[-1].flatten()] = True
        left = left[:, ~busy[left].any(0)]
    return torch.cat(taken, dim=1)


def _earliest(nodes: Tensor, order: Tensor, n: int) -> Tensor:
    late = torch.full((n,), torch.iinfo(torch.int64).max)
    return late.scatter_reduce_(0, nodes, order, "amin")
