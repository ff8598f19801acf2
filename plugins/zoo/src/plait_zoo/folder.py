"""``image-folder``: one folder per class, as torchvision and ImageNet-1k have it."""

from __future__ import annotations

import os
from collections import Counter
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

    Hidden folders and files and those of systems and editors (`files.is_system`) are no classes and no images. A note
    names what else was left out, and the classes of which a split has no image.

    Raises:
        BadInput: a folder or label is missing, a class is unknown or has no image in train; each is named.
    """
    root = files.folder(options.root, "image-folder", LAYOUT)
    train = files.folder(os.path.join(root, "train"), "image-folder", LAYOUT)
    classes, _ = _folders(train)
    if not classes:
        raise BadInput(f"data image-folder: {train} has no class folders. Expected layout: {LAYOUT}.")
    notes: list[str] = []
    parts: list[Listed] = [_by_class(root, "train", classes, notes)]
    others = [name for name in ("val", "test") if os.path.isdir(os.path.join(root, name))]
    if not others:
        raise BadInput(f"data image-folder: {root} has neither a val nor a test folder. Expected layout: {LAYOUT}.")
    for name in others:
        flat = name == "val" and options.val_labels
        parts.append(_labelled(root, options.val_labels, classes) if flat else _by_class(root, name, classes, notes))

    listed = [item for part in parts for item in part]
    names = [name for name, _ in listed]
    if len(others) == 2:
        part = np.repeat(np.arange(3), [len(images) for images in parts])
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


def _folders(top: str) -> tuple[list[str], list[str]]:
    """The class folders and the hidden ones, sorted."""
    folders = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())
    return [name for name in folders if not files.is_system(name)], [name for name in folders if files.is_system(name)]


def _by_class(root: str, part: str, classes: Sequence[str], notes: list[str]) -> Listed:
    """(file name relative to root, class number), sorted; what was left out is added to the notes."""
    top = os.path.join(root, part)
    folders, hidden = _folders(top)
    unknown = [name for name in folders if name not in classes]
    if unknown:
        raise BadInput(
            f"data image-folder: {os.path.join(top, unknown[0])} is no class of train.{nearest(unknown[0], classes)}"
        )
    if not folders:
        flat = " A flat val folder needs val_labels." if part == "val" else ""
        raise BadInput(f"data image-folder: {top} has no class folders.{flat} Expected layout: {LAYOUT}.")
    others: Counter[str] = Counter()

    def is_image(path: str) -> bool:
        if any(map(files.is_system, path[len(top) + 1 :].split(os.sep))):
            return False
        if path.lower().endswith(IMG_EXTENSIONS):
            return True
        others[os.path.splitext(path)[1] or "no ending"] += 1
        return False

    codes = {name: number for number, name in enumerate(classes) if name in folders}
    images = make_dataset(top, codes, is_valid_file=is_image, allow_empty=True)
    by_count = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    kinds = files.named([f"{ending}: {count}" for ending, count in by_count])
    counted = {number for _, number in images}
    empty = [name for name, number in codes.items() if number not in counted]
    if not images or (empty and part == "train"):
        what = f"images of class {files.named(empty)}" if images else "images"
        others_there = f"; left out by name: {kinds}" if kinds else ""
        raise BadInput(f"data image-folder: {top} has no {what} ({', '.join(IMG_EXTENSIONS)}{others_there}).")
    if kinds:
        notes.append(f"image-folder: {others.total()} files of {part} were left out, no images by name ({kinds}).")
    if hidden:
        notes.append(f"image-folder: hidden or system folders of {part} are no classes: {files.named(hidden)}.")
    return [(path[len(root) :].lstrip(os.sep), int(number)) for path, number in images]


def _labelled(root: str, label_file: str, classes: Sequence[str]) -> Listed:
    """The flat val folder: lines ``image class`` (blank, tab or comma between), class by folder name or number from 0.

    Kaggle's ``LOC_val_solution.csv`` fits (the boxes after the class are ignored), and so does Caffe's ``val.txt``.
    """
    path = os.path.join(root, os.path.expanduser(label_file))
    if not os.path.isfile(path):
        raise BadInput(f"data image-folder: there is no label file {path} (option val_labels).")
    top = os.path.join(root, "val")
    entries = [entry.name for entry in os.scandir(top) if entry.is_file() and not files.is_system(entry.name)]
    images = {name: name for name in entries if name.lower().endswith(IMG_EXTENSIONS)}
    stems = {os.path.splitext(name)[0]: name for name in images}
    codes = {name: number for number, name in enumerate(classes)}
    listed: Listed = []
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
        listed.append((os.path.join("val", images.get(image) or stems.get(image) or image), code))
    if not listed:
        raise BadInput(f"{path}: has no labels.")
    return listed
