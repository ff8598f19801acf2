"""Ordinary data sources and models that several papers share: small real data in memory, published layouts on disk.

Importing this imports no torch; the names below are loaded at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait_zoo.cnn import SmallCNN as SmallCNN
    from plait_zoo.mlp import MLP as MLP
    from plait_zoo.resnet import ResNet as ResNet
    from plait_zoo.splits import ByteSplit as ByteSplit
    from plait_zoo.splits import FileSplit as FileSplit
    from plait_zoo.toned import render as render
    from plait_zoo.transforms import CropFlip as CropFlip
    from plait_zoo.transforms import Flip as Flip
    from plait_zoo.transforms import Normalize as Normalize
    from plait_zoo.transforms import ResizedCropFlip as ResizedCropFlip
    from plait_zoo.vgg import BNVGG as BNVGG

__version__ = "0.1.0"

_HOME = {
    "BNVGG": "vgg",
    "ByteSplit": "splits",
    "CropFlip": "transforms",
    "FileSplit": "splits",
    "Flip": "transforms",
    "MLP": "mlp",
    "Normalize": "transforms",
    "ResNet": "resnet",
    "ResizedCropFlip": "transforms",
    "SmallCNN": "cnn",
    "render": "toned",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"plait_zoo.{_HOME[name]}"), name)
    raise AttributeError(f"module 'plait_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
