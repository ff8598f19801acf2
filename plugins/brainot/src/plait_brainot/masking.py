"""Which regions of the brain are needed, which suffice, which repeat each other, which tell something only together.

A region is left out at the test, without retraining (card, 2.10). With S(A), the score when the regions A are kept:

    drop(r)  = S(R) - S(R \\ r)                         necessity
    alone(r) = S({r}) - S(empty)                       sufficiency
    inter(r, q) = S({r, q}) - S({r}) - S({q}) + S(empty)   above 0 synergy, below 0 redundancy
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import BrainotError

__all__ = ["Contrast", "Kept", "analysis", "contrast", "interval", "needed", "shapley"]

Kept = frozenset[str]
Numbers = npt.NDArray[np.float64]
EXACT = 8
"""Regions up to which Shapley values are exact; above, they are means over sampled orders."""
ORDERS = 200
"""Orders that are sampled above."""


@dataclass(frozen=True)
class Contrast:
    """A signed sum of scores, with the interval that a bootstrap over samples gives."""

    value: float
    low: float
    high: float

    @property
    def established(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def needed(regions: Sequence[str], pairs: Iterable[str], masking: str) -> list[Kept]:
    """The sets of regions that an analysis keeps, each once: all, none, and what ``masking`` asks for.

    Args:
        regions: all of them.
        pairs: ``a+b``, for ``pairs``.
        masking: ``regions``: each alone and each dropped; ``pairs``: the pairs too; ``shapley``: all subsets, or
            those of sampled orders.

    Raises:
        BrainotError: a region that is not there.
    """
    whole = frozenset(regions)
    sets: list[Kept] = [whole, frozenset()]
    sets += [frozenset({r}) for r in regions] + [whole - {r} for r in regions]
    if masking == "pairs":
        for pair in pairs:
            sets.append(frozenset(pair_of(pair, regions)))
    if masking == "shapley":
        if len(regions) <= EXACT:
            sets += [frozenset(s) for n in range(len(regions)) for s in itertools.combinations(regions, n)]
        else:
            sets += [frozenset(order[:n]) for order in orders(regions) for n in range(len(order))]
    return list(dict.fromkeys(sets))


def pair_of(pair: str, regions: Sequence[str]) -> tuple[str, str]:
    """The two regions of ``a+b``.

    Raises:
        BrainotError: not two of the regions.
    """
    names = pair.split("+")
    if len(names) != 2 or len(set(names)) != 2 or not set(names) <= set(regions):
        raise BrainotError(f"pairs: {pair!r} is not two regions joined by +; there are {', '.join(regions)}")
    return names[0], names[1]


def orders(regions: Sequence[str]) -> list[list[str]]:
    """The orders in which regions are added, for more regions than are summed exactly."""
    generator = np.random.default_rng(0)
    return [[regions[i] for i in generator.permutation(len(regions))] for _ in range(ORDERS)]


def interval(values: Numbers, score: Callable[[Numbers], float], resamples: int, seed: int = 0) -> Contrast:
    """A score of samples [n, ...], and its 95 % interval by resampling them."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile([score(values[rows]) for rows in drawn], [0.025, 0.975])
    return Contrast(score(values), float(low), float(high))


def contrast(
    scores: Mapping[Kept, Numbers], signs: Mapping[Kept, float], total: Callable[[Numbers], float], resamples: int
) -> Contrast:
    """A signed sum of scores under one resampling of the samples (paired).

    Args:
        scores: kept regions -> what each sample gave, [n] or [n, k].
        signs: kept regions -> factor.
        total: from samples to the score, a mean say.
        resamples: how many.
    """
    stacked = np.stack([scores[kept] for kept in signs], 1)

    def combined(values: Numbers) -> float:
        return sum(factor * total(values[:, place]) for place, factor in enumerate(signs.values()))

    return interval(stacked, combined, resamples)


def shapley(regions: Sequence[str], score: Callable[[Kept], float]) -> dict[str, tuple[float, float]]:
    """Shapley value of each region and its standard error, 0 where it is exact."""
    if len(regions) <= EXACT:
        count = len(regions)
        weight = [math.factorial(n) * math.factorial(count - n - 1) / math.factorial(count) for n in range(count)]
        exact = {}
        for region in regions:
            others = [r for r in regions if r != region]
            subsets = (frozenset(s) for n in range(count) for s in itertools.combinations(others, n))
            exact[region] = (sum(weight[len(s)] * (score(s | {region}) - score(s)) for s in subsets), 0.0)
        return exact
    gains: dict[str, list[float]] = {region: [] for region in regions}
    for order in orders(regions):
        for place, region in enumerate(order):
            gains[region].append(score(frozenset(order[: place + 1])) - score(frozenset(order[:place])))
    return {r: (float(np.mean(v)), float(np.std(v, ddof=1) / math.sqrt(len(v)))) for r, v in gains.items()}


def analysis(
    regions: Sequence[str],
    pairs: Iterable[str],
    scores: Mapping[Kept, Numbers],
    total: Callable[[Numbers], float],
    resamples: int,
) -> dict[str, Contrast]:
    """``drop_r`` and ``alone_r`` of each region, ``inter_r_q`` of each pair, and ``redundancy``, from the scores.

    ``redundancy`` is the sum of what regions give alone over what all give together: above 1 they overlap.
    """
    whole, none = frozenset(regions), frozenset[str]()
    found: dict[str, Contrast] = {}
    for region in regions:
        found[f"drop_{region}"] = contrast(scores, {whole: 1, whole - {region}: -1}, total, resamples)
        found[f"alone_{region}"] = contrast(scores, {frozenset({region}): 1, none: -1}, total, resamples)
    for pair in pairs:
        r, q = pair_of(pair, regions)
        signs: dict[Kept, float] = {frozenset({r, q}): 1, frozenset({r}): -1, frozenset({q}): -1, none: 1}
        found[f"inter_{r}_{q}"] = contrast(scores, signs, total, resamples)
    stacked = np.stack([scores[frozenset({r})] for r in regions] + [scores[none], scores[whole]], 1)

    def index(values: Numbers) -> float:
        each = [total(values[:, place]) for place in range(len(regions) + 2)]
        base = each[-2]
        return sum(max(value - base, 0.0) for value in each[:-2]) / max(each[-1] - base, 1e-9)

    found["redundancy"] = interval(stacked, index, resamples)
    return found
