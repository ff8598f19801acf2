"""Options of the plugin: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait import PresetOptions
from plait_chase.presets import BASELINES


class ChaseOptions(PresetOptions):
    """What to make sparse, when, and how the network is shrunk; see README for the sources of the defaults."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    density: float = Field(0.1, gt=0, le=1, description="D: share of non-zero weights of the final network")
    channel_sparsity: float = Field(0.5, ge=0, lt=1, description="S_c: share of the prunable channels to remove")
    distribution: Literal["erk", "uniform"] = Field("erk", description="initial density of each layer")
    explore: bool = Field(True, description="drop and regrow weights; false keeps the first mask (static)")
    exploration_interval: int | None = Field(
        None, ge=1, description="steps between drop-and-grow updates; default 1000, less for short runs (T // 24)"
    )
    channel_interval: int | None = Field(
        None, ge=1, description="steps between channel removals; default twice the exploration interval"
    )
    soft_bound: bool = Field(True, description="phase A may hold more than K weights between updates (MEST)")
    death_rate: float = Field(0.05, ge=0, le=1, description="p: excess density of the soft bound at the start")
    bound_extra: float = Field(0.0, ge=0, le=1, description="excess of the soft bound at the end of phase A")
    phase_a_end: float = Field(0.8, ge=0, le=1, description="T_A as a share of the run")
    removal_end: float = Field(0.8, gt=0, le=1, description="t_f, the last channel removal, as a share of the run")
    drop_start: float = Field(0.5, ge=0, le=1, description="drop rate of phase B at step 0 (cosine over the run)")
    drop_end: float = Field(0.005, ge=0, le=1, description="drop rate of phase B at the last step")
    explore_until: float = Field(1.0, ge=0, le=1, description="share of the run after which the mask stays")
    min_layer_factor: float = Field(0.2, gt=0, le=1, description="beta: a layer keeps floor(C (1 - S_c) beta) channels")
    score: Literal["umm", "umm-layer", "masked-mean", "connection-density", "kernel-density", "random"] = Field(
        "umm", description="channel score; umm-layer divides by the layer's mean"
    )
    growth: Literal["gradient", "random"] = Field("gradient", description="largest dense gradient, or SET's random")
    scope: Literal["global", "layer"] = Field(
        "global", description="all layers compete, or each keeps its share (RigL)"
    )
    include: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="globs of the parameters to own, to share a model with another owner",
    )
    exclude: tuple[str, ...] = Field((), description="globs of parameters that stay dense and do not count in N")
    prune_residual: bool = Field(False, description="also prune residual streams (our reconstruction)")
    shrink_during: bool = Field(False, description="slice the network at each channel removal: same run, faster")
    round_channels: int = Field(1, ge=1, le=1024, description="keep extra channels so that widths are multiples of it")
    initialise: Literal["fan_out", "fan_in"] | None = Field(
        None, description="re-initialise as the official code does (Kaiming normal); default: the model's own"
    )
    bn_recalibrate: bool = Field(False, description="re-estimate norm statistics after the shrink (it needs none)")
    timing_repeats: int = Field(30, ge=0, le=1000, description="timed batches, dense against shrunk; 0: no timing")
    timing_batch: int = Field(64, ge=1, le=4096, description="examples per timed batch")

    @model_validator(mode="after")
    def _bound_extra_within(self) -> ChaseOptions:
        if self.bound_extra > self.death_rate:
            raise ValueError(f"bound_extra = {self.bound_extra} exceeds death_rate = {self.death_rate}")
        return self
