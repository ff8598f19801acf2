"""What is reported of a ticket: sparsities, curves, winning or not, edges with a gradient. Card, "Metrics"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from plait_glt.errors import GLTError


def sparsity(masks: Tensor | Iterable[Tensor]) -> float:
    """Share of entries that are gone: ``1 - ||m||_0 / ||1||_0``, over all tensors together; 0 of nothing.

    For graph sparsity give the edge mask (entries of A, no self-loops), for weight sparsity the masks of all weight
    matrices (no biases, no norms).
    """
    tensors = [masks] if isinstance(masks, Tensor) else list(masks)
    total = sum(tensor.numel() for tensor in tensors)
    return 1 - sum(int(tensor.count_nonzero()) for tensor in tensors) / total if total else 0.0


def area_under_curve(sparsities: Sequence[float], accuracies: Sequence[float], *, mean: bool = False) -> float:
    """Trapezoid under accuracy against graph sparsity, from 0 to the largest one achieved.

    Args:
        sparsities: achieved, in [0, 1], in any order, with 0 (the full graph) among them.
        accuracies: at those, in points.
        mean: divide by the largest sparsity: the mean height of the curve.

    Returns:
        In accuracy points times sparsity (a pure number), or in accuracy points with ``mean``.

    Raises:
        GLTError: lengths that differ, fewer than two sparsities, no point at 0, or a value outside [0, 1].
    """
    if len(sparsities) != len(accuracies):
        raise GLTError(f"curve: {len(sparsities)} sparsities and {len(accuracies)} accuracies.")
    points = sorted(zip(sparsities, accuracies, strict=True))
    if any(not 0 <= s <= 1 for s in sparsities):
        raise GLTError("curve: a sparsity is outside [0, 1].")
    if len(set(sparsities)) < 2 or points[0][0] != 0:
        raise GLTError("curve: give at least two sparsities, with the accuracy at sparsity 0 among them.")
    area = sum((t - s) * (p + q) / 2 for (s, p), (t, q) in pairwise(points))
    return area / points[-1][0] if mean else area


def is_winning(accuracy: float, dense: float, tolerance: float = 0.0) -> bool:
    """Whether a ticket is at least as accurate as the dense network on the full graph, within ``tolerance`` points."""
    return accuracy >= dense - tolerance


def extreme_sparsity(
    sparsities: Sequence[float], accuracies: Sequence[float], dense: float, tolerance: float = 0.0
) -> float | None:
    """The largest sparsity whose ticket is still winning; None where none is."""
    pairs = zip(sparsities, accuracies, strict=True)
    return max((s for s, accuracy in pairs if is_winning(accuracy, dense, tolerance)), default=None)


def gradient_share(reached: Tensor, kept: Tensor) -> float:
    """Share of the kept edges whose mask has a non-zero gradient (card, acceptance 3); 1 when no edge is kept.

    Args:
        reached: the gradient [U], or bool.
        kept: b_g [U].
    """
    alive = kept.bool()
    return float((reached[alive] != 0).double().mean()) if bool(alive.any()) else 1.0
