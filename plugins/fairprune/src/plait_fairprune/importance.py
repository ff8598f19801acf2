"""Scores of the methods that BiFP is compared with: SNIP, FPGM and FairGRAPE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fairgrape", "fpgm", "snip"]


@torch.no_grad()
def snip(weights: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """|w g| with g the mean gradient over batches, [d] (Lee et al., ICLR 2019).

    Args:
        weights: the dense weights.
        gradients: of each batch, aligned with ``weights``.
    """
    mean = [torch.stack(of_weight).mean(0) for of_weight in zip(*gradients, strict=True)]
    return torch.cat([(w * g).abs().flatten() for w, g in zip(weights, mean, strict=True)])


@torch.no_grad()
def fpgm(filters: Sequence[Tensor]) -> Tensor:
    """Distances from each filter to the others of its layer, summed, over the layer's mean, [C] (He et al., CVPR 2019).

    The filter nearest to all others, near the geometric median, is the one that they can replace: the smallest goes.

    Args:
        filters: [C_l, n_l] for each layer.
    """
    scores = []
    for of_layer in filters:
        distances = torch.cdist(of_layer.double(), of_layer.double()).sum(1)
        scores.append((distances / (distances.mean() + 1e-12)).float())
    return torch.cat(scores)


@torch.no_grad()
def fairgrape(
    weights: Sequence[Tensor], gradients: Sequence[Sequence[Sequence[Tensor]]], sizes: Sequence[int]
) -> Tensor:
    """A ranking that keeps the groups' shares of importance as they are in the dense network, [d] (FairGRAPE, 2022).

    Importance of a weight for a group: (w g)^2 summed over that group's batches. In each layer the next weight is
    the most important left one of the group whose share of what is selected is furthest below its share in the layer.
    The first selected has the highest score, so that the k largest scores are what k selections give.

    Args:
        weights: the dense weights.
        gradients: by group, by batch, aligned with ``weights``.
        sizes: of the layers, which are the weights' here.
    """
    layers = []
    for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        by_group = torch.zeros(len(gradients), size, dtype=torch.float64)
        for group, batches in enumerate(gradients):
            for batch in batches:
                by_group[group] += (weight * batch[number]).flatten().double().square().cpu()
        layers.append(_selection(by_group))
    return torch.cat(layers).to(weights[0].device)


def _selection(by_group: Tensor) -> Tensor:
    """Scores size, size - 1, ... 1 in the order in which one layer's weights are selected: float32 [n]."""
    groups, size = by_group.shape
    totals = by_group.sum(1)
    targets = (totals / totals.sum().clamp(min=1e-300)).tolist()
    orders = by_group.argsort(dim=1, descending=True, stable=True).tolist()
    values = by_group.T.tolist()
    heads, shares = [0] * groups, [0.0] * groups
    taken, scores = bytearray(size), [0.0] * size
    for rank in range(size):
        total = sum(shares) or 1.0
        group = max(range(groups), key=lambda g: targets[g] - shares[g] / total)
        order, head = orders[group], heads[group]
        while taken[order[head]]:
            head += 1
        heads[group], chosen = head, order[head]
        taken[chosen] = 1
        scores[chosen] = float(size - rank)
        for g, value in enumerate(values[chosen]):
            shares[g] += value
    return torch.tensor(scores)
