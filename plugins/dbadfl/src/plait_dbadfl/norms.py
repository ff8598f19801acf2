"""Normalisation for many participants: group norm in the place of batch norm. Card, "composes with"."""

from __future__ import annotations

import copy

from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SMALLEST_GROUP = 4
MOST_GROUPS = 32


def group_count(channels: int) -> int:
    """Groups for ``channels``: the largest divisor that leaves 4 channels a group or more, at most 32 [inferred].

    A group of one channel would be instance norm, which is undefined on maps of one pixel.
    """
    limit = max(1, min(MOST_GROUPS, channels // SMALLEST_GROUP))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def with_group_norm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose batch norms are group norms with the same names, weights and biases.

    Running statistics are dropped: they would have to be averaged between participants, which
    the card's engines do not say.
    """
    changed = copy.deepcopy(model)
    for parent in list(changed.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS):
                setattr(parent, name, _converted(child))
    return _converted(changed) if isinstance(changed, BATCH_NORMS) else changed


def _converted(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.GroupNorm:
    channels = norm.num_features
    group_norm = nn.GroupNorm(group_count(channels), channels, norm.eps, norm.affine)
    if norm.affine:
        group_norm.weight, group_norm.bias = norm.weight, norm.bias
    return group_norm.train(norm.training)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer is a batch norm."""
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())
