"""Frames in files: RGB, thermal in degrees Celsius or as a picture, and where and when they were taken."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from plait.storage.files import write_atomically

from .errors import FlamefinderError

__all__ = ["auto_gain", "position", "read_celsius", "read_grey", "read_rgb", "save_png", "save_row", "taken"]

SPAN = 15.0
"""Smallest range, degrees, that the auto-gain spreads over 8 bits: a cold scene is not blown up into noise."""


def _opened(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError:
        raise FlamefinderError(f"{file}: no such file.") from None
    except Exception as error:  # a damaged image may raise anything
        raise FlamefinderError(f"{file}: cannot be read as an image: {error}.") from error
    return image


def read_rgb(file: Path) -> npt.NDArray[np.uint8]:
    """An RGB frame, uint8 [H, W, 3].

    Raises:
        FlamefinderError: no image.
    """
    return np.asarray(_opened(file).convert("RGB"))


def read_grey(file: Path) -> npt.NDArray[np.uint8]:
    """A thermal picture as its luminance, uint8 [H, W]; a colour map becomes brightness.

    Raises:
        FlamefinderError: no image, or all of one value.
    """
    grey = np.asarray(_opened(file).convert("L"))
    _not_constant(grey, file)
    return grey


def read_celsius(file: Path) -> npt.NDArray[np.float32]:
    """A thermal frame in degrees Celsius, float32 [H, W].

    Raises:
        FlamefinderError: no image, a picture with a colour map, whole numbers (counts of the sensor), NaN, or all of
            one value.
    """
    image = _opened(file)
    if image.mode != "F":
        what = "integer counts" if image.mode.startswith("I") else f"a picture ({image.mode})"
        raise FlamefinderError(
            f"{file}: holds {what} and no degrees Celsius, which are 32-bit floats: convert it, or take thermal ="
            " 'raw_jpg'."
        )
    celsius = np.asarray(image, dtype=np.float32)
    if not np.isfinite(celsius).all():
        raise FlamefinderError(f"{file}: {int((~np.isfinite(celsius)).sum())} pixels are NaN or infinite.")
    _not_constant(celsius, file)
    return celsius


def _not_constant(values: npt.NDArray[Any], file: Path) -> None:
    if values.max() == values.min():
        raise FlamefinderError(f"{file}: every pixel is {values.flat[0]}, so there is nothing to scale.")


def auto_gain(celsius: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The frame as a camera shows it: percentiles 1 to 99.9, at least `SPAN` degrees, in 8 bits. No absolute scale."""
    low, high = np.percentile(celsius, [1, 99.9])
    share = np.clip((celsius - low) / max(high - low, SPAN), 0, 1)
    return np.asarray(share * 255 + 0.5).astype(np.uint8)


def taken(file: Path) -> float | None:
    """When a frame was taken by its EXIF, in seconds of an epoch; None where it does not say."""
    exif = _opened(file).getexif()
    text = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    try:
        return datetime.strptime(str(text), "%Y:%m:%d %H:%M:%S").timestamp()
    except ValueError:
        return None


def position(file: Path) -> tuple[float, float] | None:
    """Longitude and latitude of a frame by its EXIF, degrees; None where it does not say."""
    gps = _opened(file).getexif().get_ifd(ExifTags.IFD.GPSInfo)
    tags = ExifTags.GPS
    try:
        east = _degrees(gps[tags.GPSLongitude]) * (-1 if gps.get(tags.GPSLongitudeRef) == "W" else 1)
        north = _degrees(gps[tags.GPSLatitude]) * (-1 if gps.get(tags.GPSLatitudeRef) == "S" else 1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (east, north) if abs(east) <= 180 and abs(north) <= 90 else None  # a receiver without a fix writes 0/0: NaN


def _degrees(parts: Any) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    return degrees + minutes / 60 + seconds / 3600


def save_row(file: Path, patches: npt.NDArray[Any], scale: int = 4) -> None:
    """Patches [n, P, P] in [0, 1] side by side as a PNG, each pixel ``scale`` wide."""
    framed = np.pad(patches, ((0, 0), (1, 1), (1, 1)), constant_values=1)
    grey = (np.clip(np.concatenate(list(framed), 1), 0, 1) * 255).astype(np.uint8)
    save_png(file, np.kron(grey, np.ones((scale, scale), np.uint8)))


def save_png(file: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """A picture, uint8 [H, W] or [H, W, 3], written whole or not at all."""
    write_atomically(file, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))


READERS: dict[str, Callable[[Path], npt.NDArray[Any]]] = {
    "agc": lambda file: auto_gain(read_celsius(file)),
    "raw_jpg": read_grey,
    "celsius": lambda file: np.clip((cast(Any, read_celsius(file)) + 40) / 680, 0, 1).astype(np.float32),
}
"""How a thermal frame is read, by the option ``thermal``: uint8, or float32 in [0, 1] for -40 to 640 degrees."""
