"""FLAME2 and FLAME3 on small files in their published layouts, and every way in which they can be wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from plait_flamefinder.errors import FlamefinderError
from plait_flamefinder.frames import auto_gain, position, read_celsius, read_grey, taken
from plait_flamefinder.options import Flame2Options, Flame3Options
from plait_flamefinder.published import flame2, flame2_labels, flame3

RNG = np.random.default_rng(0)


def rgb_frame(height: int, width: int, flame: bool) -> np.ndarray:
    frame = np.full((height, width, 3), (40, 70, 30), np.uint8) + RNG.integers(0, 5, (height, width, 3), np.uint8)
    if flame:
        frame[100:110, 100:110] = (250, 150, 40)
    return frame


def saved(file: Path, pixels: np.ndarray, moment: str | None = None, gps: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if moment is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = moment
    if gps:
        where = exif.get_ifd(ExifTags.IFD.GPSInfo)
        where |= {ExifTags.GPS.GPSLatitude: (42.0, 30.0, 0.0), ExifTags.GPS.GPSLatitudeRef: "N"}
        where |= {ExifTags.GPS.GPSLongitude: (121.0, 15.0, 36.0), ExifTags.GPS.GPSLongitudeRef: "W"}
    Image.fromarray(pixels).save(file, exif=exif, **({"quality": 95} if file.suffix.lower() == ".jpg" else {}))


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Bad input of the card: exit code 2, and one line that names what is wrong."""
    with pytest.raises(FlamefinderError, match=message) as caught:
        yield
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.smoke
def test_gain_forgets_the_temperature() -> None:
    celsius = RNG.normal(20, 3, (64, 64)).astype(np.float32)
    celsius[10:14, 10:14] = 300
    gained = auto_gain(celsius)
    assert gained.min() == 0
    assert gained.max() == 255
    np.testing.assert_array_equal(auto_gain(2 * celsius + 40), gained)
    cold = auto_gain(RNG.normal(20, 0.2, (64, 64)).astype(np.float32))
    assert cold.max() < 40  # a span of fifteen degrees at least


@pytest.mark.smoke
def test_when_and_where(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg", rgb_frame(16, 16, False), "2022:10:25 11:00:30", gps=True)
    saved(tmp_path / "b.jpg", rgb_frame(16, 16, False), "2022:10:25 11:01:00")
    assert taken(tmp_path / "b.jpg") - taken(tmp_path / "a.jpg") == 30  # type: ignore[operator]
    assert position(tmp_path / "a.jpg") == pytest.approx((-121.26, 42.5))
    assert position(tmp_path / "b.jpg") is None
    lost = Image.Exif()  # as a receiver without a fix writes it
    lost.get_ifd(ExifTags.IFD.GPSInfo).update({2: (IFDRational(0, 0), 0.0, 0.0), 4: (121.0, 15.0, 36.0)})
    Image.fromarray(rgb_frame(16, 16, False)).save(tmp_path / "c.jpg", exif=lost)
    assert position(tmp_path / "c.jpg") is None


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8), np.uint16), "integer counts"),
        (np.zeros((8, 8), np.uint8), r"a picture \(L\)"),
        (np.zeros((8, 8, 3), np.uint8), r"a picture \(RGB\)"),
        (np.full((8, 8), np.nan, np.float32), "64 pixels are NaN"),
        (np.full((8, 8), np.inf, np.float32), "64 pixels are NaN or infinite"),
        (np.full((8, 8), 21.5, np.float32), "every pixel is 21.5"),
    ],
)
def test_files_that_hold_no_degrees(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with refused(f"a.tiff: .*{message}"):
        read_celsius(tmp_path / "a.tiff")


@pytest.mark.smoke
def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with refused(r"a\.jpg: cannot be read as an image"):
        read_grey(tmp_path / "a.jpg")
    with refused(r"b\.jpg: no such file"):
        read_grey(tmp_path / "b.jpg")
    saved(tmp_path / "c.png", np.full((8, 8), 7, np.uint8))
    with refused(r"c\.png: every pixel is 7, so there is nothing to scale"):
        read_grey(tmp_path / "c.png")


# ---- FLAME2 ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flame2")
    for number in range(1, 15):
        for kind in ("RGB", "Thermal"):
            pixels = rgb_frame(254, 254, number % 2 == 0)
            saved(root / f"254p_Frame_Pairs/254p {kind} Images/254p {kind} Frame ({number}).jpg", pixels)
    (root / "#10) Frame Pair Labels.txt").write_text("Labels\n\nfirst\tlast\tcode\n1\t4\tNN\n5\t10\tYY\n11\t14\tYN\n")
    return root


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


def test_flame2(two: Path) -> None:
    data = flame2(Flame2Options(root=str(two), block=2), 0)
    data.check("flame2")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [10 * 49, 2 * 49, 2 * 49]
    assert data.info.input_shape == (1, 32, 32)
    # one spot of 10 x 10 pixels from 85, 85 of the crop: in one patch of each second frame
    assert set(data.train.fields["frame"].tolist()) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 13}  # blocks of frames 1, 2-3, ...
    assert int(data.train.fields["label"].sum()) == 5
    assert set(data.train.fields["group"].tolist()) == {0, 1}
    assert any("no flame pixel" in note for note in data.notes)


@pytest.mark.smoke
def test_flame2_names_and_known_ranges(tmp_path: Path) -> None:
    for number in (13700, 13701, 15000, 52000):
        for kind in ("RGB", "Thermal"):
            saved(tmp_path / f"254p {kind} Images/{number}.jpg", rgb_frame(254, 254, number > 13700))
    data = flame2(Flame2Options(root=str(tmp_path), block=1), 0)
    groups = [split.fields["group"] for split in (data.train, data.validation, data.test)]
    assert [set(group.tolist()) for group in groups] == [{0, 1}, {1}, {0}]  # 13700 NN, 52000 YY; 13701 YY; 15000 YN


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1\t4\tNX\n", "line 3: unknown code 'NX'; known: NN, YN, YY, NY"),
        ("1\t4\tNN\n4\t9\tYY\n", "line 4: frame 4 is in two ranges"),
        ("5\t6\tNN\n2\t9\tYY\n", "line 4: frame 5 is in two ranges"),
        ("1\t40\tNN\n", "line 3: frames 1 to 40; the last image is 14"),
        ("9\t4\tNN\n", "line 3: frames 9 to 4"),
        ("1\t4\tNN\n5 x YY\n", "line 4: '5 x YY' is no 'first last code'"),
        ("", "no line 'first last code' in it"),
    ],
)
def test_labels_that_are_wrong(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "10) Frame Pair Labels.txt"
    file.write_text("Labels\nfirst last code\n" + lines)
    with refused(message):
        flame2_labels(file, 14)


def test_flame2_that_lacks_something(two: Path, tmp_path: Path) -> None:
    root = copied(two, tmp_path)
    gone = next(root.rglob("254p Thermal Frame (3).jpg"))
    gone.unlink()
    with refused(r"254p RGB Frame \(3\).jpg: no Thermal image"):
        flame2(Flame2Options(root=str(root), block=2), 0)
    lacking = flame2(Flame2Options(root=str(root), block=2, skip_bad=True), 0)
    assert "1 of 14 frames cannot be used and were skipped" in lacking.notes[0]
    rgb = next(root.rglob("254p RGB Frame (3).jpg"))
    saved(gone, np.asarray(Image.open(rgb)))
    rgb.unlink()
    with refused(r"254p Thermal Frame \(3\).jpg: no RGB image"):
        flame2(Flame2Options(root=str(root), block=2), 0)
    saved(rgb, rgb_frame(254, 254, False))
    saved(gone, rgb_frame(254, 320, False))
    with refused(r"254p RGB Frame \(3\).jpg: 254 x 254 pixels, and .* 320 x 254"):
        flame2(Flame2Options(root=str(root), block=2), 0)
    skipped = flame2(Flame2Options(root=str(root), block=2, skip_bad=True), 0)
    assert "1 of 14 frames cannot be used and were skipped" in skipped.notes[0]
    with refused("no frame for the validation split"):
        flame2(Flame2Options(root=str(two), block=1000), 0)
    labels = root / "#10) Frame Pair Labels.txt"
    labels.write_text(labels.read_text().replace("11\t14", "12\t14"))
    saved(gone, rgb_frame(254, 254, False))
    with refused(r"Frame \(11\)\.jpg: the frame is in no range of #10\) Frame Pair"):
        flame2(Flame2Options(root=str(root), block=2), 0)
    with refused("no such folder"):
        flame2(Flame2Options(root=str(two / "nowhere")), 0)
    (tmp_path / "empty").mkdir()
    with refused("no folder '254p RGB Images'"):
        flame2(Flame2Options(root=str(tmp_path / "empty")), 0)


# ---- FLAME3 ----------------------------------------------------------------------------------------------------------
def quartet(root: Path, number: int, fire: bool, minute: int | None, degrees: Any = None) -> None:
    stem, side = f"{number:05d}", root / ("Fire" if fire else "No Fire")
    moment = None if minute is None else f"2022:10:25 11:{minute:02d}:00"
    saved(side / f"RGB/Corrected FOV/{stem}.JPG", rgb_frame(512, 640, fire), moment)
    celsius = RNG.normal(20, 3, (512, 640)).astype(np.float32) if degrees is None else degrees
    if fire and degrees is None:
        celsius[100:110, 100:110] = 400  # behind the flame in RGB
        celsius[300:310, 300:310] = 90  # hot ground
    saved(side / f"Thermal/Celsius TIFF/{stem}.TIFF", celsius)
    saved(side / f"Thermal/Raw JPG/{stem}.JPG", auto_gain(celsius))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flame3")
    for number in range(6):
        quartet(root, number, number % 2 == 0, 10 * number)
    return root


@pytest.mark.parametrize("thermal", ["agc", "raw_jpg", "celsius"])
def test_flame3(three: Path, thermal: Any) -> None:
    data = flame3(Flame3Options(root=str(three), thermal=thermal), 0)
    data.check("flame3")
    assert data.info.input_shape == (1, 64, 64)
    assert len(data.train) == 2 * 80
    assert len(data.test) == 2 * 80
    # patches of the second row and column: the spot at 100 lies in row 1, column 1
    flames = data.test.fields["label"].nonzero().flatten()
    assert data.test.fields["patch"][flames].tolist() == [11]
    hot = data.test.fields["hot"].nonzero().flatten()
    assert data.test.fields["patch"][hot].tolist() == ([] if thermal == "raw_jpg" else [4 * 10 + 4])
    batch = data.test.__getitems__(flames)
    assert 0 <= float(batch["input"].min()) <= float(batch["input"].max()) <= 1
    assert ("celsius_max" in batch) == (thermal != "raw_jpg")
    if thermal == "celsius":
        assert float(batch["celsius_max"][0]) == 400
        assert float(batch["input"].max()) == pytest.approx((400 + 40) / 680)


def test_flights_and_blocks(three: Path) -> None:
    with refused("no frame for the validation split"):
        flame3(Flame3Options(root=str(three), split="flight"), 0)  # ten minutes are no gap
    blocks = flame3(Flame3Options(root=str(three), block=1200.0), 0)
    assert [set(s.fields["frame"].tolist()) for s in (blocks.train, blocks.validation, blocks.test)] == [
        {0, 1},
        {2, 3},
        {4, 5},
    ]


def test_flame3_that_is_wrong(three: Path, tmp_path: Path) -> None:
    root = copied(three, tmp_path)
    tiff = root / "No Fire/Thermal/Celsius TIFF/00001.TIFF"
    options = Flame3Options(root=str(root))
    saved(tiff, np.zeros((512, 640), np.uint16))
    with refused(r"00001.TIFF: holds integer counts"):
        flame3(options, 0)
    tiff.unlink()
    with refused(r"Celsius TIFF: no frame 00001, which the other has; skip_bad = true"):
        flame3(options, 0)
    skipping = options.model_copy(update={"skip_bad": True, "block": 600.0})
    assert "1 of 6 frames cannot be used and were skipped" in flame3(skipping, 0).notes[0]
    saved(tiff, RNG.normal(20, 3, (512, 640)).astype(np.float32))
    picture = root / "No Fire/RGB/Corrected FOV/00001.JPG"
    saved(picture, rgb_frame(512, 640, False))
    with refused(r"00001.JPG: no time in its EXIF"):
        flame3(options, 0)
    assert "1 of 6 frames cannot be used and were skipped" in flame3(skipping, 0).notes[0]
    picture.unlink()
    with refused(r"Corrected FOV: no frame 00001, which the other has"):
        flame3(options, 0)
    saved(tiff, rgb_frame(512, 640, False))
    saved(picture, rgb_frame(512, 640, False), "2022:10:25 11:10:00")
    with refused(r"00001.TIFF: holds a picture \(RGB\) and no degrees Celsius"):
        flame3(options.model_copy(update={"thermal": "celsius"}), 0)
    degrees = RNG.normal(20, 3, (512, 640)).astype(np.float32)
    degrees[5, 7] = np.nan
    saved(tiff, degrees)
    with refused(r"00001.TIFF: 1 pixels are NaN or infinite"):
        flame3(options, 0)
    saved(tiff, np.nan_to_num(degrees))
    saved(picture, rgb_frame(600, 800, False), "2022:10:25 11:10:00")
    with refused(r"800 x 600 pixels.*640 x 512.*Corrected FOV, not Raw"):
        flame3(options, 0)
    for number in (0, 2, 4):  # nothing that RGB shows
        saved(
            root / f"Fire/RGB/Corrected FOV/{number:05d}.JPG", rgb_frame(512, 640, False), f"2022:10:25 11:{number}0:00"
        )
    saved(picture, rgb_frame(512, 640, False), "2022:10:25 11:10:00")
    with refused(r"no flame patches in unobscured training frames: check data\.min_flame_px"):
        flame3(options, 0)
    with refused("a patch of 600 pixels is larger than the frame of 512 x 640"):
        flame3(Flame3Options(root=str(copied(three, tmp_path / "b")), patch=512).model_copy(update={"patch": 600}), 0)
