"""Fashion-MNIST from its published idx files, a subset of it, pixels in [0, 1] and not normalised. Card, "Data"."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadInput
from plait_dbadfl.data_options import SharedClothesOptions
from plait_dbadfl.sampling import generator

IMAGES, LABELS = 2051, 2049
"""Magic numbers of idx3 images and idx1 labels."""


def load(options: SharedClothesOptions, seed: int) -> Data:
    """Fields: ``input`` float32 [n, 1, 28, 28], ``label`` int64, ``index``. The subset is the same for every seed.

    Raises:
        BadInput: a file is missing (named) or not of its format, or there are fewer images than asked for.
    """
    folder = Path(options.path).expanduser()
    wanted = options.train + options.validation
    train = _subset(folder, "train", wanted, options.shuffle)
    test = _subset(folder, "t10k", options.test, options.shuffle)
    cut = options.train
    return Data(
        DataInfo("classification", (1, 28, 28), 10, 0, frozenset({"input", "label", "index"})),
        TensorSplit({name: value[:cut] for name, value in train.items()}),
        TensorSplit({name: value[cut:] for name, value in train.items()}),
        TensorSplit(test),
    )


def _subset(folder: Path, part: str, count: int, shuffle: int) -> dict[str, Tensor]:
    images = read_idx(folder, f"{part}-images-idx3-ubyte", IMAGES)
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte", LABELS)
    if len(images) != len(labels) or len(images) < count:
        raise BadInput(f"{folder}: {part} has {len(images)} images and {len(labels)} labels; {count} are wanted")
    rows = torch.randperm(len(images), generator=generator(shuffle, "clothes", part))[:count]
    return {"input": images[rows].float().div(255).unsqueeze(1), "label": labels[rows].long()}


def read_idx(folder: Path, name: str, magic: int) -> Tensor:
    """One idx file of bytes, plain or gzipped, in ``folder`` or its ``raw``; uint8 of the shape that it says.

    Raises:
        BadInput: it is missing, truncated, or has another magic number.
    """
    places = [base / (name + end) for base in (folder, folder / "raw") for end in ("", ".gz")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise BadInput(
            f"missing {places[1]}; apt-get install dataset-fashion-mnist (Debian), or set data.path to the folder with "
            f"{name}[.gz]"
        )
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        number, *shape = struct.unpack(f">{1 + magic % 256}i", content[: 4 * (1 + magic % 256)])
    except (OSError, EOFError, struct.error) as error:
        raise BadInput(f"{file}: cannot be read: {error}") from error
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + magic % 256))
    if number != magic or values.size != int(np.prod(shape)):
        raise BadInput(f"{file}: magic number {number} and {values.size} bytes; expected {magic} and {tuple(shape)}")
    return torch.from_numpy(values.reshape(shape).copy())
