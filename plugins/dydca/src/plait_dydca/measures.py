"""How near reconstructed frames are to the originals: every variant of PSNR, and seams. Card, section Metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .degradation import Frame

__all__ = ["CAP", "PatchErrors", "patch_errors", "psnr", "psnr_frame_mean", "psnr_video", "rounded", "squared_error"]

CAP = 100.0
"""dB of frames without any error."""


def psnr(mse: float) -> float:
    """dB of a mean squared error of values 0..255; `CAP` where it is 0."""
    return CAP if mse == 0 else 10 * math.log10(255**2 / mse)


def squared_error(a: Frame, b: Frame) -> int:
    """The summed squared error of two uint8 arrays, exactly."""
    difference = a.astype(np.int32) - b.astype(np.int32)
    return int(np.square(difference, dtype=np.int64).sum())


def psnr_video(truth: Sequence[Frame] | Frame, frames: Sequence[Frame] | Frame) -> float:
    """One error pooled over all pixels of all frames, dB: the headline."""
    total = sum(squared_error(a, b) for a, b in zip(truth, frames, strict=True))
    return psnr(total / sum(frame.size for frame in truth))


def psnr_frame_mean(truth: Sequence[Frame] | Frame, frames: Sequence[Frame] | Frame) -> float:
    """The mean over frames of each frame's PSNR, dB; it is never below `psnr_video` (but for capped frames)."""
    return float(np.mean([psnr(squared_error(a, b) / a.size) for a, b in zip(truth, frames, strict=True)]))


def rounded(outputs: Tensor) -> Tensor:
    """Values in [0, 1] as grey levels 0..255 of the same type, rounded and clamped."""
    return (outputs * 255).round().clamp(0, 255)


class PatchErrors:
    """The figures of a video from the errors of its patches.

    Args:
        errors: [N, 6] as of `patch_errors`.
        frame: number of the frame of each patch, int64 [N].
    """

    def __init__(self, errors: Tensor, frame: Tensor) -> None:
        values = errors.double()
        self._error, self._values, self._shaved, self._measured, self._band, self._in_band = values.unbind(1)
        count = int(frame.max()) + 1
        self.of_frame = torch.zeros(count, dtype=torch.float64).index_add_(0, frame, self._error)
        pixels = torch.zeros(count, dtype=torch.float64).index_add_(0, frame, self._values)
        self.of_frame = (self.of_frame / pixels)[pixels > 0]

    @property
    def video(self) -> float:
        """`psnr_video`."""
        return psnr(float(self._error.sum() / self._values.sum()))

    @property
    def frames(self) -> list[float]:
        """PSNR of each frame, dB."""
        return [psnr(float(mse)) for mse in self.of_frame]

    @property
    def frame_mean(self) -> float:
        """`psnr_frame_mean`."""
        return float(np.mean(self.frames))

    @property
    def capped(self) -> int:
        """Frames without any error."""
        return int((self.of_frame == 0).sum())

    @property
    def patch_shaved(self) -> float:
        """The published protocol: scale + 4 pixels shaved off each side, each patch counts 1; nan: none is left."""
        there = self._measured > 0
        return psnr(float(self._shaved[there].mean())) if bool(there.any()) else math.nan

    @property
    def inside(self) -> float:
        """The same pixels, each patch counting as much as its area: next to `video` it shows the borders alone."""
        weights = self._values * (self._measured > 0)
        return psnr(float((self._shaved * weights).sum() / weights.sum())) if bool(weights.any()) else math.nan

    @property
    def seam_ratio(self) -> float:
        """Error near borders between patches over the error elsewhere; 1: no seams, nan: no borders or no error."""
        inside, outside = self._in_band.sum(), (self._values - self._in_band).sum()
        near, far = self._band.sum() / inside, (self._error - self._band).sum() / outside
        return float(near / far) if inside > 0 and outside > 0 and far > 0 else math.nan

    def of(self, chosen: Tensor) -> float:
        """PSNR over the patches where ``chosen`` [N] is true, dB; nan: none."""
        return psnr(float(self._error[chosen].sum() / self._values[chosen].sum())) if bool(chosen.any()) else math.nan


def patch_errors(outputs: Tensor, target: Tensor, borders: Tensor, scale: int) -> Tensor:
    """What `PatchErrors` needs of patches of one shape.

    Args:
        outputs: reconstructed [B, 3, H, W] in [0, 1].
        target: the truth, likewise.
        borders: whether above, below, left and right of a patch is another one, bool [B, 4].
        scale: the up-sampling factor: half the width of the band along a border, pixels.

    Returns:
        [B, 6] float64: summed squared error and number of values; mean squared error without scale + 4 pixels of each
        side and number of values; the first two along borders.
    """
    wrong = (rounded(outputs) - rounded(target)).double().square().sum(1)
    height, width = wrong.shape[1:]
    shave = scale + 4
    inner = wrong[:, shave : height - shave, shave : width - shave].flatten(1)
    top, bottom, left, right = (borders[:, side, None] for side in range(4))
    y, x = torch.arange(height, device=wrong.device), torch.arange(width, device=wrong.device)
    rows = (top & (y < scale)) | (bottom & (y >= height - scale))
    columns = (left & (x < scale)) | (right & (x >= width - scale))
    band = rows[:, :, None] | columns[:, None, :]
    values = torch.full((len(wrong),), 3.0 * height * width, dtype=torch.float64, device=wrong.device)
    measured = torch.full_like(values, 3.0 * inner.shape[1])
    return torch.stack(
        [
            wrong.sum((1, 2)),
            values,
            inner.sum(1) / measured.clamp(min=1),
            measured,
            (wrong * band).sum((1, 2)),
            3.0 * band.sum((1, 2)).double(),
        ],
        1,
    )
