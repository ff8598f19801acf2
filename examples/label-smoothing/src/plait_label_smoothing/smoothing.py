"""Label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7) as a term beside an unreduced loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def smoothing_term(logits: Any, losses: Tensor, epsilon: float, weights: Tensor | None = None) -> Tensor:
    """``epsilon * mean(v * (u - l))``, u being the cross-entropy of the uniform target.

    Beside ``mean(v * l)`` it makes ``mean(v * ((1 - epsilon) * l + epsilon * u))``. With the cross-entropy as l and
    without weights that is ``torch.nn.functional.cross_entropy(..., label_smoothing=epsilon)``.

    Args:
        logits: [B, K], or [N, B, K] of N stacked replicas, whose means are added up.
        losses: l, the loss of each example at its label, [B] or [N, B], with its graph.
        epsilon: share of the target that is spread over all K classes, 0..1.
        weights: v, [B]; None is 1.

    Raises:
        ValueError: logits that do not belong to these losses.
    """
    if not isinstance(logits, Tensor) or logits.shape[:-1] != losses.shape:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"label smoothing needs logits [*{tuple(losses.shape)}, K] from the model, got {given}")
    difference = -logits.log_softmax(-1).mean(-1) - losses
    return epsilon * (difference if weights is None else weights * difference).mean(-1).sum()
