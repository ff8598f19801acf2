"""What is flame: by the classifier, or by the nearest centre; from the thermal patch alone. Card section 8."""

from __future__ import annotations

from torch import Tensor

from .losses import cosine_distances, half_squared_distances
from .options import Decision

__all__ = ["DECISIONS", "decided"]

DECISIONS: tuple[Decision, ...] = ("head", "center_l2", "center_cos")


def decided(decision: Decision, logits: Tensor, z: Tensor, centres: Tensor | None) -> Tensor:
    """Outputs [B, K], of which the largest decides: the logits, or minus the distance to each centre.

    For two classes output 1 minus output 0 is the card's score, and a patch is flame where it is above 0. z is [B, d],
    the centres are [K, d], not needed for ``head``.
    """
    if decision == "head":
        return logits
    assert centres is not None
    distances = half_squared_distances if decision == "center_l2" else cosine_distances
    return -distances(z, centres)
