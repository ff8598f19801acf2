"""Pruning by rank: exact counts, exact ties in a seeded random order. Card section 5, traps 3 and 9."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait_glt.errors import GLTError


def prune_count(kept: int, share: float) -> int:
    """``round(p * kept)``: how many go in one round.

    Raises:
        GLTError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise GLTError(f"pruned share p={share} is outside [0, 1].")
    return round(share * kept)


def kept_after(total: int, share: float, rounds: int) -> list[int]:
    """How many are kept after 0, 1, ..., ``rounds`` rounds, counted exactly."""
    kept = [total]
    for _ in range(rounds):
        kept.append(kept[-1] - prune_count(kept[-1], share))
    return kept


def check_target(what: str, total: int, share: float, rounds: int, target: float | None) -> None:
    """Refuse a target sparsity that the rounds do not reach.

    Args:
        what: ``"graph"`` or ``"weight"``, for the message.
        total: number of edges or weights.
        share: p_g or p_theta.
        rounds: R.
        target: sparsity in [0, 1), or None for no target.

    Raises:
        GLTError: naming the sparsity that is reached, and the rounds or the share that would do.
    """
    if target is None or total == 0:
        return
    reached = 1 - kept_after(total, share, rounds)[-1] / total
    if reached < target:
        needed, left = 0, total
        while 1 - left / total < target and prune_count(left, share):
            left -= prune_count(left, share)
            needed += 1
        enough = 1 - left / total >= target
        advice = f"{needed} rounds would reach it" if enough else "no number of rounds reaches it"
        least = 1 - (1 - target) ** (1 / rounds)
        raise GLTError(
            f"{what} sparsity {target} is not reachable: {rounds} rounds of {share:g} end at {reached:.4f}; {advice}, "
            f"or a share of about {least:.4f} in each of {rounds}."
        )


@torch.no_grad()
def prune_smallest(
    scores: Sequence[Tensor], kept: Sequence[Tensor], count: int, generator: torch.Generator
) -> list[Tensor]:
    """Drop exactly ``count`` kept entries, over all tensors together, smallest ``|score|`` first.

    Exact ties (a soft mask clipped at 0 or 1) are broken by a seeded random order, not by memory order. No noise is
    added to the scores: after a dozen epochs UGS's masks spread by about 1e-5, and noise of that size reorders them.

    Args:
        scores: any shapes; for soft masks the values themselves.
        kept: bool, of the same shapes.
        count: how many go.
        generator: on the CPU.

    Returns:
        New bool tensors; the inputs stay as they are.

    Raises:
        GLTError: shapes that differ, more to prune than is kept, or a kept score that is not finite.
    """
    for k, (score, mask) in enumerate(zip(scores, kept, strict=True)):
        if score.shape != mask.shape:
            raise GLTError(f"pruning: scores[{k}] {tuple(score.shape)} and kept[{k}] {tuple(mask.shape)} differ.")
    if not scores:
        return []
    flat = torch.cat([score.detach().reshape(-1).double().abs() for score in scores])
    alive = torch.cat([mask.reshape(-1).bool() for mask in kept])
    total = int(alive.sum())
    if not 0 <= count <= total:
        raise GLTError(f"pruning: {count} entries are to go, and {total} are kept.")
    if not bool(flat[alive].isfinite().all()):
        raise GLTError("pruning: a kept entry has a score that is not finite; the training diverged.")
    shuffled = torch.randperm(flat.numel(), generator=generator).to(flat.device)
    ranked = shuffled[flat.masked_fill(~alive, torch.inf)[shuffled].argsort(stable=True)]
    alive[ranked[:count]] = False
    pieces = torch.split(alive, [mask.numel() for mask in kept])
    return [piece.reshape(mask.shape) for piece, mask in zip(pieces, kept, strict=True)]
