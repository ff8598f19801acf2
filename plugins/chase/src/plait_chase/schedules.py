"""When things happen and how much: pure functions of the step. Steps count from 1. Card sections 5, 7 and 10 [code]."""

from __future__ import annotations

from math import cos, pi


def bound(step: int, phase_a_steps: int, density: float, death_rate: float = 0.05, extra: float = 0.0) -> float:
    """Soft memory bound: the density allowed right after growth in phase A.

    ``density + extra + (death_rate - extra) * (1 + cos(pi * step / phase_a_steps)) / 2``, never above 1.

    Args:
        step: current step, 0 to ``phase_a_steps``.
        phase_a_steps: T_A, length of phase A in steps.
        density: target density D.
        death_rate: p, the excess density at step 0 (default 0.05).
        extra: how far above D the bound still is at T_A (0; the ImageNet scripts use 0.005). How ``extra`` and p share
            the cosine is [inferred].

    Check values: D=0.1, p=0.05, T_A=100 give 0.15, 0.125, 0.10 at steps 0, 50, 100.
    """
    return min(1.0, density + extra + (death_rate - extra) * (1.0 + cos(pi * step / phase_a_steps)) / 2.0)


def drop_rate(step: int, total_steps: int, start: float = 0.5, end: float = 0.005) -> float:
    """Share of the non-zeros dropped by an update of phase B: a cosine from ``start`` to ``end`` over the whole run."""
    return end + (start - end) * (1.0 + cos(pi * step / total_steps)) / 2.0


def channel_target(step: int, end_step: int, channel_sparsity: float) -> float:
    """Share of the prunable channels that must be gone at ``step``: cubic from 0 to S_c at ``end_step`` (t_f).

    Check values: S_c=0.5, t_f=100 give 0.2890625, 0.4375, 0.4921875 at steps 25, 50, 75. Zhu and Gupta 2017.
    """
    if step >= end_step:
        return channel_sparsity
    return float(channel_sparsity * (1.0 - (1.0 - step / end_step) ** 3))


def channel_event(step: int, interval: int, exploration_interval: int, end_step: int) -> bool:
    """Whether channels are removed at ``step``.

    Every ``interval`` steps, half an exploration interval (rounded down) before the multiple, while
    ``step < end_step``; and once more at ``end_step``, so that the requested share is reached exactly.
    """
    if step == end_step:
        return True
    return 0 < step < end_step and (step + exploration_interval // 2) % interval == 0


def exploration_event(step: int, interval: int, total_steps: int) -> bool:
    """Whether weights are dropped and regrown at ``step``: every ``interval`` steps, but not at the very last one.

    A weight grown at the last step would stay at the 0 it starts from; the last step only prunes (``finish``).
    """
    return 0 < step < total_steps and step % interval == 0
