"""A choice among candidates by a score over seeds: the best only where it beats the default by more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait_experiments.statistics import Summary, difference, summary

Scores = Mapping[int, float | None]
"""seed -> score."""


@dataclass(frozen=True)
class Choice:
    """Which candidate is taken.

    Attributes:
        chosen: its position; None where no candidate has a score at every seed.
        best: position of the best mean.
        gains: of every candidate, its score minus the default's, paired over the seeds; None for the default itself
            and where one of the two has no score.
    """

    chosen: int | None
    best: int | None
    gains: tuple[Summary | None, ...]


def choose(scores: Sequence[Scores], default: int | None, higher: bool) -> Choice:
    """Take the best candidate where it `exceeds` the default, else the default.

    Args:
        scores: of every candidate, at every seed; one with a missing score is out, and so is one without scores.
        default: position of what is taken without a choice; None where it is not among the candidates, or not known:
            then the best is taken.
        higher: whether a higher score is better.
    """
    sign = 1 if higher else -1
    summaries = [summary(list(by_seed.values())) for by_seed in scores]
    means = {i: sign * s.mean for i, s in enumerate(summaries) if s.mean is not None and not s.undefined}
    if not means:
        return Choice(None, None, (None,) * len(scores))
    best = max(means, key=lambda i: (means[i], -i))
    if default not in means:
        return Choice(best, best, (None,) * len(scores))
    gains = tuple(
        difference(scores[default], scores[i]).summary if i in means and i != default else None
        for i in range(len(scores))
    )
    return Choice(best if exceeds(gains[best], higher) else default, best, gains)


def exceeds(gain: Summary | None, higher: bool) -> bool:
    """Whether a difference to the default is better by more than its standard error; one seed has none."""
    if gain is None or gain.mean is None or gain.standard_error is None:
        return False
    return (gain.mean if higher else -gain.mean) > gain.standard_error
