"""Annotation, smoke, patches, the generator with its reference statistics, and the data source flame-synth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from plait_flamefinder import synthesis, synthetic
from plait_flamefinder.annotation import flame_mask, without_specks
from plait_flamefinder.augmentation import gained, to_network, turned
from plait_flamefinder.errors import FlamefinderError
from plait_flamefinder.options import SynthOptions
from plait_flamefinder.patches import HOT_PX, POSITIVE_PX, cut, patch_means, patch_sums
from plait_flamefinder.smoke import OBSCURED, PARTIAL, UNOBSCURED, buckets, sky_mask, smoke_score


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


# ---- annotation ------------------------------------------------------------------------------------------------------
def scene(*colours: tuple[int, int, int]) -> np.ndarray:
    """A green frame with a 3 x 3 spot of each colour."""
    frame = np.full((64, 64, 3), (40, 70, 30), np.uint8)
    for number, colour in enumerate(colours):
        frame[8 * number + 2 : 8 * number + 5, 10:13] = colour
    return frame


@pytest.mark.smoke
def test_colours() -> None:
    orange, vegetation, rock, engine = (240, 140, 40), (60, 120, 40), (150, 150, 145), (230, 30, 30)
    mask = flame_mask(scene(orange, vegetation, rock, engine))
    assert mask.sum() == 9
    assert mask[2:5, 10:13].all()
    loose, strict = flame_mask(scene((200, 120, 90)), "loose"), flame_mask(scene((200, 120, 90)), "strict")
    assert (loose.sum(), strict.sum()) == (9, 0)


@pytest.mark.smoke
def test_specks() -> None:
    mask = np.zeros((9, 9), bool)
    mask[0, 0] = mask[1, 1] = True  # two, diagonal
    mask[4, 4] = mask[5, 5] = mask[6, 4] = True  # three, 8-connected
    assert np.argwhere(without_specks(mask)).tolist() == [[4, 4], [5, 5], [6, 4]]
    assert not without_specks(np.zeros((4, 4), bool)).any()


@pytest.mark.smoke
def test_frames_that_are_none() -> None:
    with pytest.raises(FlamefinderError, match=r"uint8 \[H, W, 3\], not float64 \[4, 4, 3\]"):
        flame_mask(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(FlamefinderError, match="no rule 'tight'"):
        flame_mask(scene(), "tight")  # type: ignore[arg-type]


# ---- patches and smoke -----------------------------------------------------------------------------------------------
@pytest.mark.smoke
def test_the_grid_lies_in_the_centre() -> None:
    frame = np.arange(7 * 9).reshape(7, 9)
    patches = cut(frame, 3)
    assert patches.shape == (2, 3, 3, 3)
    assert patches[0, 0].tolist() == frame[0:3, 0:3].tolist()
    assert patches[1, 2].tolist() == frame[3:6, 6:9].tolist()
    assert patch_sums(frame > 40, 3).sum() == (frame[:6] > 40).sum()
    np.testing.assert_allclose(patch_means(frame, 3)[1, 0], frame[3:6, 0:3].mean())
    assert cut(np.zeros((240, 254, 3)), 32).shape == (7, 7, 32, 32, 3)
    with pytest.raises(FlamefinderError, match="32 pixels is larger than the frame of 20 x 40"):
        cut(np.zeros((20, 40)), 32)


@pytest.mark.smoke
def test_buckets_and_scores() -> None:
    assert buckets(np.float32([0.1, 0.349, 0.35, 0.5, 0.51])).tolist() == [UNOBSCURED] * 2 + [PARTIAL] * 2 + [OBSCURED]
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, 32:] = 204
    score = smoke_score(frame, 32)
    np.testing.assert_allclose(score[:, 0], 0)
    np.testing.assert_allclose(score[:, 1], 0.8 * 29 / 32, atol=1e-6)  # the minimum filter reaches three pixels in


@pytest.mark.smoke
def test_bright_grass_and_sky_are_no_smoke_by_the_relative_score() -> None:
    grass = np.full((128, 128, 3), (190, 160, 120), np.uint8)
    grass[96:, :, :] = (30, 50, 25)
    grass[:32] = (150, 185, 235)
    smoky = grass.copy()
    smoky[32:64, 32:64] = (215, 215, 215)
    plain, relative = smoke_score(smoky, 32), smoke_score(smoky, 32, "relative")
    assert buckets(plain)[2, 2] != UNOBSCURED
    assert buckets(relative)[2, 2] == buckets(relative)[0, 0] == UNOBSCURED
    assert buckets(relative)[1, 1] == OBSCURED
    assert sky_mask(smoky)[:32].all()
    assert not sky_mask(smoky)[32:].any()


# ---- the generator ---------------------------------------------------------------------------------------------------
@pytest.mark.smoke
def test_a_seed_is_a_frame() -> None:
    first, again, other = synthesis.synthesise(7), synthesis.synthesise(7), synthesis.synthesise(8)
    for name in ("rgb", "thermal", "flame", "hot", "transmittance"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.thermal, other.thermal)
    assert first.rgb.dtype == first.thermal.dtype == np.uint8
    assert not (first.flame & first.hot).any()


def test_reference_statistics() -> None:
    """What the generator is: a change of these is another version, and measures every method anew."""
    patches = synthetic.patch_set("train", 40, 0)
    assert synthesis.VERSION == 1
    bucket, flame = synthetic.true_buckets(patches["transmittance"]), patches["flame_px"] >= POSITIVE_PX
    clear = (patches["flame_px"] == 0) | flame
    shares = np.bincount(bucket, minlength=3) / len(bucket)
    np.testing.assert_allclose(shares, [0.51, 0.22, 0.27], atol=0.03)
    flames = [float(flame[(bucket == b) & clear].mean()) for b in range(3)]
    np.testing.assert_allclose(flames, [0.160, 0.439, 0.468], atol=0.02)
    hot = (patches["hot_px"] > HOT_PX) & (patches["flame_px"] == 0)
    assert float(hot[bucket == UNOBSCURED].mean()) == pytest.approx(0.23, abs=0.03)
    unobscured = buckets(patches["score"][:, 0]) == UNOBSCURED
    label, truth = patches["rule_px"][unobscured, 0] > 0, patches["flame_px"][unobscured] > 0
    assert float(truth[label].mean()) == pytest.approx(0.954, abs=0.02)  # precision of the RGB rule
    assert float(label[truth].mean()) == pytest.approx(0.885, abs=0.02)  # its recall
    assert 0 < (label != truth).sum()  # the labels are noisy on purpose
    assert float(patches["thermal"].mean()) == pytest.approx(57.4, abs=4)


def test_the_smoke_score_ranks_the_true_smoke() -> None:
    from sklearn.metrics import roc_auc_score

    patches = synthetic.patch_set("train", 40, 0)
    bucket = synthetic.true_buckets(patches["transmittance"])
    chosen = bucket != PARTIAL
    assert roc_auc_score(bucket[chosen] == OBSCURED, patches["score"][chosen, 0]) > 0.999


def test_what_is_kept_is_what_is_made(cache: Path) -> None:
    fresh = synthetic.patch_set("validation", 2, 0)
    file = max((cache / "plait/flame-synth").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    kept = synthetic.patch_set("validation", 2, 0)
    for name in ("thermal", "rgb", "score", "rule_px"):
        assert np.array_equal(fresh[name], kept[name]), name
    file.write_bytes(b"damaged")
    again = synthetic.patch_set("validation", 2, 0)
    assert np.array_equal(again["thermal"], fresh["thermal"])
    assert not np.array_equal(synthetic.patch_set("validation", 2, 1)["thermal"], fresh["thermal"])
    assert not np.array_equal(synthetic.patch_set("test", 2, 0)["thermal"], fresh["thermal"])


# ---- the data source -------------------------------------------------------------------------------------------------
OPTIONS = SynthOptions(train_frames=6, validation_frames=2, test_frames=4)


def test_flame_synth() -> None:
    data = synthetic.load(OPTIONS, 0)
    data.check("flame-synth")
    train, test = data.train.__getitems__([0, 1, 2]), data.test.__getitems__([0, 1, 2])
    assert train["input"].dtype == torch.float32
    assert train["input"].shape == (3, 1, 32, 32)
    assert 0 <= float(train["input"].min()) <= float(train["input"].max()) <= 1
    assert "rgb" not in train
    assert set(data.train.fields["bucket"].tolist()) == {UNOBSCURED}
    assert set(data.test.fields["bucket"].tolist()) == {0, 1, 2}
    assert set(test) == {"input", "label", "group", "bucket", "hot", "frame", "patch", "index"}
    hot = data.test.fields["hot"] == 1
    assert not bool((data.test.fields["label"][hot] == 1).any())
    assert any("ambiguous" in note for note in data.notes)
    assert any("precision" in note for note in data.notes)
    paired = synthetic.load(OPTIONS.model_copy(update={"rgb": True}), 0)
    assert paired.train.__getitems__([0])["rgb"].shape == (1, 3, 32, 32)
    assert "rgb" not in paired.test.__getitems__([0])  # one modality when tested


def test_frames_of_the_run_s_seed() -> None:
    chosen = OPTIONS.model_copy(update={"frame_seed": -1})
    first, second = synthetic.load(chosen, 0), synthetic.load(chosen, 1)
    assert not torch.equal(first.test.__getitems__([0])["input"], second.test.__getitems__([0])["input"])
    fixed = [synthetic.load(OPTIONS, seed).test.__getitems__([0])["input"] for seed in (0, 1)]
    assert torch.equal(*fixed)


def test_no_flame_patches() -> None:
    with pytest.raises(
        FlamefinderError, match=r"no flame patches in unobscured training frames: check data\.min_flame_px"
    ):
        synthetic.load(OPTIONS.model_copy(update={"min_flame_px": 1024}), 0)


@pytest.mark.smoke
def test_thermal_and_rgb_turn_together() -> None:
    corner = torch.zeros(64, 1, 8, 8)
    corner[:, :, 0, 1] = 1
    batch = {"input": corner, "rgb": corner.expand(-1, 3, -1, -1) / 2, "index": torch.arange(64)}
    result = turned(batch, torch.Generator().manual_seed(0))
    assert torch.equal(result["rgb"], result["input"].expand(-1, 3, -1, -1) / 2)
    places = {tuple(image.nonzero()[0].tolist()) for image in result["input"][:, 0]}
    assert places == {(0, 1), (0, 6), (1, 0), (1, 7), (6, 0), (6, 7), (7, 1), (7, 6)}
    assert bool((corner.sum((1, 2, 3)) == 1).all())
    assert torch.equal(turned(batch, torch.Generator().manual_seed(0))["input"], result["input"])


@pytest.mark.smoke
def test_gain_and_range() -> None:
    half = torch.full((4000, 1, 2, 2), 0.25)
    result = gained(half, 0.4, torch.Generator().manual_seed(0))
    assert bool((result.flatten(1).std(1) == 0).all())  # one gain for a patch
    low, high = 0.25 * np.exp(-0.4) - 0.2, 0.25 * np.exp(0.4) + 0.2
    assert low <= float(result.min())
    assert float(result.max()) <= high
    assert float(result.std()) > 0.1
    assert torch.equal(gained(half, 0.0, torch.Generator().manual_seed(0)), half)
    assert to_network({"input": torch.tensor([0.0, 0.5, 1.0])})["input"].tolist() == [-1, 0, 1]
