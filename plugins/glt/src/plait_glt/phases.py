"""The phases of a run: the dense reference, then for each round the masks and the retraining. Card section 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["dense", "masks", "retrain"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training from the first weights.

    Args:
        kind: ``dense`` (whole graph, all weights), ``masks`` (soft masks are learned), ``retrain`` (masks are fixed).
        round: counted from 1; 0 for ``dense``.
        start, end: steps done before it and after it.
    """

    kind: Kind
    round: int
    start: int
    end: int


def phases(rounds: int, mask_steps: int, retrain_steps: int, *, dense: bool) -> list[Phase]:
    """All phases in order; one of no steps stays in the list, for what happens at its end (a random ranking prunes)."""
    lengths: list[tuple[Kind, int, int]] = [("dense", 0, retrain_steps)] if dense else []
    for number in range(1, rounds + 1):
        lengths += [("masks", number, mask_steps), ("retrain", number, retrain_steps)]
    sequence, done = [], 0
    for kind, number, steps in lengths:
        sequence.append(Phase(kind, number, done, done + steps))
        done += steps
    return sequence
