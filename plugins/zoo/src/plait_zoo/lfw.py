"""``lfw``: Labeled Faces in the Wild (Huang et al. 2007) with the attributes of Kumar et al. (2009)."""

from __future__ import annotations

import os

import numpy as np

from plait.data import Data
from plait.errors import BadInput
from plait_zoo.files import Ints, Rows, annotation, assemble, checked, column, different, folder, read_lines
from plait_zoo.options import LfwOptions
from plait_zoo.splits import parts_by_hash
from plait_zoo.transforms import Flip

LAYOUT = "ROOT/lfw/<Name>/<Name>_0001.jpg ... and ROOT/lfw_attributes.txt"
FOLDERS = ("lfw", "lfw-deepfunneled", "lfw_funneled")


def load(options: LfwOptions, seed: int) -> Data:
    """Faces with one attribute as label and another as group; a person is in one split only, alike for every seed.

    Fields: ``input`` float32 [B, 3, S, S] in [0, 1], ``label`` and ``group`` int64 in 0..1 (1: score > 0), ``index``.

    Raises:
        BadInput: a folder, file, image or attribute is missing, or a table is damaged; each is named.
    """
    different(options.target, options.sensitive, "lfw")
    root = folder(options.root, "lfw", LAYOUT)
    path = annotation(root, ["lfw_attributes.txt"], "lfw", LAYOUT)
    present = [name for name in FOLDERS if os.path.isdir(os.path.join(root, name))]
    images = folder(os.path.join(root, present[0] if present else "lfw"), "lfw", LAYOUT)
    header, rows = _table(path)
    people = [row[0].strip().replace(" ", "_") for row in rows]
    try:
        numbers = [int(row[1]) for row in rows]
    except ValueError as error:
        raise BadInput(f"{path}: an imagenum is no whole number: {error}.") from None
    label = _positive(header, rows, options.target, "target", path)
    group = _positive(header, rows, options.sensitive, "sensitive", path)
    return assemble(
        "lfw",
        images,
        [f"{name}/{name}_{number:04d}.jpg" for name, number in zip(people, numbers, strict=True)],
        parts_by_hash(people, [options.validation_share, options.test_share], "lfw"),
        label,
        [f"not {options.target}", options.target],
        group=group,
        group_names=[f"not {options.sensitive}", options.sensitive],
        size=options.size,
        skip_missing=options.skip_missing,
        augment=Flip() if options.flip else None,
    )


def _table(path: str) -> tuple[list[str], Rows]:
    """The header is the commented line with tabs; the comment before it has none."""
    lines = read_lines(path)
    heads = [number for number, line in enumerate(lines) if line.startswith("#") and "\t" in line.strip("# \t")]
    if not heads:
        raise BadInput(f"{path}: has no header line `#<tab>person<tab>imagenum<tab>...`.")
    header = [name.strip() for name in lines[heads[0]].lstrip("#").strip().split("\t")]
    if header[:2] != ["person", "imagenum"]:
        raise BadInput(f"{path}: its header begins with {header[:2]}, expected person and imagenum.")
    rows = [line.split("\t") for line in lines[heads[0] + 1 :] if line.strip()]
    return checked(path, header, rows, heads[0] + 2)


def _positive(header: list[str], rows: Rows, name: str, option: str, path: str) -> Ints:
    at = 2 + column(header[2:], name, path, option)
    try:
        scores = np.array([float(row[at]) for row in rows])
    except ValueError as error:
        raise BadInput(f"{path}: {name} has a value that is no number: {error}.") from None
    return (scores > 0).astype(np.int64)
