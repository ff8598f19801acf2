"""FLAME2 and FLAME3 in their published layouts. Card, "Data"; corrections 1, 2, 9. Nothing is downloaded.

The loaders were tested on small files in these layouts, not on the published data. Look at the source's licence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait import Data

from .annotation import flame_mask
from .errors import FlamefinderError
from .frames import READERS, read_celsius, read_rgb, taken
from .options import Flame2Options, Flame3Options
from .patches import HOT_PX, POSITIVE_PX, Columns, assembled, cut, patch_sums
from .smoke import UNOBSCURED, buckets, smoke_score

__all__ = ["Pair", "flame2", "flame2_labels", "flame3"]

NO_FIRE = ((1, 13700),)
SMOKE = (
    (13701, 14699), (15981, 19802), (19900, 27183), (27515, 31294), (31510, 33597), (33930, 36550), (38031, 38153),
    (41642, 45279), (51207, 52286),
)  # fmt: skip
"""FLAME2 without its labels file: frames without fire, and frames with fire and smoke; the others are fire alone."""
CODES = ("NN", "YN", "YY", "NY")
GAP = 600.0
"""FLAME3: seconds without a frame that end a flight."""
CROP = 224
"""Side of FLAME2's centre crop, pixels."""
FLAME, WARM = 200.0, 60.0
"""FLAME3: degrees above which a pixel counts as flame for the test, and above which as a hot distractor."""


@dataclass(frozen=True)
class Pair:
    """The files of one frame, its block of time, whether the source says that it has fire, and its group, 0 or 1.

    Blocks are divided among the splits, never frames.
    """

    rgb: Path
    thermal: Path
    block: int
    fire: bool
    group: int


def flame2(options: Flame2Options, seed: int) -> Data:
    """FLAME2's frame pairs: patches of 32 pixels from a 224 x 224 centre crop, thermal as luminance.

    Raises:
        FlamefinderError: a file that is missing or cannot be used, with its name.
    """
    root = _folder(options.root)
    sides = {kind: _numbered(root, kind) for kind in ("RGB", "Thermal")}
    numbers = sorted(sides["RGB"].keys() | sides["Thermal"].keys())
    if not numbers:
        raise FlamefinderError(f"{root}: no folder '254p RGB Images' with frames in it.")
    lists = sorted(root.rglob("*Frame Pair Labels.txt"))
    codes = flame2_labels(lists[0], numbers[-1]) if lists else _known_codes(numbers)
    pairs, lacking = [], 0
    for number in numbers:
        files = [side[number] for side in sides.values() if number in side]
        if len(files) == 2 and number in codes:
            code = codes[number]
            pairs.append(Pair(files[0], files[1], number // options.block, code[0] == "Y", int(code[1] == "Y")))
        elif not options.skip_bad:
            missing = [f"no {kind} image of this frame" for kind, side in sides.items() if number not in side]
            why = missing[0] if missing else f"the frame is in no range of {lists[0].name}"
            raise FlamefinderError(f"{files[0]}: {why}; skip_bad = true leaves it out.")
        else:
            lacking += 1
    pairs = pairs[:: max(1, -(-len(pairs) // options.max_frames))]

    def read(pair: Pair) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], None]:
        thermal, rgb = READERS["raw_jpg"](pair.thermal), read_rgb(pair.rgb)
        _same_size(thermal, rgb, pair)
        if min(thermal.shape) < CROP:
            raise FlamefinderError(f"{pair.thermal}: {thermal.shape} is smaller than the crop of {CROP} pixels.")
        top, left = ((side - CROP) // 2 for side in thermal.shape)
        inside = (slice(top, top + CROP), slice(left, left + CROP))
        return thermal[inside], rgb[inside], None

    return _data("flame2", pairs, lacking, read, options, 32, ("no smoke flag", "smoke flag"))


def flame2_labels(file: Path, last_frame: int) -> dict[int, str]:
    """Frame -> code, from a labels file: after some header lines ``first last XY``, tab-separated.

    Raises:
        FlamefinderError: an unknown code, overlapping ranges, or frames that there are no images of, with the line.
    """
    codes: dict[int, str] = {}
    begun = False
    for place, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        parts = line.split()
        if not (len(parts) >= 3 and parts[0].isdigit() and parts[1].isdigit()):
            if begun and parts:
                raise FlamefinderError(f"{file}, line {place}: {line.strip()!r} is no 'first last code'.")
            continue
        begun, first, last, code = True, int(parts[0]), int(parts[1]), parts[2]
        if code not in CODES:
            raise FlamefinderError(f"{file}, line {place}: unknown code {code!r}; known: {', '.join(CODES)}.")
        if last > last_frame or first > last:
            raise FlamefinderError(f"{file}, line {place}: frames {first} to {last}; the last image is {last_frame}.")
        named = dict.fromkeys(range(first, last + 1), code)
        if twice := codes.keys() & named:
            raise FlamefinderError(f"{file}, line {place}: frame {min(twice)} is in two ranges.")
        codes |= named
    if not codes:
        raise FlamefinderError(f"{file}: no line 'first last code' in it.")
    return codes


def _known_codes(numbers: Sequence[int]) -> dict[int, str]:
    def inside(number: int, ranges: Sequence[tuple[int, int]]) -> bool:
        return any(first <= number <= last for first, last in ranges)

    return {n: "NN" if inside(n, NO_FIRE) else "YY" if inside(n, SMOKE) else "YN" for n in numbers}


def _numbered(root: Path, kind: str) -> dict[int, Path]:
    """Frame number -> file of one side, named as published or ``N.jpg``."""
    folders = [root / f"254p {kind} Images", *root.glob(f"*/254p {kind} Images")]
    pattern = re.compile(rf"(?:254p {kind} Frame \()?(\d+)\)?\.jpe?g", re.IGNORECASE)
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return {int(match[1]): file for file in files if (match := pattern.fullmatch(file.name))}


def flame3(options: Flame3Options, seed: int) -> Data:
    """FLAME3's Sycan Marsh quartets: patches of 64 pixels, thermal by an auto-gain of our own from degrees Celsius.

    Raises:
        FlamefinderError: a file that is missing or cannot be used, with its name.
    """
    root = _folder(options.root)
    thermal = "Raw JPG" if options.thermal == "raw_jpg" else "Celsius TIFF"
    timed: list[tuple[float, Path, Path, bool]] = []
    lacking = 0
    for fire in ("Fire", "No Fire"):
        sides = [root / fire / "RGB" / "Corrected FOV", root / fire / "Thermal" / thermal]
        stems = [{file.stem: file for file in side.glob("*.*")} for side in sides]
        for stem in sorted(stems[0].keys() | stems[1].keys()):
            pair = [side.get(stem) for side in stems]
            try:
                if pair[0] is None or pair[1] is None:
                    raise FlamefinderError(f"{sides[pair.index(None)]}: no frame {stem}, which the other has.")
                if (moment := taken(pair[0])) is None:
                    raise FlamefinderError(f"{pair[0]}: no time in its EXIF, by which splits are made.")
                timed.append((moment, pair[0], pair[1], fire == "Fire"))
            except FlamefinderError as error:
                if not options.skip_bad:
                    raise FlamefinderError(f"{str(error)[:-1]}; skip_bad = true leaves it out.") from None
                lacking += 1
    if not timed:
        raise FlamefinderError(f"{root}: no pair of frames in Fire/RGB/Corrected FOV and Fire/Thermal/{thermal}.")
    timed.sort()
    pairs, block = [], 0
    for place, (moment, rgb, image, has_fire) in enumerate(timed):
        gap = moment - timed[place - 1][0] if place else 0.0
        if options.split == "time-block":
            block = int((moment - timed[0][0]) // options.block)
        else:
            block += gap > GAP
        pairs.append(Pair(rgb, image, block, has_fire, int(moment % 86400 >= 43200)))

    def read(pair: Pair) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
        frame, rgb = READERS[options.thermal](pair.thermal), read_rgb(pair.rgb)
        _same_size(frame, rgb, pair)
        return frame, rgb, None if options.thermal == "raw_jpg" else read_celsius(pair.thermal)

    return _data("flame3", pairs, lacking, read, options, options.patch, ("morning", "afternoon"))


def _same_size(thermal: npt.NDArray[Any], rgb: npt.NDArray[Any], pair: Pair) -> None:
    if thermal.shape != rgb.shape[:2]:
        raise FlamefinderError(
            f"{pair.rgb}: {rgb.shape[1]} x {rgb.shape[0]} pixels, and {pair.thermal.name} {thermal.shape[1]} x "
            f"{thermal.shape[0]}: the two must be registered (Corrected FOV, not Raw)."
        )


def _folder(root: str) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FlamefinderError(f"{folder}: no such folder (data.root).")
    return folder


SPLITS = ("train", "validation", "test")
Read = Callable[[Pair], tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]]


def _data(
    name: str,
    pairs: Sequence[Pair],
    lacking: int,
    read: Read,
    options: Flame2Options | Flame3Options,
    size: int,
    groups: tuple[str, str],
) -> Data:
    """Cut the frames into patches; whole blocks of time train (5 of 7), validate or test (1 of 7 each).

    Training takes what RGB shows without smoke, labelled by the RGB rule. Validation and test are labelled by degrees
    where there are any, else by the same rule, which smoke blinds.
    """
    blocks = sorted({pair.block for pair in pairs})
    turns = ("train",) * 5 + ("validation", "test") if len(blocks) >= 7 else SPLITS
    split_of = {block: turns[place % len(turns)] for place, block in enumerate(blocks)}
    frames: dict[str, list[Columns]] = {split: [] for split in SPLITS}
    unseen, bad = dict.fromkeys(SPLITS, 0), lacking
    for number, pair in enumerate(pairs):
        try:
            columns = _columns(*read(pair), options, size)
        except FlamefinderError:
            if not options.skip_bad:
                raise
            bad += 1
            continue
        split, count = split_of[pair.block], len(columns["label"])
        frames[split].append(columns | {"group": np.full(count, pair.group), "frame": np.full(count, number)})
        unseen[split] += pair.fire and not columns["rule"].any()
    notes = [f"{name}: {bad} of {len(pairs) + lacking} frames cannot be used and were skipped"] if bad else []
    splits: dict[str, Columns] = {}
    for split in SPLITS:
        if not frames[split]:
            raise FlamefinderError(f"data {name}: no frame for the {split} split; it takes a block of its own.")
        columns = {key: np.concatenate([frame[key] for frame in frames[split]]) for key in frames[split][0]}
        rule, clear = columns.pop("rule"), columns.pop("clear")
        if split == "train":
            columns["label"], clear = rule, columns["bucket"] == UNOBSCURED
        if split != "train" or not options.rgb:
            del columns["rgb"]
        splits[split] = {key: value[clear] for key, value in columns.items()}
        label = splits[split]["label"]
        share = 100 * label.sum() / max(1, len(label))
        notes.append(
            f"{name}: {split} {len(frames[split])} frames, {len(label)} patches, {share:.1f} % flame; in "
            f"{unseen[split]} fire frames the rule {options.rule!r} finds no flame pixel"
        )
    return assembled(splits, groups, options.rgb, notes)


def _columns(
    thermal: npt.NDArray[Any],
    rgb: npt.NDArray[np.uint8],
    celsius: npt.NDArray[np.float32] | None,
    options: Flame2Options | Flame3Options,
    size: int,
) -> Columns:
    """The fields of a frame's patches; ``rule`` is the label by RGB, ``clear`` whether the label is beyond doubt."""
    patches = cut(thermal, size)
    count = patches.shape[0] * patches.shape[1]
    rule = patch_sums(flame_mask(rgb, options.rule), size).ravel() >= options.min_flame_px
    label, clear, hot = rule, np.ones(count, bool), np.zeros(count, bool)
    degrees: Columns = {}
    if celsius is not None:
        degrees = {"celsius_max": cut(celsius, size).max((2, 3)).ravel()}
        flame_px, warm_px = (patch_sums(celsius > limit, size).ravel() for limit in (FLAME, WARM))
        label, clear = flame_px >= POSITIVE_PX, (flame_px == 0) | (flame_px >= POSITIVE_PX)
        hot = (warm_px > HOT_PX) & ~label
    return {
        "input": patches.reshape(count, 1, size, size),
        "rgb": cut(rgb, size).reshape(count, size, size, 3).transpose(0, 3, 1, 2),
        "label": label.astype(np.int64),
        "rule": rule.astype(np.int64),
        "clear": clear,
        "bucket": buckets(smoke_score(rgb, size, options.smoke).ravel()),
        "hot": hot.astype(np.int64),
        "patch": np.arange(count),
        **degrees,
    }
