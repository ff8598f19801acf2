"""The embedded trace: holes in a cluster's schedule, calibrated to the public log of Summit (card, "Data")."""

from __future__ import annotations

import numpy as np

from .errors import MalletrainError
from .traces import Trace, from_fragments

__all__ = ["summit_like"]

PERCENT = np.array([0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100]) / 100
SECONDS = np.array([60.0, 71, 81, 91, 162, 475, 1397, 3269, 4723, 9246, 43200])
"""Percentiles of the length of an idle fragment of one node."""
IDLE_SHARE = 0.083
SHARE_MEAN_S = 1200.0
"""Mean length of a drawn fragment, by which the rate of arrival is set."""


def summit_like(nodes: int, hours: float, seed: int, idle_share: float = IDLE_SHARE) -> Trace:
    """A seeded trace of which nodes are idle when.

    Holes arrive as a Poisson process; a hole has lognormal(median 4, sigma 1.6) of the busy nodes, at most N/6, and
    splits into groups of 1 + Poisson(3) nodes that end independently. Its idle bursts are shorter than the real log's.

    Raises:
        MalletrainError: a size that makes no sense.
    """
    if nodes < 6:
        raise MalletrainError(f"nodes = {nodes}: summit-like needs at least 6.")
    if not 0 < hours <= 24 * 366:
        raise MalletrainError(f"hours = {hours}: give more than 0 and at most a year.")
    rng = np.random.default_rng([seed, 1])
    duration, lead = hours * 3600.0, 6 * 3600.0  # it begins 6 hours before, so that the pool is settled at 0
    sizes = np.clip(np.rint(np.exp(rng.normal(np.log(4), 1.6, 100_000))), 1, max(1, nodes // 6))
    rate = idle_share * nodes / (1 - idle_share) / (float(sizes.mean()) * SHARE_MEAN_S) * (1 - idle_share)
    count = int(rng.poisson(rate * (duration + lead)))
    at = np.sort(rng.uniform(-lead, duration, count))
    size = np.clip(np.rint(np.exp(rng.normal(np.log(4), 1.6, count))), 1, max(1, nodes // 6)).astype(np.int64)
    free_again = np.full(nodes, -np.inf)  # when a node's present hole ends
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for when, wanted in zip(at, size, strict=True):  # a hole takes nodes that are busy now: one after the other
        busy = np.flatnonzero(free_again <= when)
        chosen = rng.choice(busy, min(int(wanted), len(busy)), replace=False)
        if not len(chosen):
            continue
        groups = np.repeat(np.arange(len(chosen)), 1 + rng.poisson(3, len(chosen)))[: len(chosen)]
        length = np.exp(np.interp(rng.random(int(groups[-1]) + 1), PERCENT, np.log(SECONDS)))[groups]
        free_again[chosen] = when + length
        parts.append((chosen, np.full(len(chosen), when), when + length))
    if not parts:
        return from_fragments(nodes, duration, [], [], [], "summit-like")
    node, start, end = (np.concatenate(column) for column in zip(*parts, strict=True))
    return from_fragments(nodes, duration, node, start, end, "summit-like")
