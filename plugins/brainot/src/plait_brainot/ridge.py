"""Ridge regression from voxels to image tokens: the classical floor that a network must beat (card, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STRENGTHS", "ridge"]

STRENGTHS = (10.0, 100.0, 1000.0, 10_000.0)
"""Penalties that are tried, of standardised voxels."""


def ridge(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor, x_test: Tensor) -> Tensor:
    """Tokens of the test samples [n, M, D], with the penalty that is best on validation.

    Args:
        x, x_validation, x_test: voxels [n, V], standardised.
        y, y_validation: image tokens [n, M, D].
    """
    wide, mean = x.double(), y.double().flatten(1).mean(0)
    gram, moment = wide.T @ wide, wide.T @ (y.double().flatten(1) - mean)
    best: tuple[float, Tensor] | None = None
    for strength in STRENGTHS:
        weights = torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=torch.float64), moment)
        error = float((x_validation.double() @ weights + mean - y_validation.double().flatten(1)).square().mean())
        if best is None or error < best[0]:
            best = error, weights
    assert best is not None
    return (x_test.double() @ best[1] + mean).float().view(len(x_test), *y.shape[1:])
