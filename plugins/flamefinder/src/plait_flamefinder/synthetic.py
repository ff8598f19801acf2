"""The data source ``flame-synth``: generated frames cut into patches, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

from plait import Data
from plait.errors import RunFailed
from plait.storage.files import write_atomically

from . import synthesis
from .annotation import flame_mask
from .options import Rule, SmokeRule, SynthOptions
from .patches import HOT_PX, POSITIVE_PX, Columns, assembled, cut, patch_sums
from .smoke import OBSCURED, PARTIAL, UNOBSCURED, buckets, smoke_score

__all__ = ["load", "patch_set", "true_buckets"]

PATCH = 32
"""Side of a patch, pixels: 64 of them in a frame."""
FIRST_SEED = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""Where the frames' seeds of each split begin; ``frame_seed`` shifts them by ten million each."""
RULES: tuple[Rule, ...] = get_args(Rule)
SMOKE_RULES: tuple[SmokeRule, ...] = get_args(SmokeRule)


def patch_set(split: str, frames: int, frame_seed: int) -> Columns:
    """The patches of a split's frames, from the cache where they are; what cannot be kept there is made again.

    Returns:
        Of n = 64 x frames patches, in order of frame, row and column: ``thermal`` uint8 [n, 32, 32]; ``rgb`` uint8
        [n, 32, 32, 3]; ``flame_px`` and ``hot_px``, pixels of true flame and of hot distractors, int16 [n];
        ``transmittance``, mean and 10th percentile of the visible one, float32 [n, 2]; ``rule_px``, pixels that each of
        `RULES` takes for flame, int16 [n, 3]; ``score``, the smoke score by each of `SMOKE_RULES`, float32 [n, 2];
        ``sun`` of the frame, float32 [n].
    """
    known = {"version": synthesis.VERSION, "split": split, "frames": frames, "frame_seed": frame_seed}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    file = user_cache_path("plait", appauthor=False) / "flame-synth" / f"{digest}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except Exception:  # no file, or a damaged one, which may raise many things: make it
        pass
    first = FIRST_SEED[split] + 10_000_000 * frame_seed
    of_frames = [_columns(synthesis.synthesise(first + number)) for number in range(frames)]
    columns = {name: np.concatenate([frame[name] for frame in of_frames]) for name in of_frames[0]}
    _keep(file, columns)
    return columns


def true_buckets(transmittance: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The bucket of each patch by the smoke that is really there, of its mean and 10th percentile, [n, 2]."""
    mean, low = transmittance.T
    clear = (mean > 0.75) & (low > 0.5)
    return np.where(mean < 0.35, OBSCURED, np.where(clear, UNOBSCURED, PARTIAL))


def _columns(frame: synthesis.Frame) -> Columns:
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


def _keep(file: Path, columns: Columns) -> None:
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
    train, note = _training(sets.pop("train"), options)
    tested = {name: _judged(patches) for name, patches in sets.items()}
    ambiguous = [f"{len(patches['sun']) - len(tested[name]['label'])} {name}" for name, patches in sets.items()]
    left_out = (
        f"flame-synth: {' and '.join(ambiguous)} patches with 1 to {POSITIVE_PX - 1} flame pixels are ambiguous and "
        "left out"
    )
    return assembled({"train": train, **tested}, ("overcast", "sunny"), options.rgb, [note, left_out])


def _training(patches: Columns, options: SynthOptions) -> tuple[Columns, str]:
    """The unobscured patches by the smoke score, labelled by the RGB rule, and what is known of these labels."""
    score = patches["score"][:, SMOKE_RULES.index(options.smoke)]
    rows = np.flatnonzero(buckets(score) == UNOBSCURED)
    label = patches["rule_px"][rows, RULES.index(options.rule)] >= options.min_flame_px
    truth = patches["flame_px"][rows] >= 1
    hits = 100 * (label & truth).sum()
    note = (
        f"flame-synth: {len(rows)} unobscured training patches, {100 * label.sum() / max(1, len(rows)):.1f} % flame by "
        f"the RGB rule; against the truth precision {hits / max(1, label.sum()):.1f} %, recall "
        f"{hits / max(1, truth.sum()):.1f} %"
    )
    fields = _fields(patches, rows, label, np.full(len(rows), UNOBSCURED))
    return fields | ({"rgb": patches["rgb"][rows].transpose(0, 3, 1, 2)} if options.rgb else {}), note


def _judged(patches: Columns) -> Columns:
    """The patches that are clearly flame or not, by the truth."""
    rows = np.flatnonzero((patches["flame_px"] == 0) | (patches["flame_px"] >= POSITIVE_PX))
    return _fields(patches, rows, patches["flame_px"][rows] > 0, true_buckets(patches["transmittance"][rows]))


def _fields(patches: Columns, rows: npt.NDArray[Any], label: npt.NDArray[Any], bucket: npt.NDArray[Any]) -> Columns:
    per_frame = (synthesis.SIDE // PATCH) ** 2
    whole = {
        "label": label,
        "group": patches["sun"][rows] > 0.5,
        "bucket": bucket,
        "hot": (patches["hot_px"][rows] > HOT_PX) & ~label,
        "frame": rows // per_frame,
        "patch": rows % per_frame,
    }
    return {"input": patches["thermal"][rows, None], **{name: v.astype(np.int64) for name, v in whole.items()}}
