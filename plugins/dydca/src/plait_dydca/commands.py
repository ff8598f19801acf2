"""The plugin's commands: `plait dydca encode` and `plait dydca play`."""

from __future__ import annotations

import contextlib
import json as documents
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

import plait
from plait.errors import BadInput
from plait.loading import load_data
from plait.storage import progress as bars

from .buckets import FrameSplit
from .clips import HR, read_frames
from .network import RoutedNetwork
from .options import DydcaOptions
from .package import frames_to, open_package, require_free, write_package
from .routing import plan_clip
from .runtimes import build


def encode(
    video: Path,
    out: Path | None = None,
    scale: int = 2,
    epochs: int = 8,
    grid: str = "",
    channels: int = 16,
    every: int = 1,
    frames: int | None = None,
    crop: bool = False,
    half: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make the package that a player needs: low-resolution video, patch plan, and a network fitted to this video.

    The training is a run of plait in OUT.run, with its report; encoding again goes on where it was interrupted.

    Args:
        video: a video file, a folder of images, a folder of VSD4K, or raw UVG (.yuv).
        out: the new folder of the package (required).
        scale: up-sampling factor, 2, 3 or 4.
        epochs: passes over the video.
        grid: fine cells across and down, as 20x10; default: cells of about 48 low-resolution pixels.
        channels: width of the network.
        every: take each n-th frame.
        frames: frames at most.
        crop: cut off the last rows and columns that the scale does not divide.
        half: weights in half precision.
        seed: of the first weights and the batches.
        json: print one JSON document.
    """
    if out is None:
        raise BadInput("where to? Give --out with a new folder for the package.")
    require_free(out)
    settings = {
        "data.path": str(video),
        "data.scale": scale,
        "data.every": every,
        "data.crop": crop,
        "model.channels": channels,
    }
    if frames is not None:
        settings["data.frames"] = frames
    size = _first_size(video, scale) if not grid else (0, 0)
    options = {"grid": _grid(grid) if grid else tuple(max(1 + (side >= 16), round(side / 48)) for side in size)}
    folder = out.with_name(out.name + ".run")
    changes: dict[str, Any] = {"data": "video", "model": "wdsr", "settings": settings, "epochs": epochs, "seed": seed}
    run = plait.run(plugins={"dydca": options}, out=folder, go_on=True, progress=not json, **changes)
    data = load_data(run.recipe.data, run.recipe.seed)
    assert isinstance(data.test, FrameSplit)
    chosen = DydcaOptions(**run.recipe.plugins["dydca"])
    network = run.model
    assert isinstance(network, RoutedNetwork)
    routing = plan_clip(data.test.clip, chosen, run.recipe.seed)
    delivered = write_package(out, network, routing, data.test.clip, half=half)
    figures = {
        "frames": len(data.test.clip),
        "psnr_video": run.metrics["dydca/psnr_video"],
        "bicubic": run.metrics["dydca/bicubic"],
        "weights_and_plan_bytes": delivered,
        "lr_video_bytes": sum(file.stat().st_size for file in [*out.glob("lr.*"), *out.glob("lr/*")]),
        "out": str(out),
        "run": str(folder),
    }
    if json:
        print(documents.dumps(figures))
        return
    print(
        f"{counted(len(data.test.clip))}, {figures['psnr_video']:.2f} dB (bicubic {figures['bicubic']:.2f} dB). "
        f"Weights and plan {delivered:,} bytes, low-resolution video without loss {figures['lr_video_bytes']:,} bytes: "
        f"{out}"
    )
    if run.metrics["dydca/gain"] < 0:
        print("The network is worse than bicubic up-sampling: give more --epochs (and encode to another folder).")


def counted(frames: int) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{frames} frame{'s' * (frames != 1)}"


def _grid(text: str) -> tuple[int, int]:
    across, _, down = text.lower().partition("x")
    if not (across.isdigit() and down.isdigit() and int(across) and int(down)):
        raise BadInput(f"--grid {text}: give fine cells across and down, as 20x10.")
    return int(across), int(down)


def _first_size(video: Path, scale: int) -> tuple[int, int]:
    """Width and height of the low-resolution frames."""
    if scale not in (2, 3, 4):
        raise BadInput(f"--scale {scale} must be 2, 3 or 4.")
    source = video / HR if (video / HR).is_dir() else video
    first = next(read_frames(source), None)
    if first is None:
        raise BadInput(f"{video}: there is no frame in it.")
    height, width = first[0].shape[:2]
    return width // scale, height // scale


def play(
    package: Path,
    out: Path | None = None,
    runtime: Literal["eager", "inductor", "aoti", "onnxruntime", "openvino", "executorch"] = "eager",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Reconstruct the video of a package, frame by frame, into a file or a folder of pictures.

    A frame's time is from the decoding to the finished picture; the first five are warm-up.

    Args:
        package: a folder that `plait dydca encode` wrote.
        out: a video file (.mkv is without loss) or a new folder for PNG frames; default: only measure.
        runtime: what executes the network.
        threads: of the CPU; default: as torch chooses.
        json: print one JSON document.
    """
    if threads is not None:
        if threads < 1:
            raise BadInput(f"--threads {threads} must be at least 1.")
        torch.set_num_threads(threads)
    opened = open_package(package)
    if out is not None and not out.suffix:
        require_free(out)
    machine = build(runtime, opened.network)
    with contextlib.ExitStack() as closing:
        writer = closing.enter_context(frames_to(out)) if out is not None else None
        bar = bars.make(not json)
        bar.start(len(opened), 0, "play")
        closing.callback(bar.stop)
        spent, began = [], time.perf_counter()
        for number, (frame, moment) in enumerate(opened.frames(machine), 1):
            spent.append(time.perf_counter() - began)
            if writer is not None:
                writer.write(frame, moment)
            bar.advance(number, "")
            began = time.perf_counter()
    warm, unit = sorted(spent[5:] or spent), 1 if sys.platform == "darwin" else 1024
    said = {
        "frames": len(spent),
        "fps": 1 / statistics.median(warm),
        "median_ms": 1000 * statistics.median(warm),
        "p90_ms": 1000 * warm[min(len(warm) - 1, round(0.9 * (len(warm) - 1)))],
        "first_ms": 1000 * spent[0],
        "runtime": machine.name,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }
    if json:
        print(documents.dumps({**said, "out": None if out is None else str(out)}))
        return
    target = "" if out is None else f" Written: {out}"
    print(
        f"{counted(len(spent))}, {said['fps']:.1f} frames a second (median {said['median_ms']:.0f} ms, 90 % within "
        f"{said['p90_ms']:.0f} ms, first {said['first_ms']:.0f} ms), {said['runtime']}, {said['threads']} threads, "
        f"float32, {said['processor']}, {said['memory_mb']:.0f} MB at most.{target}"
    )
