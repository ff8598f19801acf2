"""What a run reports: quality, bytes and work of a routed network on its video, beside bicubic up-sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.declare.results import Metric, Plot, Table

from .bodies import macs_per_pixel, plain_parameters
from .clips import Clip
from .degradation import upscale
from .measures import PatchErrors, psnr, squared_error
from .network import RoutedNetwork, frame_macs
from .quadtree import PatchPlan, area_share

__all__ = ["delivered", "quality", "tables", "work"]

Array = npt.NDArray[np.int64]


def bicubic_frames(clip: Clip) -> list[float]:
    """Mean squared error of bicubic up-sampling, each frame."""
    pairs = zip(clip.lr, clip.hr, strict=True)
    return [squared_error(upscale(low, clip.scale), high) / high.size for low, high in pairs]


def quality(errors: PatchErrors, bicubic: Sequence[float]) -> dict[str, Metric | Table | Plot]:
    """Every PSNR, the gain on bicubic up-sampling, seams."""
    base = psnr(float(np.mean(bicubic)))
    shaved, seams = errors.patch_shaved, errors.seam_ratio
    frames = list(range(1, len(bicubic) + 1))
    shown: dict[str, Metric | Table | Plot] = {
        "psnr_video": Metric(errors.video, "dB", "higher", "stitched, one error over all pixels of all frames"),
        "psnr_frame_mean": Metric(errors.frame_mean, "dB", "higher", "mean over frames"),
        "bicubic": Metric(base, "dB", "higher", "psnr_video of bicubic up-sampling"),
        "gain": Metric(errors.video - base, "dB", "higher", "psnr_video over bicubic"),
    }
    if not math.isnan(shaved):
        shown["psnr_patch_shaved"] = Metric(shaved, "dB", "neither", "the published protocol; it leaves borders out")
        shown["psnr_inside"] = Metric(errors.inside, "dB", "neither", "the same, patches weighed by area")
        shown["border_gap"] = Metric(abs(errors.video - errors.inside), "dB", "lower", "psnr_video to psnr_inside")
    if not math.isnan(seams):
        shown["seam_ratio"] = Metric(seams, "", "lower", "error along borders over error elsewhere")
    if errors.capped:
        shown["capped_frames"] = Metric(errors.capped, "frames", "neither", "without any error")
    if len(errors.frames) == len(bicubic):
        curves = {"network": (frames, errors.frames), "bicubic": (frames, [psnr(mse) for mse in bicubic])}
        shown["frames"] = Plot("quality of each frame", "frame", "PSNR, dB", curves)
    return shown


def delivered(network: RoutedNetwork, plan: PatchPlan, side_bytes: int, used: Sequence[int]) -> dict[str, Metric]:
    """Bytes that a player gets beside the low-resolution video; paths without patches are left out."""
    numbers = sum(plain_parameters(network.paths[path]) for path in used)
    return {
        "parameters": Metric(numbers, "parameters", "lower", "plain convolutions of the paths in use"),
        "plan_bytes": Metric(side_bytes, "bytes", "lower", "compressed"),
        "delivered_fp32": Metric(4 * numbers + side_bytes, "bytes", "lower", "weights and plan"),
        "delivered_fp16": Metric(2 * numbers + side_bytes, "bytes", "lower", "weights of half precision and plan"),
    }


def work(network: RoutedNetwork, patches: Array, frames: int, halo: int) -> dict[str, Metric]:
    """Multiplications of a frame."""
    paths = list(network.paths)
    return {
        "macs_plain": Metric(frame_macs(patches, frames, paths, 0) / 1e6, "MMACs", "lower", "a frame, without halo"),
        "macs": Metric(frame_macs(patches, frames, paths, halo) / 1e6, "MMACs", "lower", "a frame, with halo"),
    }


def tables(
    network: RoutedNetwork, patches: Array, errors: PatchErrors, steps: Sequence[int], pixels: Sequence[int]
) -> Table:
    """What each path is and did."""
    rows = []
    for path, body in enumerate(network.paths):
        mine = torch.from_numpy(patches[:, 5] == path)
        size = [getattr(body, "blocks", "-"), plain_parameters(body), macs_per_pixel(body), int(mine.sum())]
        quality = [f"{100 * area_share(patches, path):.1f}", f"{errors.of(mine):.2f}"]
        rows.append([path, *size, *quality, steps[path], pixels[path]])
    columns = ["path", "blocks", "parameters", "MACs a pixel", "patches", "area %", "PSNR dB", "steps", "LR pixels"]
    return Table("paths, hardest first", columns, rows)


def joined(outputs: Tensor, index: Tensor) -> Tensor:
    """Kept errors in the order of the plan's patches."""
    ordered = torch.empty_like(outputs)
    ordered[index] = outputs
    return ordered
