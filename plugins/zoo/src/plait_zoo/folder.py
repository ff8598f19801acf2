"""``image-folder``: one folder per class, as torchvision and ImageNet-1k have it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # type: ignore[import-untyped,unused-ignore]

from plait.data import Data
from plait.errors import BadInput, nearest
from plait_zoo import files
from plait_zoo.options import ImageFolderOptions
from plait_zoo.splits import parts_by_hash
from plait_zoo.transforms import Augment, Flip, ResizedCropFlip

LAYOUT = "ROOT/train/<class>/<image> and ROOT/val/<class>/<image> or ROOT/test/<class>/<image>"
MARGIN = 256 / 224
"""The usual evaluation of ImageNet: the shorter side to 256, the middle 224."""

Listed = list[tuple[str, int]]


def load(options: ImageFolderOptions, seed: int) -> Data:
    """Images in one folder per class.

    Fields: ``input`` float32 [B, 3, S, S] in [0, 1], ``label`` int64 (classes sorted by folder name), ``index``.

    With ``val`` and ``test`` folders they are validation and test. With only one of them, that one is the test, and
    validation is carved out of train by hash of the file name, alike for every seed: choices must not see the test.
    A flat ``val`` folder (ImageNet as downloaded) is read with ``val_labels``.

    Raises:
        BadInput: a folder or label is missing, a class is unknown; each is named.
    """
    root = files.folder(options.root, "image-folder", LAYOUT)
    train = files.folder(os.path.join(root, "train"), "image-folder", LAYOUT)
    classes = sorted(entry.name for entry in os.scandir(train) if entry.is_dir())
    if not classes:
        raise BadInput(f"data image-folder: {train} has no class folders. Expected layout: {LAYOUT}.")
    parts: list[Listed] = [_by_class(root, "train", classes)]
    others = [name for name in ("val", "test") if os.path.isdir(os.path.join(root, name))]
    if not others:
        raise BadInput(f"data image-folder: {root} has neither a val nor a test folder. Expected layout: {LAYOUT}.")
    for name in others:
        flat = name == "val" and options.val_labels
        parts.append(_labelled(root, options.val_labels, classes) if flat else _by_class(root, name, classes))

    listed = [item for part in parts for item in part]
    names = [name for name, _ in listed]
    notes = []
    if len(others) == 2:
        part = np.repeat(np.arange(3), [len(found) for found in parts])
    else:
        held = parts_by_hash([name for name, _ in parts[0]], [options.validation_share], "image-folder")
        part = np.concatenate([held, np.full(len(parts[1]), 2)])
        notes.append(f"image-folder: {int((held == 1).sum())} images of train validate; {others[0]} is the test.")
    augments: dict[str, Augment | None] = {"crop": ResizedCropFlip(options.min_area), "flip": Flip(), "none": None}
    return files.assemble(
        "image-folder",
        root,
        names,
        part.astype(np.int64),
        np.array([label for _, label in listed], np.int64),
        classes,
        size=options.size,
        skip_missing=options.skip_missing,
        margin=MARGIN,
        augment=augments[options.augment],
        notes=notes,
    )


def _by_class(root: str, name: str, classes: Sequence[str]) -> Listed:
    """(file name relative to root, class number), sorted."""
    top = os.path.join(root, name)
    here = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())
    unknown = [found for found in here if found not in classes]
    if unknown:
        raise BadInput(
            f"data image-folder: {os.path.join(top, unknown[0])} is no class of train.{nearest(unknown[0], classes)}"
        )
    if not here:
        flat = " A flat val folder needs val_labels." if name == "val" else ""
        raise BadInput(f"data image-folder: {top} has no class folders.{flat} Expected layout: {LAYOUT}.")
    codes = {found: number for number, found in enumerate(classes) if found in here}
    found = make_dataset(top, codes, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise BadInput(f"data image-folder: {top} has no images ({', '.join(IMG_EXTENSIONS)}).")
    return [(os.path.relpath(path, root), int(number)) for path, number in found]


def _labelled(root: str, label_file: str, classes: Sequence[str]) -> Listed:
    """The flat val folder: lines ``image class`` (blank, tab or comma between), class by folder name or number from 0.

    Kaggle's ``LOC_val_solution.csv`` fits (the boxes after the class are ignored), and so does Caffe's ``val.txt``.
    """
    path = os.path.join(root, os.path.expanduser(label_file))
    if not os.path.isfile(path):
        raise BadInput(f"data image-folder: there is no label file {path} (option val_labels).")
    top = os.path.join(root, "val")
    there = {entry.name: entry.name for entry in os.scandir(top) if entry.name.lower().endswith(IMG_EXTENSIONS)}
    stems = {os.path.splitext(name)[0]: name for name in there}
    codes = {name: number for number, name in enumerate(classes)}
    found: Listed = []
    for number, line in enumerate(files.read_lines(path), start=1):
        words = line.replace(",", " ").split()
        if not words or (number == 1 and words[0].lower() in ("imageid", "image", "file", "filename")):
            continue
        if len(words) < 2:
            raise BadInput(f"{path}: line {number} is {line.strip()!r}; expected an image name and its class.")
        image, label = words[0], words[1]
        code = codes.get(label, int(label) if label.isdecimal() and label.isascii() and len(label) < 7 else -1)
        if not 0 <= code < len(classes):
            raise BadInput(f"{path}: line {number}: {label!r} is no class of train.{nearest(label, classes)}")
        found.append((os.path.join("val", there.get(image) or stems.get(image) or image), code))
    if not found:
        raise BadInput(f"{path}: has no labels.")
    return found
