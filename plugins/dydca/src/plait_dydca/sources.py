"""Data sources of the plugin: clips as data sets of whole frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import Data, DataInfo
from plait.data import Batch, Subset
from plait.declare.results import Metric

from .buckets import FrameSplit
from .clips import Clip, embedded, embedded_file, generated, read_clip
from .measures import PatchErrors, patch_errors
from .options import ClipOptions, VideoOptions

__all__ = ["clip_data", "load_clip", "load_video"]


def load_clip(options: ClipOptions, seed: int) -> Data:
    """A short clip out of a package; a generated one where no package is installed and none was asked for."""
    wanted, notes = options.clip, []
    if wanted is None:
        wanted = "bikes" if embedded_file("bikes") is not None else "generated"
        if wanted == "generated":
            notes = ["the clip is a generated one; a real one: pip install 'plait-dydca[demo]'"]
    if wanted == "generated":
        clip = generated(options.scale, every=options.every, frames=options.frames)
    else:
        clip = embedded(wanted, options.scale, every=options.every, frames=options.frames)
    return clip_data(clip, notes)


def load_video(options: VideoOptions, seed: int) -> Data:
    """A clip from a file or folder."""
    path = Path(options.path)
    clip = read_clip(path, options.scale, every=options.every, frames=options.frames, crop=options.crop)
    return clip_data(clip)


def clip_data(clip: Clip, notes: list[str] | None = None) -> Data:
    """A clip as plait's data: it is trained on and measured on the same frames, which is the purpose."""
    frames = FrameSplit(clip)
    info = DataInfo(
        "regression",
        input_shape=(3, *clip.lr.shape[1:3]),
        fields=frozenset({"input", "target", "frame", "index"}),
        extra={"scale": clip.scale},
    )
    none = Subset(frames, torch.zeros(0, dtype=torch.int64))
    return Data(info, frames, none, frames, keep=frame_errors(clip.scale), figures=frame_figures, notes=notes or ())


def frame_errors(scale: int) -> Any:
    """What an evaluation keeps of whole frames."""

    def keep(outputs: Tensor, batch: Batch) -> Tensor:
        no_borders = torch.zeros(len(outputs), 4, dtype=torch.bool, device=outputs.device)
        return patch_errors(outputs, batch["target"], no_borders, scale)

    return keep


def frame_figures(outputs: Tensor, fields: Mapping[str, Any]) -> Mapping[str, Metric]:
    """``psnr_video`` and ``psnr_frame_mean`` of whole frames."""
    return headline(PatchErrors(outputs, fields["index"]))


def headline(errors: PatchErrors) -> dict[str, Metric]:
    """The two figures of a whole video."""
    return {
        "psnr_video": Metric(errors.video, "dB", "higher", "one error over all pixels of all frames"),
        "psnr_frame_mean": Metric(errors.frame_mean, "dB", "higher"),
    }
