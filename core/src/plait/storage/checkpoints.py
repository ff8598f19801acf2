"""Checkpoints: a tree of tensors and plain values in one safetensors file, written whole or not at all, checked on
reading, and never executed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from safetensors.torch import save_file
from torch import Tensor

from plait.errors import BadCheckpoint
from plait.storage.files import write_atomically

FORMAT = 1
TENSOR = "$tensor"


class Unstorable(TypeError):
    """A checkpoint cannot hold a value: of which ``kind``, and at which ``place`` in the tree."""

    def __init__(self, kind: str, place: str) -> None:
        self.kind, self.place = kind, place
        super().__init__(
            f"a checkpoint cannot hold the {kind} at {place}; use tensors, numbers, strings, lists, dicts."
        )


def digest(tree: Mapping[str, Any]) -> str:
    """The same for two trees that a checkpoint would hold alike.

    Raises:
        Unstorable: it could not hold this one.
    """
    tensors: dict[str, Tensor] = {}
    return _digest(json.dumps(_split(tree, "", tensors)), tensors)


def require_storable(tree: Mapping[str, Any]) -> None:
    """Refuse a tree that a checkpoint could not hold.

    Raises:
        Unstorable: naming the place.
    """
    json.dumps(_split(tree, "", {}))


def as_read(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree as `load` gives it back: names of text, lists, tensors on the CPU.

    Raises:
        Unstorable: a checkpoint could not hold it.
    """
    tensors: dict[str, Tensor] = {}
    copy: dict[str, Any] = _join(json.loads(json.dumps(_split(tree, "", tensors))), tensors)
    return copy


def save(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings, booleans and None.

    Raises:
        Unstorable: a value of another type (named by its place in the tree).
        RunFailed: it could not be written; an older file at ``path`` is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_split(tree, "", tensors), allow_nan=True)
    metadata = {"plait-format": str(FORMAT), "skeleton": skeleton, "sha256": _digest(skeleton, tensors)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read a tree back, bit for bit.

    Raises:
        BadCheckpoint: no such file, not a plait checkpoint, another format version, truncated or changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{path}: no such checkpoint.") from error
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"is truncated or not a plait checkpoint ({error}). Nothing in it was executed."
        raise BadCheckpoint(f"{path} {problem}") from error
    if "plait-format" not in metadata:
        raise BadCheckpoint(f"{path} is a safetensors file but not a plait checkpoint.")
    if metadata["plait-format"] != str(FORMAT):
        raise BadCheckpoint(f"{path} has checkpoint format {metadata['plait-format']}, this plait-core reads {FORMAT}.")
    if metadata.get("sha256") != _digest(metadata.get("skeleton", ""), tensors):
        raise BadCheckpoint(f"{path} was changed after it was written: its content check fails.")
    tree: dict[str, Any] = _join(json.loads(metadata["skeleton"]), tensors)
    return tree


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or not _has_a_name(value.dtype):
            raise Unstorable(f"tensor ({value.layout}, {value.dtype})".replace("torch.", ""), place)
        # a copy of its own: two names may share memory (tied weights), which the file format does not express
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {TENSOR: place}
    if isinstance(value, Mapping):
        return {str(k): _split(v, f"{place}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Unstorable(type(value).__name__, place)


@functools.cache
def _has_a_name(dtype: torch.dtype) -> bool:
    """Whether the file format knows a type of numbers."""
    try:
        serialized({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError, SafetensorError):
        return False
    return True


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value


def _digest(skeleton: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(skeleton.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
