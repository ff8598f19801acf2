"""Data sources of the plugin: clips as data sets of whole frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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
    wanted = options.clip or ("generated" if embedded_file("bikes") is None else "bikes")
    made: dict[str, Any] = {"every": options.every, "frames": options.frames}
    clip = generated(options.scale, **made) if wanted == "generated" else embedded(wanted, options.scale, **made)
    note = "the clip is a generated one; a real one: pip install 'plait-dydca[demo]'"
    return clip_data(clip, [note] if options.clip is None and wanted == "generated" else [])


def load_video(options: VideoOptions, seed: int) -> Data:
    """A clip from a file or folder."""
    path = Path(options.path)
    return clip_data(read_clip(path, options.scale, every=options.every, frames=options.frames, crop=options.crop))


def clip_data(clip: Clip, notes: Sequence[str] = ()) -> Data:
    """A clip as plait's data: it is trained on and measured on the same frames, which is the purpose."""
    frames = FrameSplit(clip)
    info = DataInfo(
        "regression",
        input_shape=(3, *clip.lr.shape[1:3]),
        fields=frozenset({"input", "target", "frame", "index"}),
        extra={"scale": clip.scale},
    )
    none = Subset(frames, torch.zeros(0, dtype=torch.int64))
    return Data(info, frames, none, frames, keep=partial(kept, clip.scale), figures=headline, notes=notes)


def kept(scale: int, outputs: Tensor, batch: Batch) -> Tensor:
    """What an evaluation keeps of patches, or of whole frames."""
    return patch_errors(outputs, batch["target"], batch["borders"], scale)


def headline(outputs: Tensor, fields: Mapping[str, Any]) -> Mapping[str, Metric]:
    """The two figures of a whole video, of what was kept."""
    errors = PatchErrors(outputs, fields["frame"])
    return {
        "psnr_video": Metric(errors.video, "dB", "higher", "one error over all pixels of all frames"),
        "psnr_frame_mean": Metric(errors.frame_mean, "dB", "higher"),
    }
