"""PSNR in every variant against values by hand and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from plait_dydca.measures import CAP, PatchErrors, patch_errors, psnr, psnr_frame_mean, psnr_video, squared_error

pytestmark = pytest.mark.smoke


def frames(seed: int, count: int = 3, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def as_batch(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def test_psnr_by_hand() -> None:
    assert psnr(255**2) == 0
    assert psnr(1) == pytest.approx(48.1308036)
    assert psnr(0) == CAP == 100.0
    a, b = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert squared_error(a, b) == 12 * 255**2  # no overflow in either order
    assert squared_error(b, a) == 12 * 255**2


def test_one_pooled_error_is_not_the_mean_of_frames() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    wrong = truth.copy()
    wrong[0] += 1
    wrong[1] += 3
    assert psnr_video(truth, wrong) == pytest.approx(psnr(5))  # (1 + 9)/2
    assert psnr_frame_mean(truth, wrong) == pytest.approx((psnr(1) + psnr(9)) / 2)
    for seed in range(5):
        a, b = frames(seed), frames(seed + 100)
        assert psnr_frame_mean(a, b) >= psnr_video(a, b)
        mine = peak_signal_noise_ratio(as_batch(a) * 255, as_batch(b) * 255, data_range=255.0)
        assert psnr_video(a, b) == pytest.approx(float(mine), abs=1e-4)


def test_patches_give_the_figures_of_whole_frames() -> None:
    """Cut into quarters, whatever their order, the pooled error is that of the stitched video."""
    truth, guess = frames(1), frames(2)
    parts, of_frame = [], []
    for y in (0, 12):
        for x in (0, 12):
            window = (slice(None), slice(y, y + 12), slice(x, x + 12))
            borders = torch.tensor([[y > 0, y == 0, x > 0, x == 0]]).expand(3, 4)
            parts.append(patch_errors(as_batch(guess[window]), as_batch(truth[window]), borders, 2))
            of_frame.append(torch.arange(3))
    errors = PatchErrors(torch.cat(parts), torch.cat(of_frame))
    assert errors.video == pytest.approx(psnr_video(truth, guess), abs=1e-9)
    assert errors.frame_mean == pytest.approx(psnr_frame_mean(truth, guess), abs=1e-9)
    wrong = np.square(truth.astype(float) - guess)
    rows = np.zeros(24, bool)
    rows[10:14] = True  # two pixels on both sides of the border at 12
    band = rows[:, None] | rows
    assert errors.seam_ratio == pytest.approx(wrong[:, band].mean() / wrong[:, ~band].mean())
    assert math.isnan(errors.patch_shaved)  # 12 - 2 (2 + 4) leaves nothing


def test_the_published_protocol_shaves_and_counts_each_patch_once() -> None:
    small, large = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32)
    wrong_small, wrong_large = small.clone(), large.clone()
    wrong_small[..., 6:10, 6:10] = 2 / 255  # all that is left of 16 after 6 on each side: error 4
    wrong_large[..., 0, :] = 1.0  # shaved off
    none = torch.zeros(1, 4, dtype=torch.bool)
    rows = torch.cat([patch_errors(wrong_small, small, none, 2), patch_errors(wrong_large, large, none, 2)])
    errors = PatchErrors(rows, torch.tensor([0, 0]))
    assert errors.patch_shaved == pytest.approx(psnr((4 + 0) / 2))
    assert errors.inside == pytest.approx(psnr((4 * 256 + 0 * 1024) / (256 + 1024)))  # by area
    assert errors.of(torch.tensor([True, False])) == pytest.approx(psnr(16 * 4 / 256))


def test_frames_without_error_are_capped_and_counted() -> None:
    same = torch.rand(2, 3, 16, 16)
    worse = same.clone()
    worse[1] += 2 / 255
    errors = PatchErrors(patch_errors(worse, same, torch.zeros(2, 4, dtype=torch.bool), 2), torch.arange(2))
    assert errors.capped == 1
    assert errors.frames[0] == 100.0
    assert errors.video < 100


def test_outputs_are_rounded_and_clamped() -> None:
    truth = torch.tensor([0.0, 1.0, 10 / 255]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    close = truth + torch.tensor([-0.3, 0.7, 0.4 / 255]).view(1, 3, 1, 1)
    assert (
        PatchErrors(patch_errors(close, truth, torch.zeros(1, 4, dtype=torch.bool), 2), torch.tensor([0])).video == 100
    )
