"""Image files as values in [0, 1], or a refusal that names file and mode."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from plait.errors import BadInput

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
"""Pillow's modes of at most 8 bits a channel that it converts to RGB without loss of range."""
SIXTEEN_BIT = ("PNG", "TIFF", "PPM", "JPEG2000")
"""Formats of which Pillow's modes I;16 (and I, but for TIFF) hold 0 to 65535 whole."""
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of whole files."""
BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 339
"""Numbers of TIFF's tags."""


def read(path: str, size: int, margin: float = 1.0) -> npt.NDArray[np.float32]:
    """One image file as a square, float32 [3, size, size] in [0, 1]; `square` says how it is cut.

    Grey is repeated over the channels. 8 bits a channel (grey, RGB, palette, CMYK, YCbCr, HSV) and 1 bit are what
    Pillow and torchvision make of them, divided by 255; alpha is dropped and EXIF's orientation ignored, as there. Grey
    of 12 or 16 bits is divided by 4095 or 65535, and resized without rounding; Pillow reads 16-bit colour at 8 bits.
    Floats are taken when they lie in [0, 1]. Of several frames the first is read.

    Raises:
        BadInput: damaged, no image, or of a mode whose range is not known; it names the file and the mode.
    """
    try:
        with Image.open(path) as image:
            if image.mode in EIGHT_BIT and not _signed(image):
                # JPEG can be decoded at a half, a quarter or an eighth; twice the side leaves the resizing its quality
                image.draft("RGB", (2 * size, 2 * size))
                pixels: Pixels = np.asarray(square(_colour(image), size, margin))
            else:
                pixels = np.asarray(square(_deep(image, path), size, margin))[..., None].clip(0, 1)
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput(f"{path}: not a readable image: {_unidentified(path)}.") from None
    except Exception as error:  # decoders raise anything on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{path}: not a readable image ({reason}).") from None
    values = np.empty((3, size, size), np.float32)
    return np.divide(pixels.transpose(2, 0, 1), np.float32(255 if pixels.dtype == np.uint8 else 1), out=values)


def looks_whole(path: str) -> bool:
    """Whether a file begins as an image of a mode that `read` takes and, if JPEG or PNG, ends as one; reads no pixels.

    About 35 microseconds a file on a local disk, a twentieth of reading it. False is a suspicion: some programs write
    something behind an image's end. True is no proof: damage in the middle is not seen.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            known = image.mode in EIGHT_BIT or (image.mode.startswith("I;16") and image.format in SIXTEEN_BIT)
            ending = ENDINGS.get(image.format or "", b"")
            file.seek(-len(ending), os.SEEK_END)
            return known and file.read() == ending
    except Exception:  # decoders raise anything on damaged files
        return False


def square(image: Image.Image, size: int, margin: float = 1.0) -> Image.Image:
    """Resize the shorter side to ``margin * size`` (bilinear, antialiased), cut out the middle ``size`` x ``size``."""
    width, height = image.size
    scale = margin * size / min(width, height)
    # the box that ends up in the middle, in source pixels: resizing and cropping in one pass
    half = size / scale / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _colour(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    elif image.mode == "P" and "transparency" in image.info:  # same colours as at once, without Pillow's warning
        image = image.convert("RGBA")
    return image.convert("RGB")


def _signed(image: Image.Image) -> bool:
    """Whether a TIFF holds signed integers, which Pillow takes for unsigned ones at 8 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    return bool(2 in tags.get(SAMPLE_FORMAT, ()))


def _deep(image: Image.Image, path: str) -> Image.Image:
    """More than 8 bits of grey as mode F in [0, 1]."""
    tags: Any = getattr(image, "tag_v2", {})
    kind = f"mode {image.mode} ({image.format}{', signed' if _signed(image) else ''})"
    # Pillow names 12 bits I;16 too, and 16-bit PNG and PGM I in some versions; TIFF's I is signed or of 32 bits
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    if sixteen and image.format in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.float32) / np.float32(2 ** tags.get(BITS, (16,))[0] - 1)
    elif image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())  # NaN if any value is
        if not (low >= 0 and high <= 1):
            raise BadInput(
                f"{path}: {kind} has values from {low:g} to {high:g}; floats must lie in [0, 1]: rescale it."
            )
    else:
        remedy = "save it with 8 or 16 unsigned bits a channel, or as floats in [0, 1]"
        raise BadInput(f"{path}: {kind} has no fixed range of values; {remedy}.")
    if tags.get(PHOTOMETRIC) == 0:  # white is zero: Pillow inverts up to 8 bits only
        values = 1 - values
    return Image.fromarray(values)


def _unidentified(path: str) -> str:
    """Why Pillow does not know a file, in words."""
    if not os.path.getsize(path):
        return "the file is empty"
    try:
        with open(path, "rb") as file:
            tags: Any = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        numbers = {1: "unsigned", 2: "signed", 3: "float"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "other")
        depth = "+".join(str(bits) for bits in tags[BITS])
        return f"Pillow has no mode for this TIFF of {tags.get(SAMPLES, 1)} x {depth} bits, {numbers}"
    except Exception:  # no TIFF, or a damaged one
        return "no format that Pillow knows, or damaged"
