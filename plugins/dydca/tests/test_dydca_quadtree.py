"""The patch plan tiles every frame exactly, is what the scores say, and survives packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait_dydca.clips import Clip, generated
from plait_dydca.degradation import downscale, upscale
from plait_dydca.errors import DydcaError
from plait_dydca.measures import psnr
from plait_dydca.options import DydcaOptions
from plait_dydca.quadtree import (
    PatchPlan,
    area_share,
    cluster_plan,
    controlled,
    cut_by_scores,
    require_tiling,
    score_clip,
)
from plait_dydca.routing import Gate, by_shape, gradient_energy, plan_clip

pytestmark = pytest.mark.smoke


def clip_of(height: int, width: int, frames: int = 2, scale: int = 2, seed: int = 0) -> Clip:
    random = np.random.default_rng(seed)
    high = random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    high[:, : height // 2] //= 8  # the upper half is easier
    return Clip("noise", high, np.stack([downscale(f, scale) for f in high]), scale, tuple(range(frames)))


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 3),
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    levels=st.integers(2, 3),
    seed=st.integers(0, 99),
    quantile=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_every_plan_tiles_exactly_and_survives_packing(
    frames: int, size: tuple[int, int], grid: tuple[int, int], levels: int, seed: int, quantile: float
) -> None:
    random = np.random.default_rng(seed)
    sides = [2 ** (levels - 1 - level) for level in range(levels)]
    scores = [random.random((frames, -(-grid[1] // s), -(-grid[0] // s))) for s in sides]
    plan, tau = cut_by_scores(scores, size, grid, None, quantile)
    require_tiling(plan.patches, frames, size)
    assert set(plan.patches[:, 5]) <= set(range(levels))
    again = PatchPlan.unpacked(plan.packed(), "quadtree", frames, size, grid, levels)
    assert np.array_equal(again.patches, plan.patches)
    assert len(tau) == levels - 1
    if quantile == 0:
        assert set(plan.patches[:, 5]) == {levels - 1}
    if quantile == 1:
        assert len(plan.patches) == frames * grid[0] * grid[1]


def test_a_plan_by_hand() -> None:
    """4x2 cells on 9x21 pixels: the left square is split, the last column and row take the remainder."""
    plan = PatchPlan("quadtree", 1, (9, 21), (4, 2), 2, np.array([1, 0], np.uint8))
    assert plan.patches.tolist() == [
        [0, 0, 0, 4, 5, 0],
        [0, 0, 5, 4, 5, 0],
        [0, 0, 10, 9, 11, 1],
        [0, 4, 0, 5, 5, 0],
        [0, 4, 5, 5, 5, 0],
    ]
    assert area_share(plan.patches, 0) == pytest.approx(90 / 189)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scores_are_the_psnr_of_shaved_squares(scale: int) -> None:
    clip = clip_of(48 * scale, 50 * scale, scale=scale)
    coarse, fine = score_clip(clip, (5, 4), 2)
    assert coarse.shape == (2, 2, 3)
    assert fine.shape == (2, 4, 5)
    guess = upscale(clip.lr[1], scale).astype(float)
    window = (slice(24 * scale + 4, 48 * scale - 4), slice(40 * scale + 4, 50 * scale - 4))  # the last is one cell wide
    wanted = psnr(float(np.square(guess[window] - clip.hr[1][window]).mean()))
    assert coarse[1, 1, 2] == pytest.approx(wanted)
    window = (slice(12 * scale + 4, 24 * scale - 4), slice(10 * scale + 4, 20 * scale - 4))
    wanted = psnr(float(np.square(guess[window] - clip.hr[1][window]).mean()))
    assert fine[1, 1, 1] == pytest.approx(wanted)


def test_an_unfitted_network_may_score() -> None:
    clip = clip_of(96, 96)
    perfect = {low.tobytes(): high for low, high in zip(clip.lr, clip.hr, strict=True)}
    (scores,) = score_clip(clip, (3, 3), 1, lambda low: perfect[low.tobytes()])
    assert (scores == 100).all()


def test_thresholds_split_what_is_not_better() -> None:
    scores = [np.array([[[40.0, 39.9], [41.0, 40.1]]]), np.zeros((1, 4, 4))]
    plan, tau = cut_by_scores(scores, (64, 64), (4, 4), (40.0,), 0.9)
    assert plan.code.tolist() == [1, 1, 0, 0]  # score <= tau
    assert tau == (40.0,)
    plan, tau = cut_by_scores(scores, (64, 64), (4, 4), None, 0.5)
    assert plan.code.tolist() == [1, 1, 0, 0]
    assert tau == (40.0,)  # reported in dB


def test_three_levels_ask_only_the_children_of_split_squares() -> None:
    scores = [np.array([[[30.0, 50.0]]]), np.full((1, 2, 4), 45.0), np.zeros((1, 4, 8))]
    scores[1][0, 0, 0] = 20.0
    plan, _ = cut_by_scores(scores, (64, 128), (8, 4), (40.0, 25.0), 0.5)
    assert plan.code.tolist() == [1, 0, 1, 0, 0, 0]
    assert [(plan.patches[:, 5] == path).sum() for path in range(3)] == [4, 3, 1]


def test_controls_keep_the_share_and_turn_the_order() -> None:
    clip = generated(2, every=20)
    scores = score_clip(clip, (10, 4), 2)
    plain, _ = cut_by_scores(scores, (136, 320), (10, 4), None, 0.4)
    for labels in ("random", "inverted"):
        moved, _ = cut_by_scores(controlled(scores, labels, 0), (136, 320), (10, 4), None, 0.4)
        assert moved.code.sum() == plain.code.sum()
        assert (moved.code != plain.code).any()
    easy, hard = scores[0].reshape(-1)[moved.code == 1], scores[0].reshape(-1)[moved.code == 0]
    assert easy.min() >= hard.max()  # inverted: the best are split


def test_clusters_have_equal_counts_in_order_of_the_score() -> None:
    scores = [np.arange(24.0).reshape(2, 3, 4)[:, ::-1].copy()]
    plan = cluster_plan(scores, (30, 40), (4, 3), 3)
    require_tiling(plan.patches, 2, (30, 40))
    flat = scores[0].reshape(-1)
    for path in range(3):
        assert sorted(flat[plan.code == path]) == list(range(8 * path, 8 * path + 8))
    again = PatchPlan.unpacked(plan.packed(), "clusters", 2, (30, 40), (4, 3), 3)
    assert np.array_equal(again.code, plan.code)


def test_chunks_are_equal_parts_of_the_time() -> None:
    plan = PatchPlan("chunks", 25, (10, 12), (4, 3), 5, np.zeros(0, np.uint8))
    require_tiling(plan.patches, 25, (10, 12))
    assert np.bincount(plan.patches[:, 5]).tolist() == [5] * 5
    assert plan.packed() == b""
    with pytest.raises(DydcaError, match="5 parts of the time for 3 frames"):
        plan_clip(clip_of(96, 96, 3), DydcaOptions(baseline="chunks", grid=(4, 4)))


def test_what_does_not_tile_is_refused() -> None:
    good = PatchPlan("quadtree", 1, (20, 20), (2, 2), 2, np.array([1], np.uint8)).patches
    require_tiling(good, 1, (20, 20))
    for change, message in (
        ((0, 1, 1), "does not tile frame 1"),
        ((3, 4, 9), "does not tile"),
        ((3, 4, 11), "outside"),
    ):
        bad = good.copy()
        bad[change[0], change[1]] = change[2]
        with pytest.raises(DydcaError, match=message):
            require_tiling(bad, 1, (20, 20))
    with pytest.raises(DydcaError, match="does not fit 1 frames"):
        _ = PatchPlan("quadtree", 1, (20, 20), (4, 4), 2, np.array([1], np.uint8)).patches
    long = PatchPlan("quadtree", 9, (40, 40), (4, 4), 2, np.ones(36, np.uint8)).packed()
    with pytest.raises(DydcaError, match="does not fit"):
        PatchPlan.unpacked(long, "quadtree", 2, (40, 40), (4, 4), 2)
    with pytest.raises(DydcaError, match="the plan is damaged"):
        PatchPlan.unpacked(b"nonsense", "quadtree", 2, (40, 40), (4, 4), 2)


def test_cells_that_are_too_small_are_refused() -> None:
    with pytest.raises(DydcaError, match=r"grid = 10x4 .* 8 are the least"):
        score_clip(clip_of(96, 96), (10, 4), 2)


@pytest.mark.parametrize("blocks", [(4, 2), (4, 2, 1)])
def test_the_route_by_shape_agrees_with_the_plan_where_the_grid_divides(blocks: tuple[int, ...]) -> None:
    clip = generated(2, every=20)
    routing = plan_clip(clip, DydcaOptions(blocks=blocks, grid=(8, 4)))
    assert np.array_equal(by_shape(routing.plan), routing.plan.patches[:, 5])
    shaped = plan_clip(clip, DydcaOptions(blocks=blocks, grid=(8, 4), route="shape"))
    assert np.array_equal(shaped.patches, routing.patches)


def test_the_gate_guesses_from_the_low_resolution_frame_alone() -> None:
    clip = generated(2, every=10)
    routing = plan_clip(clip, DydcaOptions(gate="lr"))
    assert routing.side_bytes == 8
    assert 80 < routing.agreement <= 100
    assert routing.gate is not None
    player = routing.gate.plan(clip.lr, (10, 4))
    assert np.array_equal(player.code, routing.plan.code)
    one = routing.gate.plan(clip.lr[1:2], (10, 4))
    assert np.array_equal(one.code, routing.plan.code[10:20])  # frame by frame as for all


def test_gradient_energy_by_hand_and_a_gate_that_separates() -> None:
    frame = np.zeros((1, 16, 32, 3), np.uint8)
    frame[0, :, 24:] = 10  # one step of 30 grey levels (three colours) down 16 rows
    assert gradient_energy(frame, (4, 2)).tolist() == [[[0.0, 16 * 30 / 256]]]
    plan = PatchPlan("quadtree", 1, (16, 32), (4, 2), 2, np.array([0, 1], np.uint8))
    gate = Gate.fitted(frame, plan)
    assert gate.weight > 0
    assert gate.plan(frame, (4, 2)).code.tolist() == [0, 1]


def test_the_generated_clip_is_neither_easy_nor_hard() -> None:
    clip = generated(2)
    coarse, _ = score_clip(clip, (10, 4), 2)
    assert 0.3 < (coarse <= 40).mean() < 0.7
    assert np.array_equal(generated(2).hr, clip.hr)
