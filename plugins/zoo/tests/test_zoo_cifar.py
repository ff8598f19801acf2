"""CIFAR pickles: as published, damaged, malicious."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import Batch, Data
from plait.errors import BadInput
from plait_zoo.splits import ByteSplit
from plait_zoo.transforms import CropFlip

CONTENT = dict[str, dict[Any, Any]]


def batch(count: int, keys: tuple[str, ...], classes: int, as_bytes: bool, start: int) -> dict[Any, Any]:
    data = np.random.default_rng(start).integers(0, 256, (count, 3072), np.uint8)
    data[:, 0] = start
    data[:, 1] = np.arange(count)
    contents: dict[Any, Any] = {
        "data": data,
        "batch_label": "training batch",
        "filenames": [f"{n}.png" for n in range(count)],
    }
    contents |= {key: [n % (classes if key != "coarse_labels" else 20) for n in range(count)] for key in keys}
    return {key.encode(): value for key, value in contents.items()} if as_bytes else contents


def cifar10(as_bytes: bool = True) -> CONTENT:
    files = {f"data_batch_{n}": batch(20, ("labels",), 10, as_bytes, n) for n in range(1, 6)}
    files["test_batch"] = batch(20, ("labels",), 10, as_bytes, 6)
    files["batches.meta"] = {b"label_names": [b"airplane"] * 10, b"num_vis": 3072}
    return files


def cifar100(as_bytes: bool = True) -> CONTENT:
    keys = ("fine_labels", "coarse_labels")
    return {
        "train": batch(100, keys, 100, as_bytes, 1),
        "test": batch(100, keys, 100, as_bytes, 2),
        "meta": {b"fine_label_names": [b"apple"] * 100, b"coarse_label_names": [b"fish"] * 20},
    }


def write(folder: Path, content: CONTENT, protocol: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol))


def archive(path: Path, folder: str, content: CONTENT) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, value in content.items():
            data = pickle.dumps(value, 2)
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_folder_and_its_parent(tmp_path: Path, as_bytes: bool, protocol: int, load: Callable[..., Data]) -> None:
    write(tmp_path / "cifar-10-batches-py", cifar10(as_bytes), protocol)
    data = load("cifar10", path=str(tmp_path / "cifar-10-batches-py"))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert data.names["label"][0] == "airplane"
    assert data.info.input_shape == (3, 32, 32)
    splits = [data.train, data.validation]
    assert all(isinstance(split, ByteSplit) for split in splits)
    seen = {tuple(image[0, 0, :2].tolist()) for split in splits for image in split.images}  # type: ignore[attr-defined]
    assert seen == {(start, row) for start in range(1, 6) for row in range(20)}
    got = data.train.__getitems__(range(90))
    assert torch.equal((got["input"][:, 0, 0, 1] * 255).round().long() % 10, got["label"])
    parent = load("cifar10", path=str(tmp_path))
    assert torch.equal(parent.train.images, data.train.images)  # type: ignore[attr-defined]
    other = load("cifar10", seed=1, path=str(tmp_path))
    assert not torch.equal(other.train.images, data.train.images)  # type: ignore[attr-defined]


def test_planes_are_red_green_blue(tmp_path: Path, load: Callable[..., Data]) -> None:
    content = cifar10()
    for name in content:
        if b"data" in content[name]:
            content[name][b"data"] = np.tile(np.repeat(np.array([255, 128, 0], np.uint8), 1024), (20, 1))
    write(tmp_path, content)
    got = load("cifar10", path=str(tmp_path)).test.__getitems__([0])["input"]
    assert [float(got[0, plane].mean()) for plane in range(3)] == pytest.approx([1, 128 / 255, 0])


def test_archive(tmp_path: Path, load: Callable[..., Data]) -> None:
    archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10())
    write(tmp_path / "folder", cifar10())
    packed, plain = (load("cifar10", path=str(tmp_path / name)) for name in ("cifar-10-python.tar.gz", "folder"))
    assert torch.equal(packed.train.images, plain.train.images)  # type: ignore[attr-defined]
    archive(tmp_path / "100.tar.gz", "cifar-100-python", cifar100())
    assert load("cifar100", path=str(tmp_path / "100.tar.gz")).info.num_classes == 100
    with pytest.raises(BadInput, match=r"has no cifar-10-batches-py/data_batch_1"):
        load("cifar10", path=str(tmp_path / "100.tar.gz"))


def test_damaged_archive(tmp_path: Path, load: Callable[..., Data]) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, "cifar-10-batches-py", cifar10())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"cifar-10-python\.tar\.gz"):
            load("cifar10", path=str(path))


def test_cifar100_labels(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path / "cifar-100-python", cifar100())
    fine, coarse = (load("cifar100", path=str(tmp_path), labels=labels) for labels in ("fine", "coarse"))
    assert (fine.info.num_classes, coarse.info.num_classes) == (100, 20)
    assert fine.test.__getitems__([57])["label"].item() == 57
    assert coarse.test.__getitems__([57])["label"].item() == 57 % 20
    assert coarse.names["label"] == ["fish"] * 20


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["key", "top", "value"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickles_run_nothing(tmp_path: Path, place: str, protocol: int, load: Callable[..., Data]) -> None:
    mark = tmp_path / "executed"
    evils = [
        _Evil(os.system, f"touch {mark}"),
        _Evil(eval, f"open({str(mark)!r}, 'w')"),
        _Evil(open, str(mark), "w"),
        _Evil(np.save, str(mark), 1),
        _Evil(np.frombuffer, b"12", "u1"),
    ]
    for evil in evils:
        content = cifar10()
        target: Any = evil if place == "top" else {b"data": evil} if place == "value" else {(evil,): 1}
        content["data_batch_1"] = target
        write(tmp_path / "data", content, protocol)
        with pytest.raises(BadInput, match="data_batch_1: refused: it asks for the name"):
            load("cifar10", path=str(tmp_path / "data"))
        assert not list(tmp_path.glob("executed*"))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=80), at=st.integers(0, 300))
def test_any_bytes_are_refused(content: bytes, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    from plait_zoo.cifar import _read

    whole = pickle.dumps(batch(1, ("labels",), 10, True, 1), 2)
    for damaged in (content, whole[:at] + content + whole[at:]):
        with contextlib.suppress(BadInput):
            assert isinstance(_read(io.BytesIO(damaged), "x/data_batch_1", len(damaged)), dict)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((20, 3071), np.uint8)}, "data_batch_3 has no uint8 array 'data'"),
        ({b"data": np.zeros((20, 3072), np.int64)}, "data_batch_3 has no uint8 array 'data'"),
        ({b"data": [1, 2]}, "data_batch_3 has no uint8 array 'data'"),
        ({b"labels": [1] * 19}, "no list 'labels' of 20 labels"),
        ({b"labels": [10] * 20}, r"label outside 0\.\.9"),
        ({b"labels": [None] * 20}, r"label outside 0\.\.9"),
    ],
)
def test_wrong_content(tmp_path: Path, change: dict[Any, Any], message: str, load: Callable[..., Data]) -> None:
    content = cifar10()
    content["data_batch_3"].update(change)
    write(tmp_path, content)
    with pytest.raises(BadInput, match=message):
        load("cifar10", path=str(tmp_path))


def test_missing_and_truncated(tmp_path: Path, load: Callable[..., Data]) -> None:
    with pytest.raises(BadInput, match=r"no folder or archive .*cifar-10-python\.tar\.gz"):
        load("cifar10", path=str(tmp_path / "nowhere"))
    write(tmp_path, cifar10())
    whole = (tmp_path / "data_batch_2").read_bytes()
    (tmp_path / "data_batch_2").write_bytes(whole[:1000])
    with pytest.raises(BadInput, match=r"data_batch_2: truncated .*1000 bytes, more than 30720000 bytes expected"):
        load("cifar10", path=str(tmp_path))
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(BadInput, match="data_batch_2 is missing"):
        load("cifar10", path=str(tmp_path))


# ---- augmentation ---------------------------------------------------------------------------------------------------
def test_crop_flip_is_a_crop_and_perhaps_a_flip() -> None:
    images = torch.rand(40, 2, 6, 5)
    generator = torch.Generator().manual_seed(0)
    out = CropFlip(pad=2)(Batch({"input": images, "label": torch.arange(40)}), generator)
    assert out["input"].shape == images.shape
    assert torch.equal(out["label"], torch.arange(40))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    kinds = set()
    for before, after in zip(padded, out["input"], strict=True):
        crops = {(y, x): before[:, y : y + 6, x : x + 5] for y in range(5) for x in range(5)}
        kinds |= {(y, x, False) for (y, x), crop in crops.items() if torch.equal(crop, after)}
        kinds |= {(y, x, True) for (y, x), crop in crops.items() if torch.equal(crop.flip(2), after)}
    assert len(kinds) > 20
    assert {flipped for *_, flipped in kinds} == {True, False}


def test_crop_flip_follows_the_generator(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path, cifar10())
    data = load("cifar10", path=str(tmp_path))
    assert load("cifar10", path=str(tmp_path), augment=False).augment is None
    assert data.augment is not None
    got = data.train.__getitems__(range(32))
    first, same, other = (data.augment(got, torch.Generator().manual_seed(seed))["input"] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert data.prepare is not None
    ready = data.prepare(got)["input"]
    torch.testing.assert_close(ready[:, 1], (got["input"][:, 1] - 0.4822) / 0.2435)
