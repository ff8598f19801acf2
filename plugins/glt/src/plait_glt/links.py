"""Pairs of nodes as examples: division of the edges, negatives, and the score of a pair. Card, "Metrics" and "Data".

A graph of n nodes has n (n - 1) / 2 pairs. Each has a number, so that pairs without an edge can be counted off and
drawn exactly, without trying and without a dense matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.graphs import clean_edges


def pair_numbers(pairs: Tensor) -> Tensor:
    """The number of each pair, in either direction: ``high (high - 1) / 2 + low``; int64 [2, P] -> [P]."""
    low, high = pairs.amin(0), pairs.amax(0)
    return high * (high - 1) // 2 + low


def numbered_pairs(numbers: Tensor) -> Tensor:
    """The inverse of `pair_numbers`, the smaller node first: int64 [P] -> [2, P]."""
    high = ((1 + (1 + 8 * numbers.double()).sqrt()) / 2).long()
    high -= (high * (high - 1) // 2 > numbers).long()  # the root is rounded
    high += (high * (high + 1) // 2 <= numbers).long()
    return torch.stack([numbers - high * (high - 1) // 2, high])


class Absent:
    """The pairs of a graph without an edge, counted off in order.

    Args:
        pairs: the edges int64 [2, U], in any order and direction; duplicates count once, self-loops are left out.
        n: number of nodes.
    """

    def __init__(self, pairs: Tensor, n: int) -> None:
        present = torch.unique(pair_numbers(pairs[:, pairs[0] != pairs[1]]))
        self.before = present - torch.arange(len(present), device=present.device)
        """How many absent pairs lie before each edge [U], ascending."""
        self.count = n * (n - 1) // 2 - len(present)

    def at(self, ranks: Tensor) -> Tensor:
        """The absent pairs of these ranks, each in 0..count - 1: int64 [P] -> [2, P]."""
        return numbered_pairs(ranks + torch.searchsorted(self.before, ranks, right=True))

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Independent uniform draws by a generator on the CPU: int64 [2, number].

        Raises:
            GLTError: every pair has an edge.
        """
        if not self.count:
            raise GLTError("every pair of nodes has an edge, so there is no negative pair to draw.")
        return self.at(torch.randint(self.count, (number,), generator=generator).to(self.before.device))

    def draw_distinct(self, number: int, rng: np.random.Generator) -> Tensor:
        """Uniform draws of which no two are the same pair: int64 [2, number].

        Raises:
            GLTError: fewer absent pairs than that.
        """
        if number > self.count:
            raise GLTError(f"{number} negative pairs were asked for; {self.count} pairs of nodes have no edge.")
        ranks = rng.choice(self.count, number, replace=False, shuffle=False).astype(np.int64)
        return self.at(torch.from_numpy(ranks).to(self.before.device))


@dataclass(frozen=True)
class Links:
    """A division of a graph's undirected edges.

    Args:
        edge_index: the graph that may be seen: training edges only, both directions, sorted [2, 2U].
        train, validation, test: edges of each part, the smaller node first [2, P].
        train_negative, validation_negative, test_negative: as many pairs without an edge (or the published ones). Those
            of validation and test are fixed, distinct, and no edge of any part.
    """

    edge_index: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    train_negative: Tensor
    validation_negative: Tensor
    test_negative: Tensor


def divide_links(edge_index: Tensor, n: int, *, validation: float = 0.05, test: float = 0.1, seed: int = 0) -> Links:
    """Hold out edges for validation and test, and draw as many negatives for each part.

    The negatives of validation and test avoid all edges. Those of training avoid the training edges only, which are all
    that a training may know.

    Args:
        edge_index: int64 [2, E], any direction.
        n: number of nodes.
        validation, test: shares of the undirected edges; default 5 % and 10 % (UGS's division).
        seed: of the division and the negatives.

    Raises:
        GLTError: shares that leave a part empty, or too few pairs without an edge.
    """
    edges = clean_edges(edge_index, n)
    pairs = edges[:, edges[0] < edges[1]]
    total = pairs.shape[1]
    held = [round(share * total) for share in (validation, test)]
    if validation < 0 or test < 0 or min(held) < 1 or sum(held) >= total:
        raise GLTError(
            f"of {total} edges, shares of {validation:g} for validation and {test:g} for test hold out "
            f"{held[0]} and {held[1]}; each part needs at least one edge."
        )
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(total))
    sizes = [total - sum(held), *held]
    train, valid, tested = (pairs[:, rows.sort().values] for rows in torch.split(order, sizes))
    negatives = Absent(pairs, n).draw_distinct(sum(held), rng)
    # drawn without an order of their own, so the parts take them by chance
    negatives = negatives[:, torch.from_numpy(rng.permutation(sum(held)))]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    first = Absent(train, n).draw(train.shape[1], generator)
    seen = clean_edges(train, n)
    return Links(seen, train, valid, tested, first, negatives[:, : held[0]], negatives[:, held[0] :])


def pair_logits(embedding: Tensor, pairs: Tensor) -> Tensor:
    """Logits of "no link" and "link": 0 and the inner product ``<z_i, z_j>``.

    The softmax of both is the sigmoid of the product, so cross-entropy is the binary one.

    Args:
        embedding: of all nodes [n, d].
        pairs: int64 [B, 2].

    Returns:
        [B, 2].
    """
    score = (embedding.index_select(0, pairs[:, 0]) * embedding.index_select(0, pairs[:, 1])).sum(1)
    return torch.stack([torch.zeros_like(score), score], 1)
