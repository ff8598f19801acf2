"""How much each attacker may poison, so that arms can be compared. Card, section 7."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import BUDGETS

__all__ = ["Budget", "poison_ratios"]


@dataclass(frozen=True)
class Budget:
    """What a protocol allows each attacker.

    Args:
        ratio: [M], chance of a sample to be poisoned.
        pixels: [M], expected stamped pixels per training sample, ``ratio * |Q_i|``.
        short: bool [M], attackers that stay below the budget because a ratio cannot exceed 1.
    """

    ratio: Tensor
    pixels: Tensor
    short: Tensor


def poison_ratios(sizes: Tensor, protocol: str, amount: float) -> Budget:
    """Poison ratio of each attacker under a budget.

    Args:
        sizes: int64 [M], pixels of each attacker's part.
        protocol: ``"pixels"``: ``r_i = min(1, b / |Q_i|)``, the same expected stamped pixels per sample for everybody;
            ``"samples"``: the same ratio for everybody, which flatters arms with larger parts.
        amount: b in pixels per sample (at least 0), or the ratio r in [0, 1].

    Raises:
        DbadflError: unknown protocol, an amount out of range, an attacker without pixels.
    """
    if protocol not in BUDGETS:
        raise DbadflError(f"budget={protocol!r} is unknown; choose one of {', '.join(BUDGETS)}")
    if len(sizes) and int(sizes.min()) < 1:
        raise DbadflError(f"attacker {int(sizes.argmin())} carries no trigger pixel")
    sizes = sizes.double()
    if protocol == "samples":
        if not 0.0 <= amount <= 1.0:
            raise DbadflError(f"poison_ratio={amount} is outside [0, 1]")
        ratio = torch.full_like(sizes, amount)
        return Budget(ratio, ratio * sizes, torch.zeros_like(sizes, dtype=torch.bool))
    if not amount >= 0.0:
        raise DbadflError(f"pixel budget b={amount} must not be negative")
    wanted = amount / sizes
    ratio = wanted.clamp(max=1.0)
    return Budget(ratio, ratio * sizes, wanted > 1.0)
