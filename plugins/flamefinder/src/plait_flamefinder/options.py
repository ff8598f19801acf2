"""Options of the method, its data and its models, and presets of what is compared. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from plait import Options, PresetOptions

Attention = Literal["none", "embed", "per_loss_global", "per_loss_gated", "dacl"]
CentreUpdate = Literal["gradient", "delta"]
Decision = Literal["head", "center_l2", "center_cos"]
Rule = Literal["paper-like", "loose", "strict"]
SmokeRule = Literal["dark-channel", "relative"]

_BCE = {"l_CL": 0.0, "l_TCL": 0.0, "l_TCCL": 0.0, "attention": "none", "decision": "head"}
_WIDE = {"m": 50.0, "attention": "none"}

BASELINES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "wide-margin": _WIDE,
    "wide-margin-gain": {**_WIDE, "gain_aug": 0.2},
    "bce": _BCE,
    "bce-gain": {**_BCE, "gain_aug": 0.2},
    "centre-loss": {**_BCE, "l_CL": 1.0},
}
"""Preset -> option values: the method as the card has it, its best variant on validation frames without and with random
thermal gain, the paper's baseline (a classifier alone), the same with gain, and with the centre loss (Wen et al. 2016).
"""


class FlamefinderOptions(PresetOptions):
    """Losses, centres, attention and the decision; every default that the paper does not give is in the README."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    l_CL: float = Field(1.0, ge=0, le=1000, description="weight of the centre loss")
    l_TCL: float = Field(1.0, ge=0, le=1000, description="weight of the triplet centre loss")
    l_TCCL: float = Field(1.0, ge=0, le=1000, description="weight of the triplet cosine centre loss")
    l_rec: float = Field(0.0, ge=0, le=1000, description="weight of the reconstruction; 0: no decoder")
    rec_target: Literal["thermal", "rgb"] = Field(
        "thermal", description="what the decoder rebuilds: the thermal patch, or the RGB patch (field rgb)"
    )
    m: float = Field(5.0, ge=0, le=1000, description="margin of the triplet centre loss, half squared distance")
    m_c: float = Field(0.5, ge=0, le=2, description="margin of the cosine loss, 1 - cos")
    attention: Attention = Field(
        "embed",
        description="weights of the latent features: of z itself (embed), or inside the distances only, for each loss "
        "(per_loss_*), or of the centre loss by a gate on the feature map (dacl)",
    )
    theta_lr: float = Field(1e-3, gt=0, le=10, description="learning rate of weights inside the distances")
    center_update: CentreUpdate = Field(
        "gradient", description="centres by gradient (Adam), or by their class's mean difference after the step"
    )
    center_lr: float = Field(0.01, gt=0, le=10, description="learning rate of the centres (gradient)")
    alpha: float = Field(0.5, gt=0, le=1, description="step of the centres (delta)")
    decision: Decision = Field(
        "center_cos", description="what the exported detector decides by: the classifier, or the nearest centre"
    )
    centers: Literal["running", "mean"] = Field(
        "running", description="centres that it compares with: as trained, or the class means after training"
    )
    balanced: bool = Field(True, description="each batch of a run has as many rows of each class, with replacement")
    gain_aug: float = Field(
        0.0, ge=0, le=2, description="thermal gain of training patches exp(U(-a, a)), offset U(-a/2, a/2) of the range"
    )
    share_points: int = Field(20, ge=0, le=10_000, description="how often the losses' gradient shares are measured")
    latent_points: int = Field(
        400, ge=0, le=5000, description="points in the pictures of the latent space; 0: no pictures"
    )


class LfeOptions(Options):
    """The paper's encoder of local features, as reconstructed."""

    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (16, 32, 48, 64), min_length=1, max_length=8, description="channels of the blocks, each halves the side"
    )
    doubled: bool = Field(False, description="two convolutions in each block, as in VGG")
    latent: int = Field(32, ge=2, le=4096, description="d, length of the latent vector")


class BackboneOptions(Options):
    """A network of torchvision or timm as the encoder, from scratch, with its first convolution for one channel."""

    network: str = Field("torchvision:resnet18", pattern=r"^(torchvision|timm):\w+", description="library:name")
    latent: int = Field(32, ge=2, le=4096, description="d, length of the latent vector")


class SynthOptions(Options):
    """Options of ``flame-synth``."""

    train_frames: int = Field(300, ge=1, le=100_000, description="frames of 64 patches to train on")
    validation_frames: int = Field(50, ge=1, le=100_000, description="frames to choose by")
    test_frames: int = Field(150, ge=1, le=100_000, description="frames to test on")
    frame_seed: int = Field(0, ge=-1, le=10**6, description="which frames; -1: others for every seed of the run")
    rule: Rule = Field("paper-like", description="the RGB rule that labels the training patches")
    smoke: SmokeRule = Field("dark-channel", description="the smoke score that chooses them")
    min_flame_px: int = Field(1, ge=1, le=1024, description="mask pixels from which on a training patch is flame")
    rgb: bool = Field(False, description="training batches have the RGB patch (rec_target = rgb)")


class _PublishedOptions(Options):
    """What FLAME2 and FLAME3 have in common; the thresholds of the rules were fitted on ten real frames of FLAME3."""

    root: str = Field(min_length=1, description="the folder as published")
    rule: Rule = Field("strict", description="the RGB rule that labels patches; look at its masks first (annotate)")
    smoke: SmokeRule = Field("relative", description="the smoke score that finds unobscured patches")
    min_flame_px: int = Field(1, ge=1, le=4096, description="mask pixels from which on a patch is flame")
    rgb: bool = Field(False, description="training batches have the RGB patch (rec_target = rgb)")
    skip_bad: bool = Field(False, description="leave out frames that cannot be used, and count them")


class Flame2Options(_PublishedOptions):
    """Options of ``flame2``."""

    block: int = Field(500, ge=1, le=10**6, description="frames of video that stay in one split")
    max_frames: int = Field(1000, ge=3, le=10**6, description="frames that are used at most, evenly over the video")


class Flame3Options(_PublishedOptions):
    """Options of ``flame3``."""

    thermal: Literal["agc", "raw_jpg", "celsius"] = Field(
        "agc", description="an auto-gain of our own from degrees, the published pictures, or degrees as they are"
    )
    patch: int = Field(64, ge=8, le=512, description="side of a patch, pixels")
    split: Literal["time-block", "flight"] = Field("time-block", description="what stays in one split")
    block: float = Field(300.0, gt=0, le=1e6, description="seconds of a block of time")
