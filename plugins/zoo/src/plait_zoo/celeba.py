"""``celeba``: aligned faces with 40 attributes (Liu et al. 2015), in the published layout."""

from __future__ import annotations

import os

import numpy as np

from plait.data import Data
from plait.errors import BadInput
from plait_zoo.files import Rows, annotation, assemble, checked, coded, column, different, folder, read_csv, read_lines
from plait_zoo.options import CelebaOptions
from plait_zoo.transforms import Flip

IMAGES = "img_align_celeba"
LAYOUT = f"ROOT/{IMAGES}/000001.jpg ..., ROOT/list_attr_celeba.txt (or .csv) and ROOT/list_eval_partition.txt (or .csv)"


def load(options: CelebaOptions, seed: int) -> Data:
    """Faces with one attribute as label and another as group; the published division into train, validation and test.

    Fields: ``input`` float32 [B, 3, S, S] in [0, 1], ``label`` and ``group`` int64 in 0..1 (1: present), ``index``.
    torchvision's own class checks the annotation files' md5 and so cannot read a subset. ``seed`` changes nothing.

    Raises:
        BadInput: a folder, file, image or attribute is missing, or a table is damaged; each is named.
    """
    different(options.target, options.sensitive, "celeba")
    root = folder(options.root, "celeba", LAYOUT)
    images = folder(os.path.join(root, IMAGES), "celeba", LAYOUT)
    path = annotation(root, ["list_attr_celeba.txt", "list_attr_celeba.csv"], "celeba", LAYOUT)
    header, rows = _attributes(path)
    files = [row[0] for row in rows]
    codes = {"1": 1, "-1": 0}
    target, sensitive = (
        coded([row[at] for row in rows], codes, path, name)
        for name, at in (
            (options.target, column(header, options.target, path, "target")),
            (options.sensitive, column(header, options.sensitive, path, "sensitive")),
        )
    )
    where = annotation(root, ["list_eval_partition.txt", "list_eval_partition.csv"], "celeba", LAYOUT)
    part_of = _partition(where)
    unknown = [name for name in files if name not in part_of]
    if unknown:
        first = ", ".join(unknown[:3])
        raise BadInput(f"{where}: {len(unknown)} images of {os.path.basename(path)} are not listed (first: {first}).")
    return assemble(
        "celeba",
        images,
        files,
        np.array([part_of[name] for name in files], np.int64),
        target,
        [f"not {options.target}", options.target],
        group=sensitive,
        group_names=[f"not {options.sensitive}", options.sensitive],
        size=options.size,
        skip_missing=options.skip_missing,
        augment=Flip() if options.flip else None,
    )


def _attributes(path: str) -> tuple[list[str], Rows]:
    if path.endswith(".csv"):
        return read_csv(path)
    lines = read_lines(path)
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        raise BadInput(f"{path}: must begin with the number of images and a line of attribute names.")
    rows = [line.split() for line in lines[2:] if line.strip()]
    if len(rows) != int(lines[0]):
        raise BadInput(f"{path}: announces {lines[0].strip()} images and lists {len(rows)}; is it truncated?")
    return checked(path, ["image_id", *lines[1].split()], rows, 3)


def _partition(path: str) -> dict[str, int]:
    if path.endswith(".csv"):
        _, rows = read_csv(path)
    else:
        lines = [line.split() for line in read_lines(path) if line.strip()]
        _, rows = checked(path, ["image_id", "partition"], lines, 1)
    parts = coded([row[1] for row in rows], {"0": 0, "1": 1, "2": 2}, path, "partition")
    return dict(zip((row[0] for row in rows), parts.tolist(), strict=True))
