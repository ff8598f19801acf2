"""Scores of the baselines, to be ranked by `prune_smallest`, and DropEdge. Card, "Baselines"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.pruning import prune_count


def random_scores(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A uniform random order over all entries of all tensors: scores of the shapes of ``like``."""
    count = sum(tensor.numel() for tensor in like)
    order = torch.randperm(count, generator=generator).float() + 1
    pieces = torch.split(order, [tensor.numel() for tensor in like])
    return [piece.reshape(tensor.shape).to(tensor.device) for piece, tensor in zip(pieces, like, strict=True)]


def degree_scores(ends: Tensor, num_nodes: int) -> Tensor:
    """High for edges between low-degree nodes (the idea of TEDDY, Seo et al., ICLR 2024; not its full score).

    Args:
        ends: both nodes of each undirected edge [2, U].
        num_nodes: n.

    Returns:
        Rank of ``1 / (d_i d_j)`` among its distinct values, from 1 [U]; ranks, so that rounding cannot
        reorder edges whose products are close.
    """
    degree = torch.bincount(ends.reshape(-1), minlength=num_nodes)
    products, place = torch.unique(degree[ends[0]] * degree[ends[1]], return_inverse=True)
    rank: Tensor = len(products) - place
    return rank.float()


def magnitude_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``|W|`` of each weight matrix, detached."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def drop_edges(kept: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Edges to leave out of one training epoch: ``round(share * |E_kept|)`` of the kept ones at random.

    DropEdge, Rong et al., ICLR 2020. For `MaskedGNN.removed`.

    Args:
        kept: b_g [U], bool.
        share: in [0, 1).
        generator: on the CPU.

    Raises:
        GLTError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise GLTError(f"dropedge={share} is outside [0, 1).")
    index = kept.bool().nonzero().squeeze(1)
    chosen = torch.randperm(len(index), generator=generator)[: prune_count(len(index), share)]
    removed = torch.zeros_like(kept, dtype=torch.bool)
    removed[index[chosen.to(index.device)]] = True
    return removed
