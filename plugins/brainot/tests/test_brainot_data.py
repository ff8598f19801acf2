"""The generator's statistics, real brains, and NSD as published on small files with every way to be wrong."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plait_brainot import haxby, mindeye, published, tars
from plait_brainot.errors import BrainotError
from plait_brainot.options import HaxbyOptions, NsdOptions, ScenesOptions
from plait_brainot.regions import regions
from plait_brainot.samples import Samples
from plait_brainot.synthetic import COLOURS, REGIONS, Generated, generate, load, scenes, world_of_tokens

HAXBY = Path(__file__).parents[4] / "shared" / "data" / "haxby"
needs_haxby = pytest.mark.skipif(not HAXBY.is_dir(), reason=f"no real brains in {HAXBY}")
SMALL = {"train": 80, "validation": 10, "test": 40, "voxels": 120}


def small(seed: int = 0, **changes: Any) -> Generated:
    options = ScenesOptions(**{**SMALL, **changes})
    return generate(options, seed, world_of_tokens(options))


# ---- scenes ----------------------------------------------------------------------------------------------------------
def test_objects_lie_apart_and_pairs_are_left_out() -> None:
    options = ScenesOptions()
    unseen = np.triu(np.random.default_rng(0).random((16, 16)) < 0.15, 1)
    drawn = scenes(500, options, world_of_tokens(options), unseen, np.random.default_rng(1))
    for row in range(500):
        n = drawn.count[row]
        kinds, corners = drawn.kind[row, :n], drawn.corner[row, :n]
        assert len(set(kinds.tolist())) == n
        assert list(kinds) == sorted(kinds)
        assert not any(unseen[a, b] for a in kinds for b in kinds)
        for i in range(n):
            for j in range(i):
                assert np.abs(corners[i] - corners[j]).max() >= 2
    assert set(drawn.count) == {1, 2, 3}


def test_the_same_seed_is_the_same_world_and_another_one_is_not() -> None:
    one, again, other = (small(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.voxels["test"], again.voxels["test"])
    np.testing.assert_array_equal(one.tokens["train"], again.tokens["train"])
    assert not np.array_equal(one.tokens["train"], other.tokens["train"])
    assert (
        load(ScenesOptions(**SMALL), 1).train.fingerprint
        != load(ScenesOptions(**SMALL, early_snr=3.0), 1).train.fingerprint
    )  # type: ignore[attr-defined]


def test_regions_say_what_they_are_made_to_say() -> None:
    made = small(train=400, early_snr=0.0, snr=3.0)
    x = made.voxels["train"]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-4)
    place = np.eye(5)[made.scenes["train"].background[made.scene["train"]]]
    regions = made.regions[1]
    assert sum(map(len, regions.values())) == 120

    def told(name: str) -> float:
        target = place - place.mean(0)
        own = x[:, regions[name]]
        fit = own @ np.linalg.lstsq(own, target, rcond=None)[0]
        return float(1 - ((target - fit) ** 2).sum() / (target**2).sum())

    assert told("place") > 0.5
    assert max(told(name) for name in REGIONS if name != "place") < 0.15
    unseen = small(nuisance=0, token_noise=0.0)
    assert np.abs(unseen.tokens["train"]).max() < 10


def test_nuisance_tokens_are_as_many_and_as_large_as_asked_for() -> None:
    plain, wild = (small(nuisance=n, nuisance_std=40.0).tokens["test"] for n in (0, 9))
    large = np.linalg.norm(wild, axis=2) > 100
    assert set(large.sum(1)) == {9}
    assert np.linalg.norm(plain, axis=2).max() < 100


def test_fixed_places_follow_from_the_objects() -> None:
    made = small(places="fixed")
    corner = made.scenes["train"].corner
    assert (corner == corner[0]).all()
    large = np.linalg.norm(made.tokens["train"], axis=2) > 9
    assert large.mean(0).max() > 0.5  # nuisance has places of its own, too


def test_captions_name_what_is_there() -> None:
    data = load(ScenesOptions(**SMALL, subjects=3), 0)
    extra = data.info.extra
    for phrases, texts, light in zip(extra["phrases"], extra["captions"], extra["word"], strict=True):
        assert len(set(texts)) >= 3
        assert all(phrase in text for phrase in phrases for text in texts)
        assert all(light in text.split() for text in texts)
    assert len(extra["vocabulary"]) == 16 * len(COLOURS)
    for number in (0, 80, 129):
        seen = extra["places"](number)
        assert list(seen)[:-1] == extra["phrases"][number]
        assert list(seen)[-1].endswith(extra["word"][number])
        assert sum(len(xs) for xs, _ in seen.values()) == 25
    batch = data.train.__getitems__([0, 3 * 80 - 1])
    assert batch["subject"].tolist() == [1, 2]
    torch.testing.assert_close(batch["target"], data.train.tokens[batch["scene"]])  # type: ignore[attr-defined]
    assert extra["voxels"] == {1: 120, 2: 110, 3: 100}
    of = {s: set(data.train.fields["scene"][data.train.fields["subject"] == s].tolist()) for s in (1, 2, 3)}  # type: ignore[attr-defined]
    assert len(of[1] & of[2] & of[3]) == 20  # a quarter is shared
    assert not torch.isin(data.test.fields["scene"], data.train.fields["scene"]).any()  # type: ignore[attr-defined]


def test_voxels_that_are_not_finite() -> None:
    x = np.ones((3, 9), np.float32)
    x[1, [2, 5]] = np.nan
    with pytest.raises(BrainotError, match=r"2 voxels have NaN or infinite betas \(voxels 2, 5\)"):
        Samples(x, {"scene": [0, 0, 0]}, torch.ones(1, 2, 2), "")
    with pytest.raises(BrainotError, match="scene 4 has no image tokens; there are 1"):
        Samples(np.ones((1, 2), np.float32), {"scene": [4]}, torch.ones(1, 2, 2), "")


# ---- real brains -----------------------------------------------------------------------------------------------------
@needs_haxby
def test_real_brains_and_a_linear_reader() -> None:
    """The reference of the data's page: a linear classifier is right in about 0.6 of the volumes, run by run."""
    pytest.importorskip("nibabel")
    x, category, run, left = haxby.volumes(HAXBY)
    assert x.shape == (864, 530)
    assert np.bincount(category).tolist() == [108] * 8
    assert np.bincount(run).tolist() == [72] * 12
    assert 200 < left.sum() < 330
    right = []
    for test in range(12):
        own = run != test
        gram = x[own].T @ x[own] + 3000 * np.eye(530)
        weights = np.linalg.solve(gram, x[own].T @ (np.eye(8)[category[own]] - 1 / 8))
        right.append(((x[~own] @ weights).argmax(1) == category[~own]).mean())
    assert 0.55 < np.mean(right) < 0.7


@needs_haxby
def test_one_run_is_the_test_and_labels_can_be_permuted() -> None:
    pytest.importorskip("nibabel")
    data = haxby.load(HaxbyOptions(path=str(HAXBY)), 14)
    assert data.notes[0].startswith("haxby: run 2 is the test, run 1 the validation")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [720, 72, 72]
    assert data.info.extra["word"][0] in data.info.extra["captions"][0][0]
    permuted = haxby.load(HaxbyOptions(path=str(HAXBY), permute=True, test_run=2), 14)
    named = [
        np.mean([w in c[0] for w, c in zip(d.info.extra["word"], d.info.extra["captions"], strict=True)])
        for d in (data, permuted)
    ]
    assert named[0] == 1
    assert 0.2 < named[1] < 0.4  # of 864 volumes 144 keep their own category, and an eighth of the others by chance


def test_brains_that_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    with pytest.raises(BrainotError, match=r"bold.nii.gz is not there"):
        haxby.volumes(tmp_path)
    for name in haxby.FILES:
        (tmp_path / name).write_text("face 0\n")
    with pytest.raises(BrainotError, match=r"bold.nii.gz: no NIfTI image: ImageFileError"):
        haxby.volumes(tmp_path)
    if HAXBY.is_dir():
        for name in haxby.FILES[:2]:
            shutil.copyfile(HAXBY / name, tmp_path / name)
        with pytest.raises(BrainotError, match=r"do not belong together: bold \[40, 20, 1, 1452\].* 1 labels"):
            haxby.volumes(tmp_path)


# ---- NSD -------------------------------------------------------------------------------------------------------------
def jpeg(number: int) -> bytes:
    opened = io.BytesIO()
    Image.new("RGB", (40, 30), (number * 7 % 256, 90, 10)).save(opened, format="JPEG")
    return opened.getvalue()


def array(values: Any) -> bytes:
    opened = io.BytesIO()
    np.save(opened, values)
    return opened.getvalue()


def tar(file: Path, numbers: range, **changes: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(numbers.start)
    with tarfile.open(file, "w") as handle:
        for number in numbers:
            parts = {
                "jpg": jpeg(number),
                "nsdgeneral.npy": array(rng.standard_normal((3, 11)).astype(np.float32)),
                "coco73k.npy": array(np.array([number])),
                "num_uniques.npy": array(np.array([3])),
                **(changes if number == numbers.start else {}),
            }
            for kind, data in parts.items():
                if data is not None:
                    info = tarfile.TarInfo(f"sample{number:06d}.{kind}")
                    info.size = len(data)
                    handle.addfile(info, io.BytesIO(data))


@pytest.fixture
def nsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NsdOptions:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "webdataset_avg_split"
    for part, numbers in enumerate((range(5), range(5, 10))):
        tar(root / "train" / f"train_subj01_{part}.tar", numbers)
    tar(root / "val" / "val_subj01_0.tar", range(10, 13))
    tar(root / "test" / "test_subj01_0.tar", range(13, 17))
    (root / "metadata_subj01.json").write_text("{}")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({str(i): [f"image {i}", f"number {i}"] for i in range(17)}))
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=56
    )
    torch.manual_seed(0)
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    return NsdOptions(root=str(root), captions=str(captions), image_encoder=str(tmp_path / "clip"), validation=3)


def test_nsd_as_published(nsd: NsdOptions, tmp_path: Path) -> None:
    masks = {"subject1/V1": np.arange(11) < 3, "subject1/V2": np.arange(11) > 7}
    np.savez(tmp_path / "rois.npz", **masks)
    options = nsd.model_copy(update={"rois": str(tmp_path / "rois.npz")})
    data = published.load(options, 0)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 3, 4]
    assert data.info.extra["tokens"] == (16, 8)
    assert data.info.extra["voxels"] == {1: 11}
    assert data.info.extra["regions"][1]["V1"].tolist() == [0, 1, 2]
    assert data.info.extra["captions"][13] == ["image 13", "number 13"]
    batch = data.test.__getitems__([0])
    own = next(iter(tars.samples(Path(options.root), "test", 1)))
    torch.testing.assert_close(batch["input"][0], torch.from_numpy(own.betas.mean(0)))
    from transformers import CLIPVisionModel

    clip = CLIPVisionModel.from_pretrained(tmp_path / "clip").eval()
    mean, spread = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])  # OpenAI's
    pixels = (published._pixels(own.image()) - torch.tensor(mean)[:, None, None]) / torch.tensor(spread)[:, None, None]
    with torch.no_grad():
        states = clip(pixel_values=pixels[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(batch["target"], states[-2][:, 1:].half().float(), rtol=1e-3, atol=1e-3)
    shutil.move(tmp_path / "clip", tmp_path / "gone")
    again = published.load(options, 0)  # the tokens are kept
    torch.testing.assert_close(again.test.__getitems__([0])["target"], batch["target"])


def test_two_subjects_of_other_widths(nsd: NsdOptions) -> None:
    root = Path(nsd.root)
    for split, numbers in (("train", range(20, 24)), ("val", range(24, 26)), ("test", range(13, 17))):
        changes = {"nsdgeneral.npy": array(np.zeros((3, 11)))}
        tar(root / split / f"{split}_subj02_0.tar", numbers, **changes)
    captions = json.loads(Path(nsd.captions).read_text())
    Path(nsd.captions).write_text(json.dumps({**captions, **{str(i): ["x"] for i in range(20, 26)}}))
    data = published.load(nsd.model_copy(update={"subjects": (1, 2)}), 0)
    assert data.train.fields["subject"].unique().tolist() == [1, 2]  # type: ignore[attr-defined]
    assert len(data.test) == 8
    assert len(data.info.extra["captions"]) == 17 + 6  # both saw the same test images
    tar(root / "val" / "val_subj02_0.tar", range(16, 18), **changes)
    with pytest.raises(BrainotError, match=r"1 test images are in the training set \(COCO \[16\]\)"):
        published.load(nsd.model_copy(update={"subjects": (1, 2)}), 0)  # the other subject was trained on one


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        ("train", {"jpg": None}, r"train_subj01_0.tar: sample sample000000 has no sample000000.jpg"),
        ("train", {"nsdgeneral.npy": array(np.zeros(11))}, r"is \[11\]; repetitions x voxels are needed"),
        ("train", {"nsdgeneral.npy": b"no"}, "is no NumPy array"),
        ("train", {"nsdgeneral.npy": array(np.zeros((3, 12)))}, "samples of 12 and 11 voxels"),
        ("train", {"nsdgeneral.npy": array(np.full((3, 11), np.inf))}, "11 voxels have NaN or infinite"),
        ("test", {"coco73k.npy": array(np.array([2]))}, r"1 test images are in the training set \(COCO \[2\]\)"),
        ("train", {"coco73k.npy": array(np.array([99]))}, r"no captions of COCO \[99\]"),
    ],
)
def test_nsd_files_that_are_wrong(nsd: NsdOptions, split: str, changes: dict[str, Any], message: str) -> None:
    numbers = range(5) if split == "train" else range(13, 17)
    tar(Path(nsd.root) / split / f"{split}_subj01_0.tar", numbers, **changes)
    with pytest.raises(BrainotError, match=message):
        published.load(nsd, 0)


def as_mindeye(root: Path, tmp_path: Path) -> Path:
    """The same looks and images as MindEye2 lays them out, its trials in another order."""
    h5py = pytest.importorskip("h5py")
    whole = {s: list(tars.samples(root, s, 1)) for s in ("train", "val", "test")}
    betas = np.concatenate([sample.betas for of in whole.values() for sample in of])
    images = np.zeros((17, 3, 224, 224), np.float16)
    for sample in (sample for of in whole.values() for sample in of):
        with Image.open(io.BytesIO(sample.image())) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((224, 224)))
        images[sample.coco] = pixels.transpose(2, 0, 1) / 255
    folder = tmp_path / "mindeye"
    for split, numbers in (("train", range(13)), ("new_test", range(13, 17))):
        (folder / "wds" / "subj01" / split).mkdir(parents=True)
        with tarfile.open(folder / "wds" / "subj01" / split / "0.tar", "w") as handle:
            for look in range(3):
                for image in numbers:
                    behav = np.zeros((1, 17))
                    behav[0, [0, 5]] = image, 3 * image + look
                    data = array(behav)
                    info = tarfile.TarInfo(f"{look}{image:06d}.behav.npy")
                    info.size = len(data)
                    handle.addfile(info, io.BytesIO(data))
    for name, key, values in (
        ("betas_all_subj01_fp32_renorm", "betas", betas),
        ("coco_images_224_float16", "images", images),
    ):
        with h5py.File(folder / f"{name}.hdf5", "w") as stored:
            stored[key] = values
    return folder


def test_mindeyes_layout_holds_the_same(nsd: NsdOptions, tmp_path: Path) -> None:
    root = as_mindeye(Path(nsd.root), tmp_path)
    mine = published.load(nsd.model_copy(update={"root": str(root)}), 0)
    other = published.load(nsd, 0)
    for split in ("train", "validation", "test"):
        a, b = (getattr(data, split).__getitems__(torch.arange(3)) for data in (mine, other))
        torch.testing.assert_close(a["input"], b["input"])
        torch.testing.assert_close(a["scene"], b["scene"])
    assert mine.info.extra["captions"] == other.info.extra["captions"]
    assert mine.info.extra["tokens"] == (16, 8)


def test_mindeye_files_that_are_wrong(nsd: NsdOptions, tmp_path: Path) -> None:
    root = as_mindeye(Path(nsd.root), tmp_path)

    def refused(message: str, subject: int = 1) -> None:
        with pytest.raises(BrainotError, match=message):
            list(mindeye.samples(root, "test", subject))

    refused("subj02/test: no tar of trials", 2)
    betas, images = root / "betas_all_subj01_fp32_renorm.hdf5", root / "coco_images_224_float16.hdf5"
    import h5py

    with h5py.File(betas, "r+") as stored:
        few = stored["betas"][:45]
        del stored["betas"]
        stored["betas"] = few
    refused(r"0.tar: 0000015 names row 45 of .*betas_all_subj01_fp32_renorm.hdf5, of 45")
    with h5py.File(images, "r+") as stored:
        del stored["images"]
    refused("no data set 'images' of 4 axes")
    images.write_bytes(b"no")
    refused("coco_images_224_float16.hdf5: no HDF5 file")
    images.unlink()
    refused("coco_images_224_float16.hdf5 is not there")
    data = array(np.zeros(3))
    with tarfile.open(root / "wds" / "subj01" / "new_test" / "0.tar", "w") as handle:
        info = tarfile.TarInfo("a.behav.npy")
        info.size = len(data)
        handle.addfile(info, io.BytesIO(data))
    images.write_bytes(betas.read_bytes())
    with h5py.File(images, "r+") as stored:
        stored["images"] = np.zeros((2, 3, 4, 4))
    refused(r"a.behav.npy is \[3\]; \[..., 17\] is needed")


def test_extras_that_are_not_there(nsd: NsdOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_mindeye(Path(nsd.root), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BrainotError, match=r"needs h5py: pip install 'plait-brainot\[nsd\]'"):
        list(mindeye.samples(root, "train", 1))
    with pytest.raises(BrainotError, match=r"needs nibabel: pip install nibabel"):
        regions(str(tmp_path), {1: 9})


def test_regions_from_nsds_volumes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    rois = tmp_path / "subj01" / "func1pt8mm" / "roi"
    rois.mkdir(parents=True)
    rng = np.random.default_rng(0)
    inside = rng.random((4, 5, 6)) < 0.5
    labels = rng.integers(0, 8, inside.shape)
    volumes = {"nsdgeneral": np.where(inside, 1, -1), "prf-visualrois": labels}
    volumes |= {f"floc-{kind}": (rng.random(inside.shape) < 0.2) * 2 for kind in ("faces", "bodies", "places", "words")}

    def write(name: str, values: np.ndarray) -> None:
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), rois / f"{name}.nii.gz")

    for name, values in volumes.items():
        write(name, values)
    count = int(inside.sum())
    found = regions(str(tmp_path), {1: count})[1]
    assert list(found) == ["V1", "V2", "V3", "hV4", "faces", "bodies", "places", "words", "rest"]
    places = [tuple(p) for p in np.argwhere(inside)]  # C order
    assert [labels[places[i]] in (3, 4) for i in range(count)] == [i in found["V2"] for i in range(count)]
    assert [bool(volumes["floc-words"][places[i]]) for i in range(count)] == [i in found["words"] for i in range(count)]
    assert sorted(set(np.concatenate(list(found.values())))) == list(range(count))
    with pytest.raises(BrainotError, match=rf"subject1/V1 is \[{count}\], not \[{count + 1}\]"):
        regions(str(tmp_path), {1: count + 1})
    write("floc-words", np.zeros(inside.shape))
    with pytest.raises(BrainotError, match="subject1/words is empty"):
        regions(str(tmp_path), {1: count})
    write("floc-words", np.zeros((4, 5, 5)))
    with pytest.raises(BrainotError, match=r"do not belong together: floc-words \[4, 5, 5\]"):
        regions(str(tmp_path), {1: count})
    (rois / "floc-words.nii.gz").unlink()
    with pytest.raises(BrainotError, match=r"floc-words.nii.gz is not there"):
        regions(str(tmp_path), {1: count})


def test_nsd_betas_may_be_zeroed(nsd: NsdOptions) -> None:
    tar(
        Path(nsd.root) / "train" / "train_subj01_0.tar", range(5), **{"nsdgeneral.npy": array(np.full((3, 11), np.nan))}
    )
    data = published.load(nsd.model_copy(update={"nan": "zero"}), 0)
    assert float(data.train.fields["input"][:3].abs().sum()) == 0  # type: ignore[attr-defined]


def test_nsd_options_that_are_wrong(nsd: NsdOptions, tmp_path: Path) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(BrainotError, match=message):
            published.load(nsd.model_copy(update=changes), 0)

    with pytest.raises(ValueError, match="less than or equal to 8"):
        NsdOptions(root="x", captions="y", subjects=(9,))
    refused(r"no train_subj03_\*.tar", subjects=(3,))
    refused("data.validation = 13: subject 1 has 13 samples", validation=13)
    refused("captions.json.* is not there", captions=str(tmp_path / "captions.json.gone"))
    (tmp_path / "odd.json").write_text('{"3": []}')
    refused("id 3 has no list of texts", captions=str(tmp_path / "odd.json"))
    (tmp_path / "list.json").write_text("[]")
    refused(r"list.json is no object \{id: \[captions\]\}, but list", captions=str(tmp_path / "list.json"))
    refused("tokens are not made yet", image_encoder=None)
    refused("no CLIP vision model", image_encoder=str(tmp_path / "nothing"))
    for name, masks, message in (
        ("a", {"subject1/V1": np.ones(10, bool)}, r"subject1/V1 is \[10\], not \[11\]"),
        ("b", {"subject1/V1": np.zeros(11, bool)}, "subject1/V1 is empty"),
        ("c", {"subject2/V1": np.ones(11, bool)}, "has no region subject1/NAME"),
    ):
        np.savez(tmp_path / f"{name}.npz", **masks)
        refused(message, rois=str(tmp_path / f"{name}.npz"))
    refused("no NPZ of boolean vectors", rois=str(tmp_path / "d.npz"))
