"""Options of the plugin: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait import PresetOptions

from .presets import BASELINES

Severity = Literal[1, 2, 3, 4, 5]


class FairsamOptions(PresetOptions):
    """How FairSAM weighs, perturbs and is evaluated; the defaults are the card's, see README for what is inferred."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    weights: Literal["none", "group", "subgroup", "kamiran", "adaptive", "groupdro"] = Field(
        "group", description="instance weights v_i; none makes FairSAM plain SAM"
    )
    weights_power: float = Field(1.0, ge=0, le=1, description="exponent on the weight table before normalisation")
    rho: float | tuple[float, ...] = Field(
        0.05, description="radius of the perturbation, >= 0, in the weights' unit; per_group takes one value per group"
    )
    perturbation: Literal["weighted", "plain", "ascent_only", "per_group", "per_group_whole"] = Field(
        "weighted",
        description="where the weights act: both passes, descent only, ascent only, or one per group; per_group runs "
        "the groups' sub-batches, per_group_whole the whole batch, so that BatchNorm sees both",
    )
    asam: bool = Field(False, description="scale-invariant perturbation (ASAM); use rho 0.5 to 1")
    eta: float = Field(0.01, ge=0, description="ASAM's floor of the scale |w| + eta")
    interval: int = Field(1, ge=1, description="perturb every k-th step only; cost 1 + 1/k instead of 2")
    eta_q: float = Field(0.05, ge=0, description="step size of the adaptive and groupdro weights")
    adaptive_start: Literal["none", "group"] = Field(
        "none", description="adaptive weights at uniform q: 1 (card 2.5) or the group table (card 2.2)"
    )
    penalty: float = Field(0.0, ge=0, description="factor on the gap between the groups' mean losses (baseline)")
    sync_perturbation: bool = Field(False, description="over several ranks: one perturbation (True) or m-SAM (False)")
    corruptions: tuple[str, ...] = Field(
        ("gaussian_noise", "impulse_noise", "shot_noise"),
        description="corruptions of the test views; [] for data that are no images in [0, 1]",
    )
    severities: tuple[Severity, ...] = Field((2, 3, 4), min_length=1, description="their severities, 1..5")
    corruption_seed: int = Field(0, ge=0, description="base seed of the views' noise, the same for every method")
    train_corruption: str | None = Field(
        None, pattern=r"^[a-z_]+:[1-5]$", description="train on corrupted images, e.g. shot_noise:3 (transfer runs)"
    )

    @property
    def by_group(self) -> bool:
        """Whether groups act in training; else it is SAM, which needs none."""
        return self.weights != "none" or self.perturbation.startswith("per_group") or self.penalty > 0

    @model_validator(mode="after")
    def _check_rho(self) -> FairsamOptions:
        several = isinstance(self.rho, tuple)
        values = self.rho if isinstance(self.rho, tuple) else (self.rho,)
        if not values or any(value < 0 for value in values):
            raise ValueError(f"rho = {self.rho!r} must be >= 0")
        if several and not self.perturbation.startswith("per_group"):
            raise ValueError("several values of rho need perturbation = 'per_group' or 'per_group_whole'")
        if len(set(self.corruptions)) < len(self.corruptions):
            raise ValueError("corruptions names one corruption twice")
        return self
