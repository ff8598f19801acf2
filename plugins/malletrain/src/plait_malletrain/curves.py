"""What is known of how a job scales: measured rates, and the curve between and beyond them (card, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CurveTable", "fitted", "prior"]

Floats = NDArray[np.float64]

SMOOTHING = 0.5
"""Weight of a new measurement of a size that was measured before."""
LEAST_COMPUTE = 0.1
"""The constant term of the fit is at least this part of the smallest measured time per sample."""


def prior(sizes: Any, exponent: float = 0.9) -> Floats:
    """The speedup that is expected before any measurement: n^0.9."""
    return np.asarray(sizes, dtype=np.float64) ** exponent


def fitted(measured: Mapping[int, float], most: int, exponent: float = 0.9) -> Floats:
    """Rates at 0, 1, ..., ``most`` nodes that pass through the measured ones.

    n / rate(n) = a + b 2(n-1)/n + g (n-1) with a, b, g >= 0 (compute, bandwidth, latency), by relative least squares,
    times measured/fitted, which is interpolated in n and constant beyond the last measurement. Of two measurements
    without g, of one the prior's shape through it; of none the prior itself.

    Args:
        measured: nodes -> samples/s.
        most: largest size wanted.
        exponent: of the prior.
    """
    sizes = np.arange(1, most + 1, dtype=np.float64)
    shape = prior(sizes, exponent)
    if not measured:
        return np.concatenate(([0.0], shape))
    known = np.array(sorted(measured), dtype=np.float64)
    rates = np.array([measured[int(n)] for n in known])
    if len(known) == 1:
        return np.concatenate(([0.0], rates[0] * shape / prior(known[0], exponent)))
    from scipy.optimize import nnls

    def terms(n: Floats) -> Floats:
        columns = [np.ones_like(n), 2 * (n - 1) / n, n - 1]
        return np.stack(columns[: min(3, len(known))], axis=1)

    # without a floor the rate at a size that was skipped may be infinite
    floor = LEAST_COMPUTE * float((known / rates).min())
    at_known = terms(known)
    weights, _ = nnls(at_known * (rates / known)[:, None], 1 - floor * rates / known)
    weights[0] += floor
    ratio = rates / (known / (at_known @ weights))
    curve: Floats = sizes / (terms(sizes) @ weights) * np.interp(sizes, known, ratio)
    return np.concatenate(([0.0], curve))


class CurveTable:
    """The measurements of one job: size -> samples/s, and the times to grow and to shrink.

    Args:
        most: nmax of the job.
        up, down: first guesses of t_up and t_dw, seconds.
        exponent: of the prior.
    """

    def __init__(self, most: int, up: float = 18.0, down: float = 12.0, exponent: float = 0.9) -> None:
        self.most, self.up, self.down, self.exponent = most, up, down, exponent
        self.rates: dict[int, float] = {}
        self.counts: dict[int, int] = {}
        self._fit: tuple[Floats, Floats] | None = None  # of all that was measured; None: not fitted yet

    def record(self, size: int, samples: float, seconds: float) -> None:
        """A stay of ``seconds`` at a size, in which ``samples`` were done: total over total, never a mean of rates."""
        if not 1 <= size <= self.most or not seconds > 0 or not samples > 0:
            return
        rate, before = samples / seconds, self.rates.get(size)
        smoothed = rate if before is None else SMOOTHING * rate + (1 - SMOOTHING) * before
        self.counts[size] = self.counts.get(size, 0) + 1
        if smoothed != before:
            self.rates[size], self._fit = smoothed, None

    def rescaled(self, grew: bool, seconds: float) -> None:
        """A measured time to grow or to shrink; negative ones are discarded."""
        if seconds >= 0 and grew:
            self.up = seconds
        elif seconds >= 0:
            self.down = seconds

    def _fitted(self) -> tuple[Floats, Floats]:
        if self._fit is None:
            curve = fitted(self.rates, self.most, self.exponent)
            self._fit = curve, curve / curve[1]
        return self._fit

    @property
    def curve(self) -> Floats:
        """Rates at 0..most nodes; of a job that was never measured the prior, with rate 1 on one node."""
        return self._fitted()[0]

    @property
    def speedup(self) -> Floats:
        """The curve over its rate on one node."""
        return self._fitted()[1]

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        return {
            "rates": {str(k): v for k, v in self.rates.items()},
            "counts": {str(k): v for k, v in self.counts.items()},
            "up": self.up,
            "down": self.down,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.rates = {int(k): float(v) for k, v in state["rates"].items()}
        self.counts = {int(k): int(v) for k, v in state["counts"].items()}
        self.up, self.down, self._fit = float(state["up"]), float(state["down"]), None
