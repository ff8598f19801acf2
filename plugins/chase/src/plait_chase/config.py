"""Options of the method, validated. Card sections 5, 7 and 10; the baselines are in `presets`."""

from __future__ import annotations

from dataclasses import dataclass

from plait_chase.erk import DISTRIBUTIONS, check_density
from plait_chase.errors import ChaseError
from plait_chase.scores import SCORE_NAMES

__all__ = ["ChaseConfig"]

GROWTHS = ("gradient", "random")
SCOPES = ("global", "layer")


@dataclass(frozen=True, kw_only=True)
class ChaseConfig:
    """What to do and when, independent of the model. Every field is validated on construction.

    Args:
        density: D, share of non-zero weights of the final network, in (0, 1]; default 0.1.
        channel_sparsity: S_c, share of the prunable channels to remove, in [0, 1); default 0.5.
        distribution: initial densities, ``"erk"`` (default) or ``"uniform"``.
        explore: False keeps the first mask for the whole run (static sparse training).
        exploration_interval: DeltaT_p, steps between drop-and-grow updates. None (default) is
            ``min(1000, max(1, T // 24))``: the paper's 1000, scaled down for short runs [inferred].
        channel_interval: DeltaT_c, steps between channel removals. None (default) is twice the exploration interval.
        soft_bound: phase A with more than K non-zeros between updates (default). False: exactly K throughout (ITOP).
        death_rate: p, the excess density of the bound at step 0, in [0, 1]; default 0.05.
        bound_extra: excess of the bound at the end of phase A, in [0, death_rate]; default 0 (ImageNet scripts 0.005).
        phase_a_end: T_A as a share of the run, in [0, 1]; default 0.8.
        removal_end: t_f, the last channel removal, as a share of the run, in (0, 1]; default 0.8.
        drop_start, drop_end: drop rate of phase B at the first and at the last step, in [0, 1]; 0.5 and 0.005.
        explore_until: share of the run after which weights are no longer dropped and grown, in [0, 1]; default 1.
        min_layer_factor: beta in (0, 1]: a layer keeps at least ``max(1, floor(C_out * (1 - S_c) * beta))`` channels;
            default 0.2.
        score: channel score, one of ``plait_chase.scores.SCORE_NAMES``; default ``"umm"``.
        growth: ``"gradient"`` (default; largest dense gradient) or ``"random"`` (SET).
        scope: ``"global"`` (default; all layers compete) or ``"layer"`` (RigL: each layer keeps its ERK share, which is
            recomputed for the remaining channels).
        round_channels: keep as many extra channels per layer as make its width a multiple of this; default 1. Never
            removes more than asked for.

    Raises:
        ChaseError: naming the option and its value.
    """

    density: float = 0.1
    channel_sparsity: float = 0.5
    distribution: str = "erk"
    explore: bool = True
    exploration_interval: int | None = None
    channel_interval: int | None = None
    soft_bound: bool = True
    death_rate: float = 0.05
    bound_extra: float = 0.0
    phase_a_end: float = 0.8
    removal_end: float = 0.8
    drop_start: float = 0.5
    drop_end: float = 0.005
    explore_until: float = 1.0
    min_layer_factor: float = 0.2
    score: str = "umm"
    growth: str = "gradient"
    scope: str = "global"
    round_channels: int = 1

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0.0 <= self.channel_sparsity < 1.0:
            raise ChaseError(f"channel_sparsity={self.channel_sparsity} is outside [0, 1)")
        if not 0.0 < self.min_layer_factor <= 1.0:
            raise ChaseError(f"min_layer_factor={self.min_layer_factor} (beta) is outside (0, 1]")
        if not 0.0 < self.removal_end <= 1.0:
            raise ChaseError(f"removal_end={self.removal_end} is outside (0, 1]: channel removal ends within the run")
        for option in ("death_rate", "phase_a_end", "drop_start", "drop_end", "explore_until"):
            value = getattr(self, option)
            if not 0.0 <= value <= 1.0:
                raise ChaseError(f"{option}={value} is outside [0, 1]")
        if not 0.0 <= self.bound_extra <= self.death_rate:
            raise ChaseError(f"bound_extra={self.bound_extra} is outside [0, death_rate={self.death_rate}]")
        for option in ("exploration_interval", "channel_interval", "round_channels"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ChaseError(f"{option}={value} must be an integer of at least 1")
        choices: dict[str, tuple[str, ...]] = {
            "distribution": DISTRIBUTIONS,
            "score": SCORE_NAMES,
            "growth": GROWTHS,
            "scope": SCOPES,
        }
        for option, names in choices.items():
            value = getattr(self, option)
            if value not in names:
                raise ChaseError(f"{option}={value!r} is unknown; choose one of {', '.join(names)}")

    def schedule(self, total_steps: int) -> Schedule:
        """The options in steps, for a run of ``total_steps`` (T).

        Raises:
            ChaseError: T below 1, or an interval longer than the run.
        """
        if total_steps < 1:
            raise ChaseError(f"total_steps={total_steps} must be at least 1")
        exploration = self.exploration_interval or min(1000, max(1, total_steps // 24))
        channel = self.channel_interval or min(2 * exploration, total_steps)
        for option, value in (("exploration_interval", exploration), ("channel_interval", channel)):
            if value > total_steps:
                raise ChaseError(f"{option}={value} is longer than the run of total_steps={total_steps}")
        return Schedule(
            total_steps=total_steps,
            exploration_interval=exploration,
            channel_interval=channel,
            phase_a_steps=round(self.phase_a_end * total_steps) if self.soft_bound else 0,
            removal_end=max(1, round(self.removal_end * total_steps)),
            explore_until=round(self.explore_until * total_steps),
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Times of one run, in optimizer steps counted from 1."""

    total_steps: int
    exploration_interval: int
    channel_interval: int
    phase_a_steps: int
    removal_end: int
    explore_until: int
