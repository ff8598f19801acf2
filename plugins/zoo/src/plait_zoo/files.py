"""What the file-based sources share: tables, names with close matches, missing images, and the assembled `Data`."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from plait.data import Data, DataInfo
from plait.errors import BadInput
from plait_zoo.splits import FileSplit
from plait_zoo.transforms import IMAGENET_MEAN, IMAGENET_STD, Augment, Normalize

Rows = list[list[str]]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
PARTS = ("train", "validation", "test")


WHERE = {
    "celeba": " Get the aligned images and the two lists from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.",
    "fairface": " Get it from https://github.com/joojs/fairface.",
    "lfw": " Get the images from http://vis-www.cs.umass.edu/lfw and lfw_attributes.txt from Columbia's PubFig pages.",
    "chexpert": " Get the small version from https://stanfordmlgroup.github.io/competitions/chexpert (registration).",
}
"""Where each published set is to be had; nothing is downloaded here."""


SYSTEM = {
    "__macosx",
    "@eadir",
    "@tmp",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "__pycache__",
}
SYSTEM |= {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
"""What macOS, Windows, Linux, Python and network drives leave in folders, in lower case."""


def is_system(name: str) -> bool:
    """Whether a folder or file is hidden, or left there by a system or an editor: no class and no image."""
    autosaved = name.startswith("#") and name.endswith("#")  # by Emacs; C# may be a class
    return name.startswith((".", "~$")) or name.endswith("~") or autosaved or name.lower() in SYSTEM


def named(names: Sequence[str], most: int = 5) -> str:
    """Names by commas, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def folder(path: str, source: str, layout: str) -> str:
    """The folder of a data set with ``~`` resolved.

    Raises:
        BadInput: there is none; it is named with the layout expected.
    """
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        where = WHERE.get(source, "")
        raise BadInput(f"data {source}: there is no folder {path!r}. Expected layout: {layout}.{where}")
    return root


def annotation(root: str, names: Sequence[str], source: str, layout: str) -> str:
    """The path of the first of several spellings of an annotation file.

    Raises:
        BadInput: none is there; it is named with the layout expected.
    """
    for name in names:
        if os.path.isfile(os.path.join(root, name)):
            return os.path.join(root, name)
    missing = os.path.join(root, names[0])
    raise BadInput(f"data {source}: {missing} is missing. Expected layout: {layout}.{WHERE.get(source, '')}")


def read_lines(path: str) -> list[str]:
    """The lines of a text file.

    Raises:
        BadInput: it cannot be read as UTF-8 text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}.") from None


def read_csv(path: str) -> tuple[list[str], Rows]:
    """The header and the rows of a comma-separated file.

    Raises:
        BadInput: it cannot be read, is empty, or a row has not as many values as the header (its line is named).
    """
    lines = read_lines(path)
    try:
        rows = [row for row in csv.reader(lines, strict=True) if row]
    except csv.Error as error:
        raise BadInput(f"{path}: not comma-separated values: {error}.") from None
    return checked(path, rows[0] if rows else [], rows[1:], 2)


def checked(path: str, header: list[str], rows: Rows, first_line: int) -> tuple[list[str], Rows]:
    """Header and rows, every row as long as the header.

    Raises:
        BadInput: an empty table, or a row of another length.
    """
    if not header or not rows:
        raise BadInput(f"{path}: has no rows.")
    for number, row in enumerate(rows, start=first_line):
        if len(row) != len(header):
            raise BadInput(f"{path}: line {number} has {len(row)} values, the header has {len(header)}.")
    return header, rows


def column(header: Sequence[str], name: str, path: str, option: str = "") -> int:
    """The position of a column.

    Raises:
        BadInput: no such column; the close names are listed.
    """
    if name in header:
        return list(header).index(name)
    lower = {known.lower(): known for known in header}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"Close: {', '.join(close)}." if close else f"It has: {', '.join(header[:50])}."
    raise BadInput(f"{os.path.basename(path)} has no {name!r}{f' (option {option})' if option else ''}. {hint}")


def different(target: str, sensitive: str, source: str) -> None:
    """Refuse one attribute as both target and group.

    Raises:
        BadInput: they are the same.
    """
    if target == sensitive:
        raise BadInput(f"data {source}: target and sensitive are both {target!r}; choose two.")


def coded(values: Iterable[str], codes: dict[str, int], path: str, name: str) -> Ints:
    """Values as numbers, int64 [n].

    Raises:
        BadInput: a value that has no code.
    """
    numbers = [codes.get(value.strip(), -1) for value in values]
    array = np.array(numbers, np.int64)
    if (array < 0).any():
        at = int((array < 0).argmax())
        bad = list(values)[at] if isinstance(values, Sequence) else "a value"
        raise BadInput(f"{os.path.basename(path)}: row {at + 1} has {name} = {bad!r}; expected {', '.join(codes)}.")
    return array


def on_disk(root: str, files: Sequence[str], skip_missing: bool, source: str) -> tuple[Flags, list[str]]:
    """Which listed files exist (bool [n]), and a note when some that do not were left out.

    Each folder is listed once, which is far quicker than asking for every file.

    Raises:
        BadInput: some are missing and ``skip_missing`` is off: how many, and the first three.
    """
    listed: dict[str, set[str]] = {}
    for parent in {os.path.dirname(name) for name in files}:
        try:
            listed[parent] = set(os.listdir(os.path.join(root, parent)))
        except OSError:
            listed[parent] = set()
    there = np.array([os.path.basename(name) in listed[os.path.dirname(name)] for name in files], bool)
    missing = int((~there).sum())
    if not missing:
        return there, []
    names = ", ".join(files[int(row)] for row in np.flatnonzero(~there)[:3])
    told = f"{missing} of {len(files)} listed images are missing under {root} (first: {names})"
    if not skip_missing:
        raise BadInput(f"data {source}: {told}. Set skip_missing = true to go on without them.")
    return there, [f"{source}: {told}; they were left out."]


def assemble(
    source: str,
    root: str,
    files: Sequence[str],
    part: Ints,
    label: Ints,
    label_names: Sequence[str],
    *,
    size: int,
    skip_missing: bool,
    group: Ints | None = None,
    group_names: Sequence[str] = (),
    margin: float = 1.0,
    augment: Augment | None = None,
    notes: Sequence[str] = (),
) -> Data:
    """`Data` of listed images: float32 [B, 3, size, size] in [0, 1], normalised by ImageNet's constants in ``prepare``.

    Args:
        source: name of the data source, for messages.
        root, files: n file names relative to a folder.
        part: int64 [n]: 0 train, 1 validation, 2 test, negative for rows not used.
        label, group: int64 [n].

    Raises:
        BadInput: images are missing (see `on_disk`), a split is empty, or an image of validation or test is damaged
            (`FileSplit.check`).
    """
    used = np.flatnonzero(part >= 0)
    there, told = on_disk(root, [files[int(row)] for row in used], skip_missing, source)
    used = used[there]
    splits, absent = [], []
    for number, name in enumerate(PARTS):
        rows = used[part[used] == number]
        if not len(rows):
            raise BadInput(
                f"data {source}: the {name} split of {root} is empty; there are too few images for this division."
            )
        for codes, code_names in ((label, label_names), (group, group_names)):
            used_codes = set() if codes is None else set(codes[rows].tolist())
            without = [known for code, known in enumerate(code_names) if code not in used_codes]
            if without:
                absent.append(f"{source}: the {name} split has no image of {named(without)}.")
        fields = {"label": torch.from_numpy(label[rows])}
        if group is not None:
            fields["group"] = torch.from_numpy(group[rows])
        splits.append(FileSplit(root, [files[int(row)] for row in rows], fields, size, margin))
    train, validation, test = splits
    for late in (validation, test):  # a training reads its own images first
        late.check()
    known = {"input", "label", "index"} | ({"group"} if group is not None else set())
    names = {"label": list(label_names)}
    if group is not None:
        names["group"] = list(group_names)
    return Data(
        DataInfo("classification", (3, size, size), len(label_names), len(group_names), frozenset(known)),
        train,
        validation,
        test,
        augment=augment,
        prepare=Normalize(IMAGENET_MEAN, IMAGENET_STD),
        names=names,
        notes=[*notes, *told, *absent],
    )
