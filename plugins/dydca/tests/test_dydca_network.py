"""The paths: sizes of the paper's table, first weights, folding, the halo, and frames put together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from plait_dydca.bodies import (
    EDSR,
    ESPCN,
    WDSR,
    bicubic_kernel,
    bicubic_start,
    folded,
    macs_per_pixel,
    plain_parameters,
    receptive_radius,
)
from plait_dydca.degradation import upscale
from plait_dydca.errors import DydcaError
from plait_dydca.network import RoutedNetwork, frame_macs, groups, reconstruct, require_halo, windows
from plait_dydca.quadtree import PatchPlan


def smooth_frame(height: int = 34, width: int = 40, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return upscale(coarse, 4)[:height, :width]


@pytest.mark.parametrize(
    ("scale", "blocks", "expansion", "parameters", "macs"),
    [
        (2, 4, 2, 153_116, 152_676),
        (3, 4, 2, 158_591, 158_121),
        (4, 4, 2, 166_256, 165_744),
        (2, 2, 2, 79_196, 78_948),
        (3, 2, 2, 84_671, 84_393),
        (4, 2, 2, 92_336, 92_016),
        (2, 16, 4, 1_187_484, None),
        (3, 16, 4, 1_192_959, None),
        (4, 16, 4, 1_200_624, None),
    ],
)
def test_sizes_of_the_card(scale: int, blocks: int, expansion: int, parameters: int, macs: int | None) -> None:
    body = WDSR(scale, blocks, 32, expansion)
    assert plain_parameters(body) == parameters
    assert sum(p.numel() for p in folded(body).parameters()) == parameters
    formula = 27 * 32 + 18 * blocks * expansion * 32**2 + 27 * 32 * scale**2 + 225 * scale**2
    assert macs_per_pixel(body) == formula
    assert macs is None or macs_per_pixel(body) == macs


def test_work_is_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for body in (WDSR(2, 3, 8), EDSR(3, 2, 8), ESPCN(4, 2, 8)):
        with FlopCounterMode(display=False) as counter:
            folded(body)(torch.rand(2, 3, 9, 11))
        assert counter.get_total_flops() == 2 * macs_per_pixel(body) * 2 * 9 * 11


def test_gains_and_biases_at_the_start() -> None:
    body = WDSR(2, 4, 8)
    gains = {name: float(p.detach().flatten()[0]) for name, p in body.named_parameters() if name.endswith("original0")}
    assert gains["head.parametrizations.weight.original0"] == 1
    assert gains["a.3.parametrizations.weight.original0"] == 2
    assert gains["b.3.parametrizations.weight.original0"] == 0.5  # 1/sqrt(4)
    assert all(not p.any() for name, p in body.named_parameters() if name.endswith("bias"))
    plain = WDSR(2, 4, 8, weight_norm=False)
    for name, gain in (("a.0", 2.0), ("b.0", 0.5), ("skip", 1.0)):
        norms = plain.get_submodule(name).weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, gain))


def test_the_caller_keeps_its_tensor() -> None:
    x = torch.rand(1, 3, 8, 8)
    before = x.clone()
    for body in (WDSR(2, 1, 4), EDSR(2, 1, 4), ESPCN(2, 1, 4)):
        body(x)
        assert torch.equal(x, before)


def test_kernels_are_bicubic() -> None:
    kernel = bicubic_kernel(2)
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(4, dtype=torch.float64))
    t = 0.25  # place 0 lies a quarter of a pixel left of the centre
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * (2 - t) ** 3 + 2.5 * (2 - t) ** 2 - 4 * (2 - t) + 2
    row = kernel[0].sum(0)
    assert row[2] == pytest.approx(near)
    assert row[4] == 0
    assert row[0] == pytest.approx(far)


@pytest.mark.parametrize(("scale", "weight_norm"), [(2, True), (3, True), (4, True), (2, False)])
def test_a_network_begins_as_pillow_up_samples(scale: int, weight_norm: bool) -> None:
    """Pillow rounds between its two passes: mean <= 0.25 and at most 6 grey levels, the frame's border left out."""
    frame = smooth_frame()
    network = RoutedNetwork.of(WDSR(scale, 2, 8, weight_norm=weight_norm), (2,), "bicubic")
    with torch.no_grad():
        tail = network.paths[0].tail
        (tail.parametrizations.weight.original0 if weight_norm else tail.weight).zero_()
    plan = PatchPlan("whole", 1, frame.shape[:2], (1, 1), 1, np.zeros(0, np.uint8))
    with torch.no_grad():
        mine = reconstruct(frame, plan.patches, lambda path, x: network(x, path), scale, 0)
    inner = (slice(3 * scale, -3 * scale),) * 2
    difference = np.abs(mine[inner].astype(int) - upscale(frame, scale)[inner])
    assert difference.mean() <= 0.25
    assert difference.max() <= 6


def test_a_network_without_a_skip_cannot_begin_so() -> None:
    with pytest.raises(DydcaError, match=r"init = 'bicubic' needs a network with a skip .* ESPCN"):
        bicubic_start(ESPCN(2))


def test_folding_is_exact_and_leaves_the_network_alone() -> None:
    body = WDSR(3, 2, 8)
    before, x = copy.deepcopy(body.state_dict()), torch.rand(2, 3, 9, 10)
    state = torch.get_rng_state()
    plain = folded(body)
    assert torch.equal(torch.get_rng_state(), state)  # no random number is drawn
    torch.testing.assert_close(plain(x), body(x), rtol=0, atol=1e-6)
    body(x).sum().backward()  # the original still trains
    assert body.head.parametrizations.weight.original1.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert not any("parametrizations" in name for name in plain.state_dict())


def test_a_folded_network_may_be_narrower() -> None:
    body = WDSR(2, 1, 4)
    narrow = folded(WDSR(2, 1, 4, weight_norm=False))
    narrow.a[0].weight = nn.Parameter(narrow.a[0].weight[:5].detach())
    narrow.a[0].bias = nn.Parameter(narrow.a[0].bias[:5].detach())
    narrow.b[0].weight = nn.Parameter(narrow.b[0].weight[:, :5].detach())
    assert plain_parameters(narrow) < plain_parameters(body)
    assert folded(narrow)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_windows_repeat_the_edge() -> None:
    frames = np.arange(2 * 6 * 7 * 3, dtype=np.uint8).reshape(2, 6, 7, 3)
    cut = windows(frames, np.array([[1, 0, 5, 3, 2, 0], [0, 3, 0, 3, 2, 0]]), 2)
    padded = np.pad(frames, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    assert np.array_equal(cut[0], padded[1, 0:7, 5:11])
    assert np.array_equal(cut[1], padded[0, 3:10, 0:6])


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_halo_of_the_receptive_radius_gives_the_whole_frame(blocks: int) -> None:
    """Patches with r >= 2B + 2 equal the whole frame where the frame's own border is not seen; smaller ones do not."""
    torch.manual_seed(0)
    network = RoutedNetwork([WDSR(2, blocks, 6)]).eval()
    frame = smooth_frame(48, 48)
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    radius = receptive_radius(blocks)
    assert radius == 2 * blocks + 2
    inner = np.array([[0, 12, 12, 24, 24, 0]])
    with torch.no_grad():
        whole = network(x, 0)[..., 24:72, 24:72]
        gaps = []
        for halo in (0, radius - 1, radius):
            cut = torch.from_numpy(windows(frame[None], inner, halo)).permute(0, 3, 1, 2).float() / 255
            gaps.append(float((network(cut, 0, halo) - whole).abs().max()))
    assert gaps[0] > 1e-2
    assert gaps[2] < 2e-6
    assert gaps[1] > gaps[2]


def test_frames_are_put_together_from_the_right_paths() -> None:
    """Each path paints its own number: the frame shows the plan."""
    plan = PatchPlan("quadtree", 1, (18, 22), (4, 4), 2, np.array([1, 0, 0, 1], np.uint8))
    frame, asked = smooth_frame(18, 22), []

    def paint(path: int, x: torch.Tensor) -> torch.Tensor:
        asked.append((path, tuple(x.shape)))
        return torch.full((len(x), 3, 2 * x.shape[2], 2 * x.shape[3]), (100 + path) / 255)

    for largest in (None, 25):
        out = reconstruct(frame, plan.patches, paint, 2, 1, largest=largest)
        for _, y, x, height, width, path in plan.patches:
            assert (out[2 * y : 2 * (y + height), 2 * x : 2 * (x + width)] == 100 + path).all()
    assert len({shape for _, shape in asked}) > 2
    assert max(shape[0] for _, shape in asked[-6:]) == 1  # with a limit of pixels


def test_groups_have_one_path_and_one_shape() -> None:
    patches = np.array([[0, 0, 0, 4, 4, 0], [0, 4, 0, 4, 4, 1], [0, 0, 4, 4, 4, 0], [0, 0, 8, 4, 5, 0]])
    assert sorted(map(list, groups(patches))) == [[0, 2], [1], [3]]


def test_work_of_a_frame_counts_the_halo() -> None:
    paths = [WDSR(2, 2, 8), WDSR(2, 1, 8)]
    patches = np.array([[0, 0, 0, 10, 20, 0], [0, 10, 0, 10, 20, 1], [1, 0, 0, 20, 20, 1]])
    deep, shallow = (macs_per_pixel(path) for path in paths)
    assert frame_macs(patches, 2, paths, 0) == (200 * deep + 600 * shallow) / 2
    assert frame_macs(patches, 2, paths, 3) == (16 * 26 * (deep + shallow) + 26 * 26 * shallow) / 2


def test_a_halo_larger_than_a_patch_is_refused() -> None:
    require_halo(8, np.array([[0, 0, 0, 8, 9, 0]]))
    with pytest.raises(DydcaError, match="halo = 9 is larger than the smallest patch"):
        require_halo(9, np.array([[0, 0, 0, 8, 9, 0]]))


def test_paths_share_nothing_and_any_depth_can_be_had() -> None:
    network = RoutedNetwork.of(EDSR(2, 9, 8), (3, 1), "paper")
    assert [path.blocks for path in network.paths] == [3, 1]
    network(torch.rand(1, 3, 8, 8), 1).sum().backward()
    assert all(p.grad is None for p in network.paths[0].parameters())
    groups_of = network.channel_groups()
    assert groups_of[0] == ("paths.0.a.0", None, ["paths.0.b.0"])
    assert len(groups_of) == 4
    with pytest.raises(DydcaError, match="scale = 5"):
        WDSR(5)
