"""``cifar10`` and ``cifar100`` as published: Python pickles in a folder or in the .tar.gz (Krizhevsky 2009)."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import Data, DataInfo
from plait.errors import BadInput
from plait_zoo import pickled
from plait_zoo.options import Cifar10Options, Cifar100Options
from plait_zoo.splits import ByteSplit
from plait_zoo.transforms import CropFlip, Normalize

PIXELS = 3 * 32 * 32
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
ARCHIVES = {"cifar-10-batches-py": "cifar-10-python.tar.gz", "cifar-100-python": "cifar-100-python.tar.gz"}


def load_cifar10(options: Cifar10Options, seed: int) -> Data:
    """CIFAR-10: ``data_batch_1`` to ``data_batch_5`` train, ``test_batch`` tests, 10 classes.

    Fields: ``input`` float32 [B, 3, 32, 32] in [0, 1], ``label`` int64 in 0..9, ``index``. Validation is drawn from the
    training images by seed. `Data.augment` pads, crops and flips; `Data.prepare` normalises per channel.

    Raises:
        BadInput: a file is missing, truncated, or asks for more than plain values; it is named.
    """
    train = [f"data_batch_{number}" for number in range(1, 6)]
    files = _open(options.path, "cifar10", "cifar-10-batches-py", [*train, "test_batch", "batches.meta"])
    names = [_text(name) for name in files["batches.meta"].get("label_names", [])]
    constants = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    parts = [_images(files[name], name, "labels", 10, "cifar10") for name in train]
    whole = (torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))
    test = _images(files["test_batch"], "test_batch", "labels", 10, "cifar10")
    return _data(whole, test, 10, names, constants, options, seed)


def load_cifar100(options: Cifar100Options, seed: int) -> Data:
    """CIFAR-100: ``train`` and ``test``, 100 classes or their 20 superclasses; otherwise as `load_cifar10`."""
    files = _open(options.path, "cifar100", "cifar-100-python", ["train", "test", "meta"])
    classes = 100 if options.labels == "fine" else 20
    names = [_text(name) for name in files["meta"].get(f"{options.labels}_label_names", [])]
    constants = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    key = f"{options.labels}_labels"
    train, test = (_images(files[name], name, key, classes, "cifar100") for name in ("train", "test"))
    return _data(train, test, classes, names, constants, options, seed)


def _data(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    names: Sequence[str],
    constants: tuple[tuple[float, ...], tuple[float, ...]],
    options: Cifar10Options,
    seed: int,
) -> Data:
    images, labels = train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(options.validation_share * len(order)))
    train_split, validation = (
        ByteSplit(images[rows], {"label": labels[rows]}) for rows in (order[held:], order[:held])
    )
    return Data(
        DataInfo("classification", (3, 32, 32), classes),
        train_split,
        validation,
        ByteSplit(test[0], {"label": test[1]}),
        augment=CropFlip(pad=4) if options.augment else None,
        prepare=Normalize(*constants),
        names={"label": list(names)} if len(names) == classes else {},
    )


def _open(path: str, source: str, folder: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The dictionaries of the named files, from the folder, its parent, or a tar archive."""
    path = os.path.expanduser(path)
    layout = f"Expected: the folder {folder} ({', '.join(names)}), its parent, or {ARCHIVES[folder]}; see {SOURCE}."
    if os.path.isdir(path):
        inner = os.path.join(path, folder)
        home = inner if os.path.isdir(inner) else path
        missing = [name for name in names if not os.path.isfile(os.path.join(home, name))]
        if missing:
            raise BadInput(f"data {source}: {os.path.join(home, missing[0])} is missing. {layout}")
        return {name: _read_file(os.path.join(home, name)) for name in names}
    if os.path.isfile(path):
        return _from_archive(path, source, folder, names, layout)
    raise BadInput(f"data {source}: there is no folder or archive {path!r}. {layout}")


def _from_archive(path: str, source: str, folder: str, names: Sequence[str], layout: str) -> dict[str, dict[str, Any]]:
    wanted = {f"{folder}/{name}": name for name in names}
    contents: dict[str, dict[str, Any]] = {}
    try:
        # one pass: going back in a gzip stream would decompress it again
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                file = archive.extractfile(member) if name and member.isreg() else None
                if name and file is not None:
                    content = file.read()
                    if len(content) != member.size:
                        raise BadInput(
                            f"{path}: {member.name} has {len(content)} of {member.size} bytes; get it again."
                        )
                    contents[name] = _read(io.BytesIO(content), f"{path}:{member.name}", len(content))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"data {source}: {path} is no complete tar archive ({error}). {layout}") from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise BadInput(f"data {source}: {path} has no {folder}/{missing[0]}. {layout}")
    return contents


def _read_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return _read(io.BytesIO(file.read()), path, os.path.getsize(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error}.") from None


def _read(file: io.BytesIO, path: str, size: int) -> dict[str, Any]:
    name = os.path.basename(path)
    rows = {"train": 50_000, "meta": 0, "batches.meta": 0}.get(name, 10_000)
    expected = f", more than {rows * PIXELS} bytes expected" if rows else ""
    try:
        return pickled.read_dictionary(file)
    except pickled.Refused as error:
        raise BadInput(f"{path}: refused: it asks for {error}, which no CIFAR file does; nothing was run.") from None
    except Exception as error:  # the pickle machine raises anything on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: truncated or no CIFAR file ({size} bytes{expected}): {reason}.") from None


def _images(batch: dict[str, Any], name: str, key: str, classes: int, source: str) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, 32, 32] and int64 [n]."""
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise BadInput(f"data {source}: {name} has no uint8 array 'data' of shape [n, {PIXELS}].")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != len(pixels) or not len(pixels):
        raise BadInput(f"data {source}: {name} has no list {key!r} of {len(pixels)} labels.")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise BadInput(f"data {source}: {name}: {key!r} has a label outside 0..{classes - 1}.")
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _text(name: object) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
