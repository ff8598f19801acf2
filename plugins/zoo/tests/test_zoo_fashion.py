"""idx files: as published, truncated, foreign."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import Data, TensorSplit
from plait.errors import BadInput
from plait_zoo import fashion
from plait_zoo.splits import ByteSplit


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write(folder: Path, compress: bool, train: int = 100, test: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images[:, 0, 0] = labels
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_published_layouts(tmp_path: Path, compress: bool, inside: str, load: Callable[..., Data]) -> None:
    write(tmp_path / inside, compress)
    data = load("fashion-mnist", path=str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    train, validation = data.train, data.validation
    assert isinstance(train, ByteSplit)
    assert isinstance(validation, ByteSplit)
    batch = train.__getitems__([3, 5])
    assert batch["input"].dtype == torch.float32
    assert (batch["input"][:, 0, 0, 0] * 255).round().long().equal(batch["label"])
    seen = {image.numpy().tobytes() for split in (train, validation) for image in split.images}
    assert len(seen) == 100
    assert data.prepare is not None
    torch.testing.assert_close(data.prepare(batch)["input"], (batch["input"] - 0.2860) / 0.3530)


def test_pooling_and_limit(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path, True)
    data = load("fashion-mnist", path=str(tmp_path), pool=14, train_images=50)
    assert (len(data.train), len(data.validation)) == (50, 5)
    assert data.info.input_shape == (1, 14, 14)
    full = load("fashion-mnist", path=str(tmp_path), train_images=50)
    assert isinstance(data.train, TensorSplit)
    large = full.train.__getitems__(range(50))["input"]
    torch.testing.assert_close(data.train.fields["input"], torch.nn.functional.avg_pool2d(large, 2))
    with pytest.raises(BadInput, match="train_images = 95 and 9 for validation are more than the 100"):
        load("fashion-mnist", path=str(tmp_path), train_images=95)


def test_seed_draws_the_split(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path, True)
    first, same, other = (
        load("fashion-mnist", seed=seed, path=str(tmp_path)).train.__getitems__(range(90)) for seed in (1, 1, 2)
    )
    assert torch.equal(first["input"], same["input"])
    assert not torch.equal(first["input"], other["input"])


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("keep", [0, 10, 16, 17, 5000])
def test_truncated_images_name_file_and_bytes(
    tmp_path: Path, compress: bool, keep: int, load: Callable[..., Data]
) -> None:
    write(tmp_path, compress)
    name = "train-images-idx3-ubyte" + (".gz" if compress else "")
    content = (tmp_path / name).read_bytes()
    content = gzip.compress(gzip.decompress(content)[:keep]) if compress else content[:keep]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load("fashion-mnist", path=str(tmp_path))
    assert str(tmp_path / name) in str(caught.value)
    assert ("78416 bytes expected" if keep >= 16 else "16 bytes of an idx header") in str(caught.value)


def test_gzip_stream_broken_off(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path, True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadInput, match="15696 bytes expected"):
        load("fashion-mnist", path=str(tmp_path))


def test_too_long(tmp_path: Path, load: Callable[..., Data]) -> None:
    write(tmp_path, False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BadInput, match=r"28 bytes expected .* more found"):
        load("fashion-mnist", path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x08\x01" + bytes(12), "magic number 0x00000801, expected 0x00000803"),
        (
            "train-images-idx3-ubyte",
            idx(np.zeros((2, 32, 32), np.uint8)),
            r"holds 2 x 32 x 32 values, expected n x 28 x 28",
        ),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 4 + bytes([0, 0, 0, 28] * 2), "n at most"),
        ("train-labels-idx1-ubyte", idx(np.zeros(99, np.uint8)), "99 labels for 100 images"),
        ("train-labels-idx1-ubyte", idx(np.full(100, 10, np.uint8)), "label 10; labels are 0 to 9"),
    ],
)
def test_foreign_files(tmp_path: Path, name: str, content: bytes, message: str, load: Callable[..., Data]) -> None:
    write(tmp_path, False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load("fashion-mnist", path=str(tmp_path))


def test_missing(tmp_path: Path, load: Callable[..., Data], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"there is no folder .*apt-get install dataset-fashion-mnist"):
        load("fashion-mnist", path=str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="no train-images-idx3-ubyte"):
        load("fashion-mnist", path=str(tmp_path))
    monkeypatch.setattr(fashion, "PLACES", (str(tmp_path),))
    with pytest.raises(BadInput, match=r"data.path names the folder"):
        load("fashion-mnist")
    write(tmp_path, True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadInput, match=r"t10k-labels-idx1-ubyte\(.gz\) is missing"):
        load("fashion-mnist")


def test_not_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(b"no gzip at all")
    with pytest.raises(BadInput, match=r"x\.gz: cannot be read"):
        fashion.read_idx(str(path), ())


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60), zipped=st.booleans())
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, zipped: bool) -> None:
    path = tmp_path_factory.getbasetemp() / ("any.gz" if zipped else "any")
    path.write_bytes(content)
    with pytest.raises(BadInput):
        fashion.read_idx(str(path), (28, 28))


@pytest.mark.skipif(
    not Path(fashion.PLACES[0]).is_dir(), reason="Debian package dataset-fashion-mnist is not installed"
)
def test_debian_package(load: Callable[..., Data]) -> None:
    data = load("fashion-mnist", pool=14, train_images=12000)
    assert (len(data.train), len(data.validation), len(data.test)) == (12000, 1200, 10000)
    whole = load("fashion-mnist")
    assert (len(whole.train), len(whole.validation)) == (54000, 6000)
    assert isinstance(whole.test, ByteSplit)
    pixels = whole.test.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(0.2860, abs=2e-3)
    assert float(pixels.std()) == pytest.approx(0.3530, abs=2e-3)
    assert whole.test.fields["label"].bincount().tolist() == [1000] * 10
