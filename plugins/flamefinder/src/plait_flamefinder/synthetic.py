"""The data source ``flame-synth``: generated frames cut into patches, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from platformdirs import user_cache_path

from plait import Batch, Data, DataInfo, TensorSplit
from plait.errors import RunFailed
from plait.storage.files import write_atomically

from . import synthesis
from .annotation import flame_mask
from .augmentation import to_network, turned
from .errors import FlamefinderError
from .options import Rule, SmokeRule, SynthOptions
from .patches import cut, patch_sums
from .smoke import BUCKETS, OBSCURED, PARTIAL, UNOBSCURED, buckets, smoke_score

__all__ = ["FIELDS", "POSITIVE_PX", "PatchSet", "PatchSplit", "load", "patch_set"]

PATCH = 32
"""Side of a patch, pixels: 64 of them in a frame."""
POSITIVE_PX = 4
"""Flame pixels from which on a test patch is flame; those with fewer, but some, are ambiguous and left out."""
HOT_PX = 20
"""Pixels of hot distractor above which a patch without flame counts for the false positives on hot ground."""
FIRST_SEED = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""Where the frames' seeds of each split begin; ``frame_seed`` shifts them by ten million each."""
RULES: tuple[Rule, ...] = get_args(Rule)
SMOKE_RULES: tuple[SmokeRule, ...] = get_args(SmokeRule)


FIELDS = frozenset({"input", "label", "group", "index", "bucket", "hot", "frame", "patch"})
"""Fields of every batch of patches."""


IMAGES = ("input", "rgb")


class PatchSplit:
    """Columns [n, ...] in memory, the images ``input`` and ``rgb`` as bytes, handed out as float32 in [0, 1]."""

    in_memory = True
    at_once = 128  # examples in a pass of an evaluation: what lies between two layers then fits a core's cache

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._whole = TensorSplit(columns)
        self.fields = {name: value for name, value in self._whole.fields.items() if name not in IMAGES}

    def __len__(self) -> int:
        return len(self._whole)

    def __getitems__(self, rows: Any) -> Batch:
        batch = self._whole.__getitems__(rows)
        return Batch(
            batch | {n: batch[n].float() / 255 for n in IMAGES if n in batch and batch[n].dtype == torch.uint8}
        )


@dataclass(frozen=True)
class PatchSet:
    """The patches of some frames, n = 64 x frames, in order of frame, row, column.

    Attributes:
        thermal: uint8 [n, 32, 32].
        rgb: uint8 [n, 32, 32, 3].
        flame_px, hot_px: pixels of true flame, and of hot distractors, int16 [n].
        transmittance: mean and 10th percentile of the visible transmittance, float32 [n, 2].
        rule_px: pixels that each of `RULES` takes for flame, int16 [n, 3].
        score: the smoke score by each of `SMOKE_RULES`, float32 [n, 2].
        sun: of the frame, float32 [n].
    """

    thermal: npt.NDArray[np.uint8]
    rgb: npt.NDArray[np.uint8]
    flame_px: npt.NDArray[np.int16]
    hot_px: npt.NDArray[np.int16]
    transmittance: npt.NDArray[np.float32]
    rule_px: npt.NDArray[np.int16]
    score: npt.NDArray[np.float32]
    sun: npt.NDArray[np.float32]

    def true_buckets(self) -> npt.NDArray[np.int64]:
        """By the smoke that is really there."""
        mean, low = self.transmittance.T
        clear = (mean > 0.75) & (low > 0.5)
        return np.where(mean < 0.35, OBSCURED, np.where(clear, UNOBSCURED, PARTIAL))


def patch_set(split: str, frames: int, frame_seed: int) -> PatchSet:
    """The patches of a split's frames, from the cache where they are; what cannot be kept there is made again."""
    known = {"version": synthesis.VERSION, "split": split, "frames": frames, "frame_seed": frame_seed}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    file = user_cache_path("plait", appauthor=False) / "flame-synth" / f"{digest}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return PatchSet(**{name: stored[name] for name in PatchSet.__dataclass_fields__})
    except Exception:  # no file, or a damaged one, which may raise many things: make it
        pass
    first = FIRST_SEED[split] + 10_000_000 * frame_seed
    of_frames = [_columns(synthesis.synthesise(first + number)) for number in range(frames)]
    columns = {name: np.concatenate([frame[name] for frame in of_frames]) for name in of_frames[0]}
    _keep(file, columns)
    return PatchSet(**columns)


def _columns(frame: synthesis.Frame) -> dict[str, npt.NDArray[Any]]:
    thermal = cut(frame.thermal, PATCH).reshape(-1, PATCH, PATCH)
    through = cut(frame.transmittance, PATCH).reshape(len(thermal), -1)
    return {
        "thermal": thermal,
        "rgb": cut(frame.rgb, PATCH).reshape(-1, PATCH, PATCH, 3),
        "flame_px": patch_sums(frame.flame, PATCH).ravel().astype(np.int16),
        "hot_px": patch_sums(frame.hot, PATCH).ravel().astype(np.int16),
        "transmittance": np.stack([through.mean(1), np.quantile(through, 0.1, 1)], 1).astype(np.float32),
        "rule_px": np.stack([patch_sums(flame_mask(frame.rgb, rule), PATCH).ravel() for rule in RULES], 1).astype(
            np.int16
        ),
        "score": np.stack([smoke_score(frame.rgb, PATCH, rule).ravel() for rule in SMOKE_RULES], 1),
        "sun": np.full(len(thermal), frame.sun, np.float32),
    }


def _keep(file: Path, columns: dict[str, npt.NDArray[Any]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez(handle, **columns)  # type: ignore[arg-type,unused-ignore]

    try:
        write_atomically(file, write)
    except RunFailed:
        return  # a cache that cannot be written is no error


def load(options: SynthOptions, seed: int) -> Data:
    """Patches of generated frames: training by what RGB shows, validation and test by the truth.

    Fields: ``input`` float32 [n, 1, 32, 32] in [0, 1]; ``label`` 0 or 1 (flame): in training by the RGB rule, else by
    the true flame pixels; ``group`` 0 (overcast) or 1 (sunny frames); ``bucket`` 0 to 2 (`plait_flamefinder.smoke`);
    ``hot`` 1 where hot distractors lie on a patch without flame; ``frame`` and ``patch`` int64; in training batches
    also ``rgb`` float32 [n, 3, 32, 32] in [0, 1] where ``options.rgb``.

    Raises:
        FlamefinderError: the training frames have patches of one class alone.
    """
    chosen = options.frame_seed if options.frame_seed >= 0 else seed
    counts = {"train": options.train_frames, "validation": options.validation_frames, "test": options.test_frames}
    sets = {name: patch_set(name, frames, chosen) for name, frames in counts.items()}
    train, notes = _training(sets["train"], options)
    tested = {name: _judged(sets[name]) for name in ("validation", "test")}
    ambiguous = {name: len(sets[name].flame_px) - len(split) for name, split in tested.items()}
    notes.append(
        f"flame-synth: {ambiguous['validation']} validation and {ambiguous['test']} test patches with 1 to "
        f"{POSITIVE_PX - 1} flame pixels are ambiguous and left out"
    )
    info = DataInfo("classification", (1, PATCH, PATCH), 2, 2, FIELDS | ({"rgb"} if options.rgb else set()))
    names = {"label": ("no flame", "flame"), "group": ("overcast", "sunny"), "bucket": BUCKETS}
    return Data(info, train, tested["validation"], tested["test"], turned, to_network, names=names, notes=tuple(notes))


def _training(patches: PatchSet, options: SynthOptions) -> tuple[PatchSplit, list[str]]:
    """The unobscured patches by the smoke score, labelled by the RGB rule, and what is known of these labels."""
    score = patches.score[:, SMOKE_RULES.index(options.smoke)]
    rows = np.flatnonzero(buckets(score) == UNOBSCURED)
    label = patches.rule_px[rows, RULES.index(options.rule)] >= options.min_flame_px
    if label.all() or not label.any():
        missing = "no flame patches" if not label.any() else "only flame patches"
        raise FlamefinderError(
            f"{missing} in the {len(rows)} unobscured patches of {options.train_frames} training frames: check "
            "data.min_flame_px, the RGB rule (data.rule), or take more frames."
        )
    truth = patches.flame_px[rows] >= 1
    precision, recall = 100 * truth[label].mean(), 100 * label[truth].mean() if truth.any() else 0.0
    notes = [
        f"flame-synth: {len(rows)} unobscured training patches, {100 * label.mean():.1f} % flame by the RGB rule; "
        f"against the truth precision {precision:.1f} %, recall {recall:.1f} %"
    ]
    fields = _fields(patches, rows, label, np.full(len(rows), UNOBSCURED))
    if options.rgb:
        fields["rgb"] = patches.rgb[rows].transpose(0, 3, 1, 2)
    return PatchSplit(fields), notes


def _judged(patches: PatchSet) -> PatchSplit:
    """The patches that are clearly flame or not, by the truth."""
    rows = np.flatnonzero((patches.flame_px == 0) | (patches.flame_px >= POSITIVE_PX))
    return PatchSplit(_fields(patches, rows, patches.flame_px[rows] > 0, patches.true_buckets()[rows]))


def _fields(
    patches: PatchSet, rows: npt.NDArray[Any], label: npt.NDArray[Any], bucket: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    per_frame = (synthesis.SIDE // PATCH) ** 2
    whole = {
        "label": label,
        "group": patches.sun[rows] > 0.5,
        "bucket": bucket,
        "hot": (patches.hot_px[rows] > HOT_PX) & ~label.astype(bool),
        "frame": rows // per_frame,
        "patch": rows % per_frame,
    }
    return {"input": patches.thermal[rows, None], **{name: v.astype(np.int64) for name, v in whole.items()}}
