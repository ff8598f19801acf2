"""What a run reports: quality, bytes and work of a routed network on its video, beside bicubic up-sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from plait.declare.results import Metric, Plot, Table

from .bodies import macs_per_pixel, plain_parameters
from .degradation import Array
from .measures import PatchErrors, psnr
from .network import RoutedNetwork, frame_macs
from .quadtree import area_share
from .routing import Routing

__all__ = ["costs", "quality", "tables"]


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


def costs(network: RoutedNetwork, routing: Routing, frames: int) -> dict[str, Metric]:
    """Bytes that a player gets beside the low-resolution video, without unused paths; multiplications of a frame."""
    paths, plan = list(network.paths), routing.side_bytes
    numbers = sum(plain_parameters(paths[path]) for path in routing.used)
    plain, padded = (frame_macs(routing.patches, frames, paths, halo) / 1e6 for halo in (0, routing.halo))
    return {
        "parameters": Metric(numbers, "parameters", "lower", "plain convolutions of the paths in use"),
        "plan_bytes": Metric(plan, "bytes", "lower", "compressed"),
        "delivered_fp32": Metric(4 * numbers + plan, "bytes", "lower", "weights and plan"),
        "delivered_fp16": Metric(2 * numbers + plan, "bytes", "lower", "weights of half precision and plan"),
        "macs_plain": Metric(plain, "MMACs", "lower", "a frame, without halo"),
        "macs": Metric(padded, "MMACs", "lower", "a frame, with halo"),
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
