"""``chexpert``: chest X-rays with 14 findings (Irvin et al. 2019), the published small version."""

from __future__ import annotations

import os

import numpy as np

from plait.data import Data
from plait.errors import BadInput
from plait_zoo.files import Flags, Ints, Rows, annotation, assemble, column, folder, read_csv
from plait_zoo.options import ChexpertOptions
from plait_zoo.splits import parts_by_hash

TOP = "CheXpert-v1.0-small"
LAYOUT = f"ROOT/{TOP}/train.csv, ROOT/{TOP}/valid.csv and ROOT/{TOP}/train/patient00001/study1/view1_frontal.jpg ..."
FIXED = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
SEXES = ("Female", "Male")


def load(options: ChexpertOptions, seed: int) -> Data:
    """X-rays with one finding as label and sex or age as group; a patient is in one split only, alike for every seed.

    Fields: ``input`` float32 [B, 3, S, S] in [0, 1] (grey repeated), ``label`` int64 in 0..1, ``group`` int64 in 0..1
    (Sex: female, male; Age: younger, older), ``index``. A blank finding counts as absent. The test is a share of the
    patients of train.csv, or valid.csv whole (234 images: too few for figures by group).

    Raises:
        BadInput: a folder, file, image or column is missing, or a table is damaged; each is named.
    """
    root = folder(options.root, "chexpert", LAYOUT)
    if os.path.basename(os.path.normpath(root)) == TOP and not os.path.isdir(os.path.join(root, TOP)):
        root = os.path.dirname(os.path.abspath(root))
    names = ["train.csv", "valid.csv"] if options.test == "valid" else ["train.csv"]
    paths = [annotation(root, [f"{TOP}/{name}"], "chexpert", LAYOUT) for name in names]
    header, rows = read_csv(paths[0])
    listed_for_test = [False] * len(rows)
    if options.test == "valid":
        other, more = read_csv(paths[1])
        if other != header:
            raise BadInput(f"{paths[1]}: its columns differ from those of {paths[0]}.")
        rows, listed_for_test = rows + more, listed_for_test + [True] * len(more)
    at = {name: column(header, name, paths[0]) for name in FIXED[:4]}
    finding = len(FIXED) + column(header[len(FIXED) :], options.target, paths[0], "target")

    label, known = _finding([row[finding] for row in rows], options, paths[0])
    group, grouped, group_names = _groups(rows, at, options, paths[0])
    frontal = np.array([row[at["Frontal/Lateral"]].strip() == "Frontal" for row in rows])
    files = [row[at["Path"]].strip() for row in rows]
    part = _parts(files, np.array(listed_for_test), options, paths[0])
    part[~(known & grouped & (frontal | (not options.frontal_only)))] = -1
    dropped = int((~grouped).sum())
    return assemble(
        "chexpert",
        root,
        files,
        part,
        label,
        [f"no {options.target}", options.target],
        group=group,
        group_names=group_names,
        size=options.size,
        skip_missing=options.skip_missing,
        notes=[f"chexpert: {dropped} images without a known {options.sensitive} were left out."] if dropped else [],
    )


def _parts(files: list[str], listed_for_test: Flags, options: ChexpertOptions, path: str) -> Ints:
    pieces = [name.split("/") for name in files]
    short = [name for name, piece in zip(files, pieces, strict=True) if len(piece) < 4]
    if short:
        raise BadInput(f"{path}: Path = {short[0]!r}; expected {TOP}/train/patient00001/study1/view1_frontal.jpg.")
    patients = [piece[2] for piece in pieces]
    if options.test == "patients":
        return parts_by_hash(patients, [options.validation_share, options.test_share], "chexpert")
    part = parts_by_hash(patients, [options.validation_share], "chexpert")
    tested = {patient for patient, test in zip(patients, listed_for_test, strict=True) if test}
    part[np.array([patient in tested for patient in patients])] = -1
    part[listed_for_test] = 2
    return part


def _finding(values: list[str], options: ChexpertOptions, path: str) -> tuple[Ints, Flags]:
    """Label per row, and whether the row is used."""
    try:
        scores = np.array([float(value) if value.strip() else 0.0 for value in values])
    except ValueError as error:
        raise BadInput(f"{path}: {options.target} has a value that is no number: {error}.") from None
    if not np.isin(scores, (-1, 0, 1)).all():
        raise BadInput(f"{path}: {options.target} has a value other than 1, 0, -1 and blank.")
    unsure = scores == -1
    label = np.where(unsure, options.uncertain == "ones", scores == 1).astype(np.int64)
    return label, ~unsure if options.uncertain == "skip" else np.ones(len(scores), bool)


def _groups(rows: Rows, at: dict[str, int], options: ChexpertOptions, path: str) -> tuple[Ints, Flags, list[str]]:
    """Group per row, whether it is known, and the groups' names."""
    if options.sensitive == "Sex":
        sexes = np.array([row[at["Sex"]].strip() for row in rows])
        return (sexes == SEXES[1]).astype(np.int64), np.isin(sexes, SEXES), list(SEXES)
    try:
        ages = np.array([float(row[at["Age"]]) if row[at["Age"]].strip() else np.nan for row in rows])
    except ValueError as error:
        raise BadInput(f"{path}: Age has a value that is no number: {error}.") from None
    older = (ages >= options.age_threshold).astype(np.int64)
    return older, ~np.isnan(ages), [f"under {options.age_threshold}", f"{options.age_threshold} or older"]
