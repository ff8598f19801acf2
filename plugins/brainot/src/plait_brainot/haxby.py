"""The data source ``haxby``: real fMRI of one subject who looked at eight kinds of things (Haxby et al. 2001).

The data have labels and no images. So the image tokens of a category are generated, like the object tokens of
``scenes``: what is real is the brain. One run of the scanner is the test, the run before it the validation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import detrend

from plait import Data, DataInfo

from .errors import BrainotError
from .nifti import volume
from .options import HaxbyOptions
from .samples import FIELDS, Samples
from .synthetic import by_subject

__all__ = ["CATEGORIES", "load", "volumes"]

CATEGORIES = ("bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe")
WORDS = {"scrambledpix": "noise"}
"""What a category is called in captions, where that is not its name."""
RUNS = 12
SENTENCES = ("a photo of a {}", "a picture of a {}", "this is a {}", "a {} on a screen", "one sees a {}")
FILES = ("bold.nii.gz", "mask.nii.gz", "attributes_literal.txt")

Array = npt.NDArray[Any]


def volumes(path: Path) -> tuple[Array, Array, Array, Array]:
    """The volumes with a category: voxels, category and run of each, and which voxels lie in the left half.

    Voxels are detrended linearly and scaled to mean 0 and spread 1 within each run, all volumes of rest included.

    Args:
        path: the folder.

    Returns:
        float32 [n, V], int64 [n], int64 [n], bool [V].

    Raises:
        BrainotError: no nibabel, a file that is missing or does not fit the others, betas that are not finite.
    """
    for name in FILES:
        if not (path / name).is_file():
            raise BrainotError(f"haxby: {path / name} is not there; the folder needs {', '.join(FILES)}")
    bold, inside = (volume(path / name) for name in FILES[:2])
    lines = [line.split() for line in (path / FILES[2]).read_text(encoding="utf-8").splitlines() if line.strip()]
    mask = inside.reshape(inside.shape[:3]) > 0
    if bold.ndim != 4 or mask.shape != bold.shape[:3] or len(lines) != bold.shape[3]:
        shapes = f"bold {list(bold.shape)}, mask {list(mask.shape)}, {len(lines)} labels"
        raise BrainotError(f"haxby: {path}: the files do not belong together: {shapes}")
    names, runs = np.array([line[0] for line in lines]), np.array([int(line[1]) for line in lines])
    voxels = bold[mask].T
    if not np.isfinite(voxels).all():
        raise BrainotError(f"haxby: {(~np.isfinite(voxels)).any(0).sum()} voxels have NaN or infinite numbers")
    for run in np.unique(runs):
        rows = runs == run
        straight = detrend(voxels[rows], axis=0)
        spread = straight.std(0)
        voxels[rows] = straight / np.where(spread > 0, spread, 1)
    seen = np.isin(names, CATEGORIES)
    category = np.searchsorted(CATEGORIES, names[seen])
    left = np.nonzero(mask)[0] < bold.shape[0] / 2
    return voxels[seen].astype(np.float32), category, runs[seen], left


def load(options: HaxbyOptions, seed: int) -> Data:
    """``haxby`` as a data set of three splits by run; fields as of ``scenes``, and ``category``.

    Every volume is a scene of its own, whose tokens are its category's vector, part by part, with noise.
    """
    path = Path(options.path).expanduser()
    voxels, category, runs, left = volumes(path)
    test = options.test_run if options.test_run >= 0 else seed % RUNS
    where = {"test": runs == test, "validation": runs == (test - 1) % RUNS}
    where["train"] = ~(where["test"] | where["validation"])
    generator = np.random.default_rng([1, seed])
    shown = category.copy()
    if options.permute:
        for run in np.unique(runs[where["train"]]):
            rows = np.flatnonzero(runs == run)
            shown[rows] = generator.permutation(shown[rows])
    world = np.random.default_rng(1)
    kinds, parts = (world.standard_normal((n, options.dim)) for n in (len(CATEGORIES), options.tokens))
    tokens = kinds[shown][:, None] + 0.5 * parts
    tokens = tokens + options.token_noise * generator.standard_normal(tokens.shape)
    everywhere = torch.from_numpy(tokens.astype(np.float32))
    words = [WORDS.get(name, name) for name in CATEGORIES]
    digest = hashlib.sha256(voxels.tobytes() + everywhere.numpy().tobytes()).hexdigest()
    splits = {}
    for name, rows in where.items():
        number = np.flatnonzero(rows)
        columns = {"subject": np.ones(len(number), np.int64), "scene": number, "category": category[rows]}
        splits[name] = Samples(voxels[rows], columns, everywhere, fingerprint=digest)
    halves = {"left": np.flatnonzero(left), "right": np.flatnonzero(~left)}
    extra = {
        "voxels": {1: voxels.shape[1]},
        "tokens": tuple(everywhere.shape[1:]),
        "regions": {1: halves},
        "captions": [[sentence.format(words[kind]) for sentence in SENTENCES] for kind in shown],
        "phrases": [[words[kind]] for kind in category],
        "vocabulary": words,
        "word": [words[kind] for kind in category],
    }
    note = f"haxby: run {test} is the test, run {(test - 1) % RUNS} the validation; CC BY-SA 3.0, J. V. Haxby et al."
    info = DataInfo("brain-tokens", (voxels.shape[1],), 0, 0, FIELDS | {"category"}, extra)
    return Data(info, splits["train"], splits["validation"], splits["test"], forward=by_subject, notes=(note,))
