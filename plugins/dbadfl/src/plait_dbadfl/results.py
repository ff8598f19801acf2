"""What one run of a federation gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from plait_dbadfl.metrics import Scores, Summary

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        arm: its name. defence: name of the aggregation rule, or None for the mean.
        final: figures after the last round, over benign nodes.
        history: (finished rounds, figures), of the evaluations asked for.
        scores: of all nodes after the last round.
        clusters: int64 [M] of the last round, or None.
        ari: adjusted Rand index of the clusters with those of the true distances, or None.
        parts: bool [M, |Q|] of the last round, pixels of each attacker.
        short: bool [M], attackers under budget (`plait_dbadfl.budgets`).
        pixels: [M], expected stamped pixels per training sample.
        rejection: for rules that select: share of attackers' messages to benign nodes refused (TPR), and of benign
            ones (FPR), means over the rounds; or None.
        seconds_per_round: wall clock, training only.
    """

    arm: str
    defence: str | None
    final: Summary
    history: tuple[tuple[int, Summary], ...]
    scores: Scores
    clusters: Tensor | None
    ari: float | None
    parts: Tensor
    short: Tensor
    pixels: Tensor
    rejection: tuple[float, float] | None
    seconds_per_round: float


# ---- checkpoints -------------------------------------------------------------------------------------------------
def summary_state(summary: Summary) -> dict[str, Any]:
    """A summary as numbers, lists and dicts with string keys."""
    return {
        **asdict(summary),
        "asr_by_hop": {str(hop): share for hop, share in summary.asr_by_hop.items()},
        "asr_by_part": list(summary.asr_by_part),
    }


def summary_from_state(state: dict[str, Any]) -> Summary:
    """The inverse of `summary_state`."""
    by_hop = {int(hop): float(share) for hop, share in state["asr_by_hop"].items()}
    return Summary(**{**state, "asr_by_hop": by_hop, "asr_by_part": tuple(state["asr_by_part"])})


def result_state(result: Result) -> dict[str, Any]:
    """A result without its wall-clock time, which no resumed run could repeat."""
    return {
        "arm": result.arm,
        "defence": result.defence,
        "final": summary_state(result.final),
        "history": [[round_, summary_state(summary)] for round_, summary in result.history],
        "scores": [result.scores.accuracy, result.scores.success, result.scores.part_success],
        "clusters": result.clusters,
        "ari": result.ari,
        "parts": result.parts,
        "short": result.short,
        "pixels": result.pixels,
        "rejection": None if result.rejection is None else list(result.rejection),
    }


def result_from_state(state: dict[str, Any]) -> Result:
    """The inverse of `result_state`; the time is not a number."""
    return Result(
        **{
            **state,
            "final": summary_from_state(state["final"]),
            "history": tuple((int(round_), summary_from_state(summary)) for round_, summary in state["history"]),
            "scores": Scores(*state["scores"]),
            "rejection": None if state["rejection"] is None else (state["rejection"][0], state["rejection"][1]),
            "seconds_per_round": float("nan"),
        }
    )
