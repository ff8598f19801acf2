"""Checkpoints: a tree of tensors and plain values in one safetensors file, written whole or not at all, checked on
reading, and never executed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.errors import BadCheckpoint, RunFailed

FORMAT = 1
TENSOR = "$tensor"


def write_atomically(path: Path, write: Any) -> None:
    """Let ``write(temporary_path)`` make a file beside ``path``, then put it in place in one step.

    Raises:
        RunFailed: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFailed(f"{path} could not be written: {error}. Whatever stood there before is unchanged.") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: a value of another type (named by its place in the tree).
        RunFailed: it could not be written; an older file at ``path`` is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_split(tree, "", tensors), allow_nan=True)
    metadata = {"plait-format": str(FORMAT), "skeleton": skeleton, "sha256": _digest(skeleton, tensors)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


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
    except (SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
        raise BadCheckpoint(f"{path} is truncated or not a plait checkpoint ({error}). Nothing in it was executed.") from error
    if "plait-format" not in metadata:
        raise BadCheckpoint(f"{path} is a safetensors file but not a plait checkpoint.")
    if metadata["plait-format"] != str(FORMAT):
        raise BadCheckpoint(f"{path} has checkpoint format {metadata['plait-format']}, this plait-core reads {FORMAT}.")
    if metadata.get("sha256") != _digest(metadata.get("skeleton", ""), tensors):
        raise BadCheckpoint(f"{path} was changed after it was written: its content check fails.")
    tree: dict[str, Any] = _join(json.loads(metadata["skeleton"]), tensors)
    return tree


def _sync_directory(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # a copy of its own: two names may share memory (tied weights), which the file format does not express
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {TENSOR: place}
    if isinstance(value, Mapping):
        return {str(k): _split(v, f"{place}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold the {type(value).__name__} at {place}; use tensors, numbers, strings, lists, dicts.")


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
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
