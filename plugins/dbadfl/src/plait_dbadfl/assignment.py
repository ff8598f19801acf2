"""Who carries which part of the trigger. Card, section 6 and "Baselines"."""

from __future__ import annotations

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.sampling import generator
from plait_dbadfl.triggers import Trigger, cut

__all__ = ["assign_parts", "assign_shared"]


def assign_parts(clusters: Tensor, trigger: Trigger, *, seed: int, rotation: int = 0) -> Tensor:
    """Give every cluster a complete trigger of its own, one part a member.

    Args:
        clusters: int64 [M], cluster of each attacker; any labels.
        trigger: Q. A cluster of m members cuts it into m contiguous, balanced parts; with m > |Q| parts are reused.
        seed: of the order in which members take parts.
        rotation: number of the redraw; another rotation gives another order.

    Returns:
        bool [M, |Q|], pixels of each attacker. Within a cluster the rows cover Q.

    Raises:
        DbadflError: no attackers.

    Source: card, section 6 [inferred].
    """
    if clusters.ndim != 1 or not len(clusters):
        raise DbadflError(f"clusters must be a vector with one label per attacker; got shape {tuple(clusters.shape)}")
    names, cluster = torch.unique(clusters, return_inverse=True)
    sizes = torch.bincount(cluster, minlength=len(names))
    order = torch.randperm(len(clusters), generator=generator(seed, "parts", rotation))
    order = order[cluster[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(clusters)) - (sizes.cumsum(0) - sizes)[cluster[order]]
    return cut(len(trigger), rank, sizes[cluster])


def assign_shared(attackers: int, parts: int, trigger: Trigger, *, seed: int, rotation: int = 0) -> Tensor:
    """Reuse a fixed number of parts among all attackers, as the ancestor reuses its four.

    Args:
        attackers: M.
        parts: into how many Q is cut; 4 is the ancestor's number [code].
        trigger, seed, rotation: as in `assign_parts`.

    Returns:
        bool [M, |Q|]. The rows cover Q if ``M >= parts``.

    Raises:
        DbadflError: fewer than one attacker or one part.
    """
    if attackers < 1 or parts < 1:
        raise DbadflError(f"attackers={attackers} and parts={parts} must be at least 1")
    rank = torch.randperm(attackers, generator=generator(seed, "parts", rotation)) % parts
    return cut(len(trigger), rank, torch.tensor(parts))
