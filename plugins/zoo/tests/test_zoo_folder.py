"""image-folder: torchvision's layout, ImageNet's, and what is said when something is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.data import Batch, Data
from plait.errors import BadInput
from plait_zoo.splits import FileSplit, parts_by_hash
from plait_zoo.transforms import Flip, ResizedCropFlip

pytestmark = pytest.mark.smoke

Load = Callable[..., Data]
Picture = Callable[..., None]


def names(split: object) -> list[str]:
    assert isinstance(split, FileSplit)
    return [name.decode() for name in split.files]


def splits(data: Data) -> list[object]:
    return [data.train, data.validation, data.test]


def fill(root: Path, picture: Picture, part: str, classes: tuple[str, ...] = ("ant", "bee"), each: int = 10) -> None:
    for number, name in enumerate(classes):
        for image in range(each):
            picture(root / part / name / f"{image}.{('png', 'JPEG')[image % 2]}", 100 * number)


def test_train_and_test(tmp_path: Path, picture: Picture, load: Load) -> None:
    fill(tmp_path, picture, "train")
    fill(tmp_path, picture, "test", each=3)
    data = load("image-folder", root=str(tmp_path), size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    assert not set(names(data.train)) & set(names(data.validation))
    assert data.names["label"] == ["ant", "bee"]
    assert data.info.num_groups == 0
    assert "group" not in data.info.fields
    assert data.notes == [
        "image-folder: 2 images of train validate; test is the test.",
        "image-folder: the validation split has no image of ant.",
    ]
    got = data.train.__getitems__(range(18))
    assert torch.equal((got["input"].mean((1, 2, 3)) > 0.2).long(), got["label"])
    assert names(load("image-folder", seed=3, root=str(tmp_path)).validation) == names(data.validation)


def test_train_val_test_and_train_val(tmp_path: Path, picture: Picture, load: Load) -> None:
    fill(tmp_path, picture, "train")
    fill(tmp_path, picture, "val", each=2)
    data = load("image-folder", root=str(tmp_path), size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert all(name.startswith("val/") for name in names(data.test))
    fill(tmp_path, picture, "test", each=3)
    data = load("image-folder", root=str(tmp_path), size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 6)
    assert not data.notes


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[: len(whole) * 2 // 3], lambda whole: b"", lambda whole: b"<html>404</html>" * 20],
    ids=["cut", "empty", "page"],
)
@pytest.mark.parametrize("ending", ["png", "JPEG"])
def test_a_damaged_image_deep_in_a_split_is_named_before_training(
    tmp_path: Path, part: str, damage: Callable[[bytes], bytes], ending: str, load: Load
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    for name in ("train", "val", "test"):
        for number in range(12):
            file = tmp_path / name / "ant" / f"{number:02}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(file)
    assert len(load("image-folder", root=str(tmp_path), size=16).test) == 12
    bad = tmp_path / part / "ant" / f"11.{ending}"
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(BadInput, match=f"{part}/ant/11.{ending}: not a readable image") as caught:
        load("image-folder", root=str(tmp_path), size=16)
    assert "\n" not in str(caught.value)


def test_bytes_behind_the_end_of_an_image_are_no_damage(tmp_path: Path, picture: Picture, load: Load) -> None:
    for name in ("train", "val", "test"):
        fill(tmp_path, picture, name)
    for file in (tmp_path / "test").rglob("*.*"):
        file.write_bytes(file.read_bytes() + bytes(40))
    assert len(load("image-folder", root=str(tmp_path), size=16).test) == 20


@pytest.mark.parametrize(
    "lines",
    [
        "a.JPEG n02\nb.JPEG n01\n",
        "ImageId,PredictionString\na,n02 1 2 3 4 n02 5 6 7 8\nb,n01 1 2 3 4\n",
        "a.JPEG\t1\nb.JPEG\t0\n\n",
    ],
)
def test_imagenet_flat_val(tmp_path: Path, lines: str, picture: Picture, load: Load) -> None:
    fill(tmp_path, picture, "train", ("n01", "n02"))
    for name in "ab":
        picture(tmp_path / "val" / f"{name}.JPEG")
    with pytest.raises(BadInput, match="A flat val folder needs val_labels"):
        load("image-folder", root=str(tmp_path))
    (tmp_path / "labels.txt").write_text(lines)
    data = load("image-folder", root=str(tmp_path), val_labels="labels.txt")
    assert names(data.test) == ["val/a.JPEG", "val/b.JPEG"]
    assert data.test.__getitems__([0, 1])["label"].tolist() == [1, 0]
    assert data.info.input_shape == (3, 224, 224)


def test_what_is_wrong_is_named(tmp_path: Path, picture: Picture, load: Load) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(BadInput, match=match):
            load("image-folder", root=str(tmp_path), **options)

    refused(r"no folder .*train.*Expected layout: ROOT/train/<class>")
    (tmp_path / "train").mkdir()
    refused("train has no class folders")
    fill(tmp_path, picture, "train")
    refused("neither a val nor a test folder")
    fill(tmp_path, picture, "val", ("ant", "beee"))
    refused(r"beee is no class of train. Did you mean 'bee'\?")
    (tmp_path / "val" / "beee").rename(tmp_path / "test")
    refused("test has no class folders")
    (tmp_path / "test").rename(tmp_path / "val" / "bee")
    refused("there is no label file", val_labels="nowhere.txt")
    labels = tmp_path / "labels.txt"
    for text, message in [
        ("x.png\n", "line 1 is 'x.png'; expected an image name and its class"),
        ("x.png ant\ny.png 2\n", "line 2: '2' is no class"),
        ("x.png bea\n", "'bea' is no class of train. Did you mean 'bee'"),
        ("\n", "has no labels"),
        ("x.png ant\n", "1 of 21 listed images are missing .*val/x.png"),
    ]:
        labels.write_text(text)
        refused(message, val_labels=str(labels))
    (tmp_path / "train" / "ant").rename(tmp_path / "gone")
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "train" / "bee").rename(tmp_path / "gone2")
    refused("train has no images")


def test_hidden_system_and_editor_entries_are_no_classes_and_no_images(
    tmp_path: Path, picture: Picture, load: Load
) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path, picture, part, each=2)
    for part in ("train", "val", "test"):
        fill(tmp_path, picture, part, ("C#",), each=2)
    clean = [names(split) for split in splits(load("image-folder", root=str(tmp_path)))]
    junk = [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", ".git", "$RECYCLE.BIN", "ant~", "#recycle"]
    for part in ("train", "val", "test"):
        for name in junk:
            picture(tmp_path / part / name / "x.png")
            picture(tmp_path / part / "ant" / name / "deep" / "x.png")
        for name in ("._0.png", ".hidden.jpg", "~$0.png"):
            picture(tmp_path / part / "ant" / name)
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "0.png~", "#0.png#"):
            (tmp_path / part / "ant" / name).write_text("x")
            (tmp_path / part / name).write_text("x")
    data = load("image-folder", root=str(tmp_path) + "/")
    assert [names(split) for split in splits(data)] == clean
    assert data.names["label"] == ["C#", "ant", "bee"]
    assert len(data.notes) == 3
    told = "hidden or system folders of train are no classes: #recycle, $RECYCLE.BIN, .git, .ipynb_checkpoints, @eaDir"
    assert data.notes[0] == f"image-folder: {told} and 3 more."


def test_a_class_without_images_is_said(tmp_path: Path, picture: Picture, load: Load) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path, picture, part, each=2)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(BadInput, match=r"train has no images of class cat \(\.jpg"):
        load("image-folder", root=str(tmp_path))
    for name in ("0.gif", "1.gif", "notes.txt", "README"):
        (tmp_path / "train" / "cat" / name).write_text("x")
    with pytest.raises(BadInput, match=r"class cat \(.*; left out by name: \.gif: 2, \.txt: 1, no ending: 1\)"):
        load("image-folder", root=str(tmp_path))
    picture(tmp_path / "train" / "cat" / "0.png")
    (tmp_path / "test" / "cat").mkdir()
    data = load("image-folder", root=str(tmp_path))
    assert data.notes == [
        "image-folder: 4 files of train were left out, no images by name (.gif: 2, .txt: 1, no ending: 1).",
        "image-folder: the validation split has no image of cat.",
        "image-folder: the test split has no image of cat.",
    ]


def test_augmentations(tmp_path: Path, picture: Picture, load: Load) -> None:
    fill(tmp_path, picture, "train")
    fill(tmp_path, picture, "test")
    kinds = [type(load("image-folder", root=str(tmp_path), augment=a).augment) for a in ("crop", "flip", "none")]
    assert kinds == [ResizedCropFlip, Flip, type(None)]
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32).contiguous()
    got = Batch({"input": ramp, "label": torch.arange(64)})
    for change in (ResizedCropFlip(0.3), Flip()):
        first, same, other = (change(got, torch.Generator().manual_seed(seed))["input"] for seed in (0, 0, 1))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert 0 <= float(first.min()) <= float(first.max()) <= 1
    flipped = Flip()(got, torch.Generator().manual_seed(0))["input"]
    share = sum(torch.equal(image, ramp[0].flip(2)) for image in flipped) / 64
    assert 0.2 < share < 0.8
    assert all(torch.equal(image, ramp[0]) or torch.equal(image, ramp[0].flip(2)) for image in flipped)
    cut = ResizedCropFlip(0.3)(got, torch.Generator().manual_seed(0))["input"]
    spans = (cut[:, 0, 0].max(1).values - cut[:, 0, 0].min(1).values).abs()
    assert float(spans.min()) > math.sqrt(0.3 * 3 / 4) - 0.1
    whole = ResizedCropFlip(1.0)(got, torch.Generator().manual_seed(0))["input"]
    assert float((whole.mean((1, 2, 3)) - 0.5).abs().max()) < 0.15


def test_parts_by_hash() -> None:
    keys = [f"person{n % 50}" for n in range(200)]
    parts = parts_by_hash(keys, [0.1, 0.2], "x")
    by_key = {key: {int(p) for k, p in zip(keys, parts, strict=True) if k == key} for key in keys}
    assert all(len(parts_here) == 1 for parts_here in by_key.values())
    counts = [sum(parts_here == {part} for parts_here in by_key.values()) for part in range(3)]
    assert counts == [35, 5, 10]
    shuffled = parts_by_hash(keys[::-1], [0.1, 0.2], "x")
    assert shuffled[::-1].tolist() == parts.tolist()
    assert parts_by_hash(keys, [0.1, 0.2], "y").tolist() != parts.tolist()
