"""``fairface``: faces balanced over seven races (Karkkainen and Joo 2021), in the published layout."""

from __future__ import annotations

import os

import numpy as np

from plait.data import Data
from plait.errors import BadInput
from plait_zoo.files import Ints, annotation, assemble, coded, column, different, folder, read_csv
from plait_zoo.options import FairFaceOptions
from plait_zoo.splits import parts_by_hash
from plait_zoo.transforms import Flip

VALUES = {
    "gender": ("Female", "Male"),
    "race": ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"),
}
MARGINS = {"0.25": "fairface-img-margin025-trainval", "1.25": "fairface-img-margin125-trainval"}
LAYOUT = (
    "ROOT/fairface_label_train.csv, ROOT/fairface_label_val.csv, ROOT/train/1.jpg ..., ROOT/val/1.jpg ... "
    f"(images also inside ROOT/{MARGINS['0.25']} or ROOT/{MARGINS['1.25']})"
)


def load(options: FairFaceOptions, seed: int) -> Data:
    """Faces with one column as label and another as group.

    Fields: ``input`` float32 [B, 3, S, S] in [0, 1], ``label`` and ``group`` int64 (order: `VALUES`), ``index``.
    FairFace has no test split: the published validation list is halved by hash of the file name into validation and
    test, alike for every seed.

    Raises:
        BadInput: a folder, file, image or column is missing, or a table is damaged; each is named.
    """
    different(options.target, options.sensitive, "fairface")
    root = folder(options.root, "fairface", LAYOUT)
    paths = [annotation(root, [f"fairface_label_{part}.csv"], "fairface", LAYOUT) for part in ("train", "val")]
    files: list[str] = []
    labels: list[Ints] = []
    groups: list[Ints] = []
    sizes: list[int] = []
    for path in paths:
        header, rows = read_csv(path)
        at = column(header, "file", path)
        files += [row[at] for row in rows]
        sizes.append(len(rows))
        labels.append(_column(header, rows, options.target, "target", path))
        groups.append(_column(header, rows, options.sensitive, "sensitive", path))
    held = 1 + parts_by_hash(files[sizes[0] :], [0.5], "fairface")
    label, label_names = _merged(np.concatenate(labels), options.target, options.races)
    group, group_names = _merged(np.concatenate(groups), options.sensitive, options.races)
    return assemble(
        "fairface",
        _images(root, options.padding),
        files,
        np.concatenate([np.zeros(sizes[0], np.int64), held]),
        label,
        label_names,
        group=group,
        group_names=group_names,
        size=options.size,
        skip_missing=options.skip_missing,
        augment=Flip() if options.flip else None,
    )


def _column(header: list[str], rows: list[list[str]], name: str, option: str, path: str) -> Ints:
    column([known for known in header if known in VALUES], name, path, option)
    at = header.index(name)
    return coded([row[at] for row in rows], {value: code for code, value in enumerate(VALUES[name])}, path, name)


def _merged(codes: Ints, name: str, races: str) -> tuple[Ints, list[str]]:
    if name == "race" and races == "white":
        return (codes == VALUES["race"].index("White")).astype(np.int64), ["non-White", "White"]
    return codes, list(VALUES[name])


def _images(root: str, padding: str) -> str:
    candidates = ["", *MARGINS.values()] if padding == "auto" else [MARGINS[padding], ""]
    for name in candidates:
        place = os.path.join(root, name) if name else root
        if os.path.isdir(os.path.join(place, "train")):
            return place
    raise BadInput(f"data fairface: there is no folder {os.path.join(root, 'train')}. Expected layout: {LAYOUT}.")
