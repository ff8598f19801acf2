"""Bit depths and modes of image files: right values in [0, 1] by numpy, or a refusal that names file and mode."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from plait.errors import BadInput
from plait_zoo.images import read
from plait_zoo.splits import ByteSplit, FileSplit

Array = npt.NDArray[Any]
SIDE = 8
DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (SIDE, SIDE), np.uint8)
RGB = DRAW.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
ALPHA = DRAW.integers(0, 256, (SIDE, SIDE, 1), np.uint8)
DEEP = DRAW.integers(0, 65536, (SIDE, SIDE), np.uint16)
DEEP.flat[:2] = 0, 65535
UNIT = DRAW.random((SIDE, SIDE), np.float32)
UNIT.flat[:2] = 0, 1
ONE_BYTE = 1 / 255
"""Pillow keeps the high byte of 16-bit colour: at most one step of 8 bits is lost."""


def png(path: Path, rows: list[bytes], depth: int, kind: int) -> None:
    """A PNG by the specification: ``kind`` 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def tiff(
    path: Path, body: bytes, bits: int, *, photometric: int = 1, sample: int = 1, of: int = 1, big: int = 0
) -> None:
    """An uncompressed TIFF by the specification: ``sample`` 1 unsigned, 2 signed, 3 float; ``of`` samples a pixel."""
    order = ">" if big else "<"
    tags = [(256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, photometric), (273, 8), (277, of), (278, SIDE)]
    tags += [(279, len(body)), (339, sample)]
    body += b"\0" * (len(body) % 2)
    after = 8 + len(body) + 2 + 12 * len(tags) + 4
    table = struct.pack(order + "H", len(tags))
    for number, value in tags:
        many = of if number in (258, 339) else 1
        long = number in (273, 279)
        if many > 2:
            table += struct.pack(order + "HHII", number, 3, many, after + (0 if number == 258 else 2 * many))
        elif long:
            table += struct.pack(order + "HHII", number, 4, 1, value)
        else:
            table += struct.pack(order + "HHIHH", number, 3, many, value, value if many == 2 else 0)
    values = struct.pack(f"{order}{2 * of}H", *([bits] * of + [sample] * of)) if of > 2 else b""
    head = (b"MM" if big else b"II") + struct.pack(order + "HI", 42, 8 + len(body))
    path.write_bytes(head + body + table + struct.pack(order + "I", 0) + values)


def packed(values: Array, bits: int) -> list[bytes]:
    """Rows of numbers below 2**bits, bits after one another, most significant first."""
    digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in digits.reshape(len(values), -1)]


def wanted(values: Array, most: float) -> Array:
    """[3, S, S] of [S, S] or [S, S, 3]."""
    scaled = values.astype(np.float64) / most
    return np.broadcast_to(scaled, (3, SIDE, SIDE)) if values.ndim == 2 else scaled.transpose(2, 0, 1)


def saved(array: Array, mode: str | None = None) -> Callable[[Path], None]:
    picture = Image.fromarray(array)
    return lambda path: (picture if mode is None else picture.convert(mode)).save(path)


def written(kind: str, array: Array) -> Callable[[Path], None]:
    return lambda path: Image.frombytes(kind, (SIDE, SIDE), array.tobytes()).save(path)


CMYK = np.concatenate([RGB, GREY[..., None]], 2)
CMYK_RGB = (255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255
NARROW = DRAW.integers(0, 4096, (SIDE, SIDE), np.uint16)
COLOUR_16 = DRAW.integers(0, 65536, (SIDE, SIDE, 4), np.uint16)
HALF = COLOUR_16.astype(">u2")

RIGHT: dict[str, tuple[str, Callable[[Path], None], Array, float]] = {
    # name: (ending, write, wanted [3, S, S], tolerance)
    "grey": ("png", saved(GREY), wanted(GREY, 255), 0),
    "rgb": ("png", saved(RGB), wanted(RGB, 255), 0),
    "rgb bmp": ("bmp", saved(RGB), wanted(RGB, 255), 0),
    "rgb tiff": ("tif", saved(RGB), wanted(RGB, 255), 0),
    "one bit": ("png", saved(GREY > 99), wanted((GREY > 99).astype(int), 1), 0),
    "two bits": ("png", lambda path: png(path, packed(GREY >> 6, 2), 2, 0), wanted(GREY >> 6, 3), 0),
    "four bits": ("png", lambda path: png(path, packed(GREY >> 4, 4), 4, 0), wanted(GREY >> 4, 15), 0),
    "four bits tiff": ("tif", lambda path: tiff(path, b"".join(packed(GREY >> 4, 4)), 4), wanted(GREY >> 4, 15), 0),
    "grey and alpha": ("png", saved(np.stack([GREY, ALPHA[..., 0]], 2)), wanted(GREY, 255), 0),
    "rgb and alpha": ("png", saved(np.concatenate([RGB, ALPHA], 2)), wanted(RGB, 255), 0),
    "rgb and alpha tiff": ("tif", saved(np.concatenate([RGB, ALPHA], 2)), wanted(RGB, 255), 0),
    "cmyk tiff": ("tif", written("CMYK", CMYK), wanted(CMYK_RGB, 255), 0.5 * ONE_BYTE),
    "ycbcr tiff": ("tif", saved(RGB, "YCbCr"), wanted(RGB, 255), 3 * ONE_BYTE),
    "white is zero": ("tif", lambda path: tiff(path, GREY.tobytes(), 8, photometric=0), wanted(255 - GREY, 255), 0),
    "16 png": ("png", lambda path: png(path, [row.astype(">u2").tobytes() for row in DEEP], 16, 0),
               wanted(DEEP, 65535), 1e-7),
    "16 pillow png": ("png", saved(DEEP), wanted(DEEP, 65535), 1e-7),
    "16 tiff": ("tif", saved(DEEP), wanted(DEEP, 65535), 1e-7),
    "16 tiff big": ("tif", lambda path: tiff(path, DEEP.astype(">u2").tobytes(), 16, big=1), wanted(DEEP, 65535), 1e-7),
    "16 lzw": ("tif", lambda path: Image.fromarray(DEEP).save(path, compression="tiff_lzw"), wanted(DEEP, 65535), 1e-7),
    "16 white is zero": ("tif", lambda path: tiff(path, DEEP.tobytes(), 16, photometric=0),
                         wanted(65535 - DEEP.astype(int), 65535), 1e-7),
    "16 pgm": ("pgm", lambda path: path.write_bytes(b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes()) and None,
               wanted(DEEP, 65535), 1e-7),
    "12 pgm": ("pgm", lambda path: path.write_bytes(b"P5 8 8 4095\n" + NARROW.astype(">u2").tobytes()) and None,
               wanted(NARROW, 4095), 1 / 65535),
    "12 tiff": ("tif", lambda path: tiff(path, b"".join(packed(NARROW, 12)), 12), wanted(NARROW, 4095), 1e-7),
    "16 rgb png": ("png", lambda path: png(path, [row.tobytes() for row in HALF[..., :3]], 16, 2),
                   wanted(COLOUR_16[..., :3], 65535), ONE_BYTE),
    "16 rgba png": ("png", lambda path: png(path, [row.tobytes() for row in HALF], 16, 6),
                    wanted(COLOUR_16[..., :3], 65535), ONE_BYTE),
    "16 la png": ("png", lambda path: png(path, [row.tobytes() for row in HALF[..., :2]], 16, 4),
                  wanted(COLOUR_16[..., 0], 65535), ONE_BYTE),
    "16 rgb tiff": ("tif", lambda path: tiff(path, COLOUR_16[..., :3].astype("<u2").tobytes(), 16, photometric=2, of=3),
                    wanted(COLOUR_16[..., :3], 65535), ONE_BYTE),
    "float tiff": ("tif", saved(UNIT), wanted(UNIT, 1), 1e-7),
    "float white is zero": ("tif", lambda path: tiff(path, UNIT.tobytes(), 32, sample=3, photometric=0),
                            wanted(1 - UNIT, 1), 1e-7),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_every_depth_and_mode_is_right(name: str, tmp_path: Path) -> None:
    ending, write, want, tolerance = RIGHT[name]
    path = tmp_path / f"a.{ending}"
    write(path)
    values = read(str(path), SIDE)
    assert values.dtype == np.float32
    assert values.shape == (3, SIDE, SIDE)
    np.testing.assert_allclose(values, want, rtol=0, atol=max(tolerance * 1.001, 1e-7))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))])
def test_palettes_are_looked_up(transparency: object, tmp_path: Path) -> None:
    colours = DRAW.integers(0, 256, (64, 3), np.uint8)
    picture = Image.frombytes("P", (SIDE, SIDE), (GREY >> 2).tobytes())
    picture.putpalette(colours.tobytes())
    for ending in ("png", "gif"):
        path = tmp_path / f"a.{ending}"
        if ending == "gif" and isinstance(transparency, bytes):
            continue
        picture.save(path, **({} if transparency is None else {"transparency": transparency}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = read(str(path), SIDE)
        np.testing.assert_allclose(values, wanted(colours[GREY >> 2], 255), rtol=0, atol=1e-7)


def test_jpeg_is_near_in_grey_rgb_and_cmyk(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)
    for mode, want in (("L", ramp / 255), ("RGB", ramp / 255), ("CMYK", ramp / 255)):
        Image.fromarray(ramp).convert("RGB").convert(mode).save(tmp_path / "a.jpg", quality=98)
        np.testing.assert_allclose(read(str(tmp_path / "a.jpg"), SIDE), np.stack([want] * 3), rtol=0, atol=0.03)


def test_deep_images_are_resized_without_rounding(tmp_path: Path) -> None:
    large = DRAW.integers(0, 65536, (16, 16), np.uint16)
    faint = (large // 512).astype(np.uint16)  # 0 to 127 of 65535: all black at 8 bits
    Image.fromarray(faint).save(tmp_path / "a.png")
    values = read(str(tmp_path / "a.png"), SIDE)
    # antialiased bilinear at a half: weights 1, 3, 3, 1 of 8 away from the border
    kernel = np.array([1, 3, 3, 1]) / 8
    want = kernel @ (faint[5:9, 5:9] / 65535) @ kernel
    assert float(values[0, 3, 3]) == pytest.approx(want, rel=1e-4)
    assert len(np.unique(values)) > 50


def test_first_frame_and_orientation_as_torchvision_has_them(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((SIDE, SIDE), level, np.uint8)) for level in (50, 200)]
    for ending in ("gif", "tif", "png", "webp"):
        options = {"lossless": True} if ending == "webp" else {}
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
        assert np.allclose(read(str(tmp_path / f"a.{ending}"), SIDE), 50 / 255, atol=1e-6)
    turned = Image.Exif()
    turned[274] = 6
    levels = np.repeat(np.arange(0, 256, 32, dtype=np.uint8), SIDE).reshape(SIDE, SIDE)
    Image.fromarray(levels).save(tmp_path / "turned.jpg", exif=turned, quality=98)
    np.testing.assert_allclose(read(str(tmp_path / "turned.jpg"), SIDE)[0], levels / 255, rtol=0, atol=0.03)


def refused(path: Path, match: str) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        read(str(path), SIDE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranges_that_are_not_known_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for values, said in ((UNIT * 255, "0 to 255"), (UNIT - 0.5, "-0.5 to 0.5"), (UNIT * np.nan, "nan to nan")):
        Image.fromarray(values.astype(np.float32)).save(path)
        refused(path, rf"mode F \(TIFF\) has values from {said}; floats must lie in \[0, 1\]")
    Image.fromarray(DEEP.astype(np.int32)).save(path)
    refused(path, r"mode I \(TIFF, signed\) has no fixed range of values; save it with 8 or 16 unsigned bits")
    for signed in (DEEP.astype("<i2"), GREY.astype("i1")):
        tiff(path, signed.tobytes(), 8 * signed.itemsize, sample=2)
        refused(path, r"mode [IL] \(TIFF, signed\) has no fixed range")
    tiff(path, DEEP.astype("<u4").tobytes(), 32)
    refused(path, r"mode I \(TIFF\) has no fixed range")
    Image.frombytes("LAB", (SIDE, SIDE), RGB.tobytes()).save(path)
    refused(path, r"mode LAB \(TIFF\)")
    tiff(path, UNIT.astype("<f8").tobytes(), 64, sample=3)
    refused(path, "Pillow has no mode for this TIFF of 1 x 64 bits, float")
    tiff(path, np.stack([UNIT] * 3, 2).tobytes(), 32, sample=3, photometric=2, of=3)
    refused(path, r"TIFF of 3 x 32\+32\+32 bits, float")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "ppm", "webp", "gif"])
def test_truncated_files_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(DRAW.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    content = path.read_bytes()
    for share in (0.9, 0.5):
        path.write_bytes(content[: int(len(content) * share)])
        refused(path, "not a readable image")


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    refused(path, "the file is empty")
    path.write_text("<html>404</html>")
    refused(path, "no format that Pillow knows, or damaged")
    (tmp_path / "b.png").mkdir()
    refused(tmp_path / "b.png", "IsADirectoryError")


def test_a_batch_may_mix_grey_colour_and_depths(tmp_path: Path) -> None:
    names = ["grey", "16 png", "rgb", "float tiff", "rgb and alpha", "16 tiff", "one bit", "cmyk tiff", "16 pgm"]
    files = []
    for number, name in enumerate(names):
        files.append(f"{number}.{RIGHT[name][0]}")
        RIGHT[name][1](tmp_path / files[-1])
    split = FileSplit(str(tmp_path), files, {"label": torch.zeros(len(files)).long()}, SIDE)
    batch = split.__getitems__(range(len(files)))["input"]
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    for image, name in zip(batch, names, strict=True):
        np.testing.assert_allclose(image, RIGHT[name][2], rtol=0, atol=0.003)


def test_byte_split_takes_bytes_only() -> None:
    with pytest.raises(BadInput, match=r"torch.uint8 \(0 to 255\), got torch.float32"):
        ByteSplit(torch.rand(2, 1, 4, 4), {})
