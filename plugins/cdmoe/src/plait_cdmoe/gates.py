"""Gate statistics: how often each expert is chosen and by how much it is then multiplied (card, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .families import Family

__all__ = ["GateStats", "gates_by_text", "in_order", "most"]


def gates_by_text(family: Family, layer: int, x: Tensor, owners: Tensor, texts: int) -> tuple[Tensor, Tensor]:
    """Sums of gates float64 and counts int64, both [texts, E], of a layer's input x [n, d]; ``owners`` int64 [n] has
    the text of each token."""
    experts = family.geometry().experts
    index, weight = family.gates(layer, x)
    cells = (owners[:, None] * experts + index).flatten()
    sums = torch.zeros(texts * experts, dtype=torch.float64, device=x.device)
    sums.index_add_(0, cells, weight.double().flatten())
    counts = torch.bincount(cells, minlength=texts * experts)
    return sums.reshape(texts, experts), counts.reshape(texts, experts)


@dataclass
class GateStats:
    """Of each layer and expert, L lists of E numbers: the sum of its gates over the tokens that chose it, and how many
    these are; and the number of all tokens."""

    sums: list[list[float]] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    tokens: int = 0

    def weights(self, layer: int, *, conditional: bool = True) -> Tensor:
        """w_{l,e}, float64 [E]: the mean gate among the tokens that chose e; NaN for an expert that none chose.

        Not ``conditional``: the mean over all tokens (an ablation; 2 to 8 % worse).
        """
        sums = torch.tensor(self.sums[layer], dtype=torch.float64)
        counts = torch.tensor(self.counts[layer], dtype=torch.float64)
        mean = sums / (counts if conditional else self.tokens)
        return torch.where(counts > 0, mean, torch.nan)

    def never_selected(self) -> list[tuple[int, int]]:
        """(layer, expert) that no token chose: they have no weight and are no candidates."""
        return [(layer, e) for layer, row in enumerate(self.counts) for e, count in enumerate(row) if not count]

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Append a layer from `gates_by_text`, summed over texts in their order."""
        self.sums.append(in_order(sums).tolist())
        self.counts.append(counts.sum(0).tolist())


def in_order(rows: Tensor) -> Tensor:
    """The sum over rows [n, ...] one after the other, so that it is the same whoever computed which row."""
    return rows.cpu().cumsum(0)[-1]


def most(values: Sequence[float], count: int, allowed: Sequence[int]) -> list[int]:
    """The ``count`` indices of the largest values among ``allowed``; ties: the lowest index."""
    return sorted(allowed, key=lambda index: (-values[index], index))[:count]
