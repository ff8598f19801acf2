"""What the models share: the check of the data's shape, and groups of channels that can be removed."""

from __future__ import annotations

from plait.data import DataInfo
from plait.errors import BadInput

Group = tuple[str, str | None, list[str]]
"""(producer, norm or None, consumers), module names: a producer's channel can go when the consumers drop its input."""


def image_shape(info: DataInfo, model: str) -> tuple[int, int, int]:
    """(C, H, W) of the data.

    Raises:
        BadInput: the data are no images, or no classes are known.
    """
    shape = tuple(info.input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise BadInput(f"model {model} needs images of shape (channels, height, width); the data's shape is {shape}.")
    classes(info, model)
    return shape


def classes(info: DataInfo, model: str) -> int:
    """K, the number of classes.

    Raises:
        BadInput: the data have none.
    """
    if info.num_classes < 1:
        raise BadInput(f"model {model} needs the number of classes; the data declare {info.num_classes}.")
    return info.num_classes
