"""What an attack did to the benign nodes, and what a defence undid. Card, section "Metrics".

Shares are fractions in 0..1. Everything is computed for all nodes at once, in chunks of test images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.triggers import stamp

__all__ = ["Paired", "Scores", "Summary", "evaluate", "paired_difference", "placement_sensitivity", "summarize"]

Forward = Callable[[Tensor], Tensor]
"""Stacked forward pass, images [N, X, ch, H, W] -> logits [N, X, C]."""

CHUNK = 1 << 24
"""Most input values (nodes x images x pixels) in one forward pass."""


@dataclass(frozen=True)
class Scores:
    """Main accuracy and attack success of every node.

    Args:
        accuracy: [N], clean test accuracy.
        success: [N], ASR with the whole trigger.
        part_success: [N, p], ASR with each local part alone; p = 0 without parts.
    """

    accuracy: Tensor
    success: Tensor
    part_success: Tensor


def eligible_images(labels: Tensor, target: int) -> Tensor:
    """int64, test images on which success is counted: those that are not of the target class [code].

    Raises:
        DbadflError: none is left.
    """
    kept = (labels != target).nonzero().flatten()
    if not len(kept):
        raise DbadflError(
            f"all {len(labels)} test images are of the target class {target}: attack success is not defined"
        )
    return kept


def evaluate(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    nodes: int,
    *,
    target: int,
    trigger: Tensor,
    parts: Tensor | None = None,
    value: float = 1.0,
    chunk: int = CHUNK,
) -> Scores:
    """Test every node on the clean images, on the whole trigger and on each local part.

    Args:
        forward: stacked forward pass; sees every image expanded over the nodes without a copy.
        images: [n, ch, H, W]. labels: int64 [n].
        nodes: N.
        target: c*, in 0..C-1.
        trigger: bool [H, W], Q; always the whole trigger [code].
        parts: bool [p, H, W], or None.
        value: of the trigger's pixels.
        chunk: input values per forward pass.

    Raises:
        DbadflError: every image of the target class, a target outside the classes of the model.
    """
    kept = eligible_images(labels, target)
    accuracy = _hits(forward, images, labels, nodes, chunk, target)
    shown, wanted = images[kept], torch.full((len(kept),), target, device=labels.device)
    masks = trigger[None] if parts is None else torch.cat([trigger[None], parts])
    success = torch.stack(
        [_hits(forward, stamp(shown, mask, value), wanted, nodes, chunk, target) for mask in masks], 1
    )
    return Scores(accuracy, success[:, 0], success[:, 1:])


def _hits(forward: Forward, images: Tensor, wanted: Tensor, nodes: int, chunk: int, target: int) -> Tensor:
    size = max(1, chunk // (nodes * images[0].numel()))
    hits = torch.zeros(nodes, dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for some, answers in zip(torch.split(images, size), torch.split(wanted, size), strict=True):
            logits = forward(some.expand(nodes, *some.shape))
            if not 0 <= target < logits.shape[-1]:
                raise DbadflError(f"target={target} is outside the classes 0..{logits.shape[-1] - 1}")
            hits += (logits.argmax(-1) == answers.to(logits.device)).sum(1).to(hits.device)
    return hits.double().cpu() / len(images)


@dataclass(frozen=True)
class Summary:
    """The figures of one evaluation; all over benign nodes only.

    Args:
        ma, ma_worst, ma_std: clean test accuracy, mean, worst node, standard deviation over nodes.
        asr, asr_p10, asr_min: attack success, mean, 10th percentile, lowest node.
        asr_by_hop: hop distance to the nearest attacker -> mean success of the nodes there.
        asr_by_part: mean success of each local part alone.
    """

    ma: float
    ma_worst: float
    ma_std: float
    asr: float
    asr_p10: float
    asr_min: float
    asr_by_hop: dict[int, float] = field(default_factory=dict)
    asr_by_part: tuple[float, ...] = ()


def summarize(scores: Scores, benign: Tensor, hops: Tensor | None = None) -> Summary:
    """Reduce to benign nodes.

    Args:
        scores: of all nodes.
        benign: bool [N].
        hops: int64 [N], hops to the nearest attacker; None leaves `Summary.asr_by_hop` empty.

    Raises:
        DbadflError: no benign node.
    """
    if not bool(benign.any()):
        raise DbadflError("no benign node to evaluate: main accuracy and attack success are taken over benign nodes")
    accuracy, success = scores.accuracy[benign], scores.success[benign]
    by_hop: dict[int, float] = {}
    if hops is not None:
        levels, where = torch.unique(hops[benign], return_inverse=True)
        count = torch.bincount(where, minlength=len(levels))
        sums = torch.zeros(len(levels), dtype=success.dtype).index_add_(0, where, success)
        by_hop = dict(zip(levels.tolist(), (sums / count).tolist(), strict=True))
    return Summary(
        ma=float(accuracy.mean()),
        ma_worst=float(accuracy.min()),
        ma_std=float(accuracy.std(correction=0)),
        asr=float(success.mean()),
        asr_p10=float(success.quantile(0.1)),
        asr_min=float(success.min()),
        asr_by_hop=by_hop,
        asr_by_part=tuple(scores.part_success[benign].mean(0).tolist()),
    )


# ---- between runs ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Paired:
    """Difference of two arms over the same seeds.

    Args:
        mean: of first - second. low, high: 95% t interval; equal to the mean with a single seed.
        positive: seeds with a difference above 0. seeds: how many.
    """

    mean: float
    low: float
    high: float
    positive: int
    seeds: int


def paired_difference(first: Tensor, second: Tensor) -> Paired:
    """Compare two arms seed by seed; both [S], same seeds in the same order.

    Raises:
        DbadflError: different or no seeds.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DbadflError(
            f"paired arms need the same seeds, at least one; got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    difference = first.double() - second.double()
    mean, half = float(difference.mean()), 0.0
    if len(difference) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(difference) - 1) * difference.std() / len(difference) ** 0.5)
    return Paired(mean, mean - half, mean + half, int((difference > 0).sum()), len(difference))


def placement_sensitivity(success: dict[str, Tensor]) -> float:
    """Largest less smallest seed-averaged ASR over placements; placement -> [S].

    Raises:
        DbadflError: fewer than two placements.
    """
    if len(success) < 2:
        raise DbadflError("placement sensitivity compares at least two placements")
    means = [float(values.double().mean()) for values in success.values()]
    return max(means) - min(means)


def rejection_rates(rejected: Tensor, edge_index: Tensor, attackers: Tensor) -> tuple[float, float]:
    """How well a rule that selects tells attackers from benign nodes.

    Args:
        rejected: bool [E], the message over each edge was refused.
        edge_index: int64 [2, E], sender and receiver.
        attackers: bool [N]. Only messages to benign receivers count.

    Returns:
        TPR, share of attackers' messages refused; FPR, share of benign messages refused. NaN where there is none.
    """
    counted = ~attackers[edge_index[1]]
    bad = attackers[edge_index[0]]

    def share(of: Tensor) -> float:
        return float(rejected[of].double().mean()) if bool(of.any()) else float("nan")

    return share(counted & bad), share(counted & ~bad)
