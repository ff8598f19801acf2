"""How many local steps each node takes between exchanges, and the attackers' rate in the course of theirs.

The ancestor's attackers train more epochs than the others and lower their rate on the way (card, section 3, table).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError

Acting = Callable[[int], Tensor | None]
"""Round -> int64, the nodes that attack in it, or None."""
ROUNDING = 1e-9
"""Of a step: 0.7 of 10 steps are 7 of them, although 0.7 * 10 is a little more in floating point."""


@dataclass(frozen=True)
class Pace:
    """Local steps of every node, where they are not the same K for all.

    Args:
        usual: int64 [N], at least 1: of a node that does not attack; None: as the engine has it.
        attacking: int64 [N], at least 1: of a node in a round in which it attacks; None: as usual.
        acting: who attacks when; a function of the round alone, so that a resumed run knows it.

    Raises:
        DbadflError: a node without steps.
    """

    usual: Tensor | None = None
    attacking: Tensor | None = None
    acting: Acting | None = None

    def __post_init__(self) -> None:
        if any(c is not None and int(c.min()) < 1 for c in (self.usual, self.attacking)):
            raise DbadflError("a pace needs at least one local step of every node")

    def of(self, round_: int, counts: Tensor) -> Tensor:
        """The local steps int64 [N] of everybody in a phase of this round, from the usual ones; 0 stays 0."""
        acting = None if self.acting is None else self.acting(round_)
        if acting is None or self.attacking is None:
            return counts
        taken = counts.clone()
        taken[acting] = torch.where(counts[acting] > 0, self.attacking[acting], 0)
        return taken


def passes(lengths: Tensor, batch: int, epochs: int) -> Tensor:
    """Local steps int64 [N] of ``epochs`` passes over each node's own images in batches of ``batch``, rounded up."""
    return epochs * ((lengths + batch - 1) // batch)


def lowered(step: int, counts: Tensor, milestones: tuple[float, ...], decay: float) -> Tensor:
    """Factor of the learning rate at a local step: ``decay`` to the number of milestones that lie behind.

    Args:
        step: local steps done, from 0.
        counts: int64 [m], local steps of each node in all.
        milestones: shares of these steps; a milestone of 0.2 in 10 steps lies behind from the third step on.
        decay: in (0, 1].

    Returns:
        float64 [m].

    Source: card, section 3 [code]: times 0.1 after 20 % and 80 % of the poison epochs.
    """
    places = torch.tensor(milestones, dtype=torch.float64)
    behind = step >= (counts[:, None].double() * places - ROUNDING)
    return torch.full((len(counts),), decay, dtype=torch.float64).pow(behind.sum(1))
