"""Splits in memory as bytes and splits in files, and the ways of dividing a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from plait.data import Batch
from plait.errors import BadInput
from plait_zoo import images

PARALLEL_FROM = 8
"""Images per batch from which the main process decodes in threads (PIL releases the lock while it decodes)."""
THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class ByteSplit:
    """Images in memory at one byte a value; batches are float32 in [0, 1].

    Args:
        images: uint8 [n, C, H, W].
        fields: name -> tensor [n] (``label``, perhaps ``group``); ``index`` is added.

    Raises:
        BadInput: the images are not bytes: floats would be divided by 255 once more.
    """

    in_memory = True

    def __init__(self, images: Tensor, fields: Mapping[str, Tensor]) -> None:
        if images.dtype != torch.uint8:
            raise BadInput(f"ByteSplit takes images of torch.uint8 (0 to 255), got {images.dtype}.")
        self.images = images
        self.fields: dict[str, Tensor] = {**fields, "index": torch.arange(len(images))}

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        batch = Batch({"input": self.images.index_select(0, picked).float().div_(255)})
        batch.update({name: value.index_select(0, picked) for name, value in self.fields.items()})
        return batch


class FileSplit:
    """Images in files, decoded when a batch asks for them; picklable, so loader processes can hold it.

    Args:
        root: folder that the file names are relative to.
        files: file names, n of them.
        fields: name -> tensor [n] (``label``, perhaps ``group``); ``index`` is added.
        size: side S in pixels of the square image; batches hold ``input`` float32 [B, 3, S, S] in [0, 1].
        margin: the shorter side is resized to ``margin * size`` and the middle cut out (256 / 224 for ImageNet).
    """

    in_memory = False

    def __init__(
        self, root: str, files: Sequence[str], fields: Mapping[str, Tensor], size: int, margin: float = 1.0
    ) -> None:
        self.root, self.size, self.margin = root, size, margin
        # one block of bytes: a million Python strings would be copied into every forked loader process by their
        # reference counts
        self.files = np.array([os.fsencode(name) for name in files], dtype=np.bytes_)
        self.fields: dict[str, Tensor] = {**fields, "index": torch.arange(len(files))}

    def __len__(self) -> int:
        return len(self.files)

    def check(self) -> None:
        """Look at the beginning and the end of every file, and read those that look damaged.

        Raises:
            BadInput: one cannot be read; it is named.
        """
        names = [os.path.join(self.root, os.fsdecode(name)) for name in self.files]
        with ThreadPoolExecutor(THREADS) as pool:
            whole = list(pool.map(images.looks_whole, names))
        for name, fine in zip(names, whole, strict=True):
            if not fine:
                images.read(name, self.size, self.margin)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        """The batch of these rows.

        Raises:
            BadInput: a file is not a readable image, or of a mode whose range is not known (`images.read`); named.
        """
        picked = torch.as_tensor(rows, dtype=torch.int64)
        names = [os.path.join(self.root, os.fsdecode(name)) for name in self.files[picked.numpy()]]
        values = np.empty((len(names), 3, self.size, self.size), np.float32)

        def decode(name: str, out: npt.NDArray[np.float32]) -> None:
            out[:] = images.read(name, self.size, self.margin)

        if get_worker_info() is None and len(names) >= PARALLEL_FROM:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(decode, names, values))
        else:
            for name, out in zip(names, values, strict=True):
                decode(name, out)
        batch = Batch({"input": torch.from_numpy(values)})
        batch.update({name: value.index_select(0, picked) for name, value in self.fields.items()})
        return batch


def parts_by_hash(keys: Sequence[str], shares: Sequence[float], salt: str) -> npt.NDArray[np.int64]:
    """Divide by key (a person, a patient, a file name): all rows of one key fall into one part.

    The keys are ordered by the SHA-256 of ``salt`` and key and cut at the shares, so the division depends neither on
    the seed nor on the order of the rows, and every part has at least one key where there are enough.

    Args:
        keys: one key per row, n of them.
        shares: share of the keys in parts 1, 2, ...; part 0 has the rest.
        salt: name of the data set.

    Returns:
        the part of each row, int64 [n].
    """

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{salt}\0{key}".encode(errors="surrogateescape")).digest()

    unique = sorted(set(keys), key=digest)
    part_of = dict.fromkeys(unique, 0)
    start = 0
    for part, share in enumerate(shares, start=1):
        stop = start + max(1, round(share * len(unique)))
        part_of.update(dict.fromkeys(unique[start:stop], part))
        start = stop
    return np.array([part_of[key] for key in keys], np.int64)


def stratified(labels: Tensor, validation: float, test: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers of train, validation and test, each with every class in proportion.

    Args:
        labels: int64 [n].
        validation, test: shares of all rows.
        seed: of the division.
    """
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped,unused-ignore]

    state = seed % 2**32
    rows = np.arange(len(labels))
    rest, last = train_test_split(rows, test_size=test, random_state=state, stratify=labels.numpy())
    first, middle = train_test_split(
        rest, test_size=validation / (1 - test), random_state=state, stratify=labels.numpy()[rest]
    )
    return torch.from_numpy(first), torch.from_numpy(middle), torch.from_numpy(last)
