"""``fashion-mnist``: the published idx files (also MNIST's and KMNIST's), gzipped or raw."""

from __future__ import annotations

import gzip
import os
import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Data, DataInfo, Split, TensorSplit
from plait.errors import BadInput
from plait_zoo.options import FashionMnistOptions
from plait_zoo.places import FASHION_PLACES
from plait_zoo.splits import ByteSplit
from plait_zoo.transforms import Normalize

PLACES = FASHION_PLACES
INSIDE = ("", "raw", "FashionMNIST/raw", "fashion")
NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
LAYOUT = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, raw or .gz"
)
SOURCE = "apt-get install dataset-fashion-mnist (Debian), or https://github.com/zalandoresearch/fashion-mnist"
MEAN, STD = 0.2860, 0.3530
MOST = 1_000_000
"""More images than any file of this layout has: a larger count in a header is damage, not data."""


def load(options: FashionMnistOptions, seed: int) -> Data:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 training and 10,000 test images of 10 kinds of clothes.

    Fields: ``input`` float32 [B, 1, S, S] in [0, 1] with S = 28 or 14, ``label`` int64 in 0..9, ``index``. Validation
    is drawn from the training file by seed. `Data.prepare` normalises by the published mean 0.286 and deviation 0.353.

    Raises:
        BadInput: the folder or a file is missing, or a file is truncated, foreign or inconsistent (named, with the
            expected bytes); more training images are asked for than there are.
    """
    folder = _folder(options.path)
    train_images, train_labels = _pair(folder, "train")
    test_images, test_labels = _pair(folder, "t10k")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_labels), generator=generator)
    held = max(1, len(order) // 10) if options.train_images is None else max(1, options.train_images // 10)
    used = len(order) - held if options.train_images is None else options.train_images
    if used < 1 or used + held > len(order):
        raise BadInput(
            f"data fashion-mnist: train_images = {options.train_images} and {held} for validation are more than the "
            f"{len(order)} images of {folder}."
        )

    def split(images: Tensor, labels: Tensor) -> Split:
        if options.pool == 28:
            return ByteSplit(images, {"label": labels})
        pooled = functional.avg_pool2d(images.float().div_(255), 2)
        return TensorSplit({"input": pooled, "label": labels})

    rows, held_rows = order[:used], order[used : used + held]
    return Data(
        DataInfo("classification", (1, options.pool, options.pool), 10),
        split(train_images[rows], train_labels[rows]),
        split(train_images[held_rows], train_labels[held_rows]),
        split(test_images, test_labels),
        prepare=Normalize((MEAN,), (STD,)),
        names={"label": list(NAMES)},
    )


def _folder(path: str) -> str:
    places = (os.path.expanduser(path),) if path else PLACES
    for place in places:
        for inside in INSIDE:
            folder = os.path.join(place, inside) if inside else place
            if _find(folder, "train-images-idx3-ubyte"):
                return folder
    if path and not os.path.isdir(places[0]):
        raise BadInput(f"data fashion-mnist: there is no folder {path!r}. It must hold {LAYOUT}. Get them by {SOURCE}.")
    raise BadInput(
        f"data fashion-mnist: no train-images-idx3-ubyte(.gz) in {' or '.join(places)}. Get the files by {SOURCE}; "
        f"then data.path names the folder of {LAYOUT}."
    )


def _find(folder: str, name: str) -> str | None:
    candidates = (os.path.join(folder, name + ending) for ending in (".gz", ""))
    return next((path for path in candidates if os.path.isfile(path)), None)


def _pair(folder: str, part: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(read_idx(_required(folder, f"{part}-images-idx3-ubyte"), (28, 28)).copy()).unsqueeze(1)
    label_file = _required(folder, f"{part}-labels-idx1-ubyte")
    labels = torch.from_numpy(read_idx(label_file, ()).copy()).long()
    if len(images) != len(labels):
        raise BadInput(f"data fashion-mnist: {label_file} has {len(labels)} labels for {len(images)} images.")
    if not len(labels):
        raise BadInput(f"data fashion-mnist: {label_file} is empty.")
    if int(labels.max()) > 9:
        raise BadInput(f"data fashion-mnist: {label_file} has the label {int(labels.max())}; labels are 0 to 9.")
    return images, labels


def _required(folder: str, name: str) -> str:
    file = _find(folder, name)
    if file is None:
        raise BadInput(
            f"data fashion-mnist: {os.path.join(folder, name)}(.gz) is missing. The folder must hold {LAYOUT}."
        )
    return file


def read_idx(path: str, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An idx file of unsigned bytes: uint8 [n, *shape].

    Args:
        path: raw, or gzipped when it ends in ``.gz``.
        shape: what every item must have: (28, 28) for images, () for labels.

    Raises:
        BadInput: naming the file, what it has and the bytes it must have.
    """
    header = 4 * (2 + len(shape))
    magic = 0x0800 | (1 + len(shape))
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            head = file.read(header)
            if len(head) < header:
                raise BadInput(f"{path}: {len(head)} bytes, not even the {header} bytes of an idx header.")
            kind, count, *sides = (int(value) for value in np.frombuffer(head, ">u4"))
            if kind != magic:
                raise BadInput(
                    f"{path}: magic number 0x{kind:08x}, expected 0x{magic:08x}: not an idx file of this kind."
                )
            if tuple(sides) != shape or count > MOST:
                size = " x ".join(str(side) for side in (count, *sides))
                raise BadInput(
                    f"{path}: holds {size} values, expected {' x '.join(['n', *map(str, shape)])}, n at most {MOST}."
                )
            wanted = count * int(np.prod(shape, dtype=np.int64))
            body = _read_up_to(file, wanted + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: cannot be read: {error}.") from None
    if len(body) != wanted:
        have = f"only {header + len(body)}" if len(body) < wanted else "more"
        raise BadInput(
            f"{path}: {header + wanted} bytes expected (uncompressed) for {count} items, {have} found; get it again."
        )
    return np.frombuffer(body, np.uint8).reshape(count, *shape)


def _read_up_to(file: object, count: int) -> bytes:
    """At most ``count`` bytes; a gzip stream that breaks off gives what came before the break."""
    parts: list[bytes] = []
    left = count
    while left > 0:
        try:
            part: bytes = file.read(min(left, 1 << 20))  # type: ignore[attr-defined]
        except EOFError:
            break
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
