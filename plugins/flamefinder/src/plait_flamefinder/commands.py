"""The plugin's commands: `plait flamefinder detect` and `plait flamefinder annotate`."""

from __future__ import annotations

import csv
import io
import json as documents
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_model

import plait
from plait import DataInfo
from plait.errors import BadInput
from plait.loading import build_model
from plait.storage.files import write_text

from .annotation import flame_mask
from .encoder import FlameNet
from .errors import FlamefinderError
from .frames import READERS, position, read_rgb, save_png
from .options import FlamefinderOptions, Rule
from .patches import cut
from .weave import attentive

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
DEGREES = (".tif", ".tiff")
MARK = np.array([40, 90, 255], np.uint8)
"""Colour of a flame pixel in a mask's picture."""


def detect(
    folder: Path, run: Path | None = None, out: Path = Path("flames"), skip_bad: bool = False, json: bool = False
) -> None:
    """Find flames in the thermal frames of a folder with the model of a run.

    Writes OUT/NAME.png for each frame, the probability of each patch over the frame, and OUT/patches.csv; frames that
    say where they were taken are also in OUT/flames.geojson.

    Args:
        folder: thermal frames: TIFF in degrees Celsius, or pictures.
        run: a finished run of flamefinder (required).
        out: where to write.
        skip_bad: leave out frames that cannot be read, and count them.
        json: print one JSON document.
    """
    if run is None:
        raise BadInput("which network? Give --run with the directory of a finished run of flamefinder.")
    finished = plait.load_run(run)
    network, size = exported(finished)
    in_degrees = finished.recipe.data.options.get("thermal") == "celsius"

    def read(file: Path) -> npt.NDArray[Any]:
        return READERS[("celsius" if in_degrees else "agc") if file.suffix.lower() in DEGREES else "raw_jpg"](file)

    judged: dict[str, tuple[Path, npt.NDArray[Any]]] = {}
    frames = frames_in(folder, out)
    for name, file in frames.items():  # all of them before anything is written
        try:
            patches = cut(frame := read(file), size)
        except FlamefinderError:
            if not skip_bad:
                raise
            continue
        thermal = torch.from_numpy(np.ascontiguousarray(patches)).reshape(-1, 1, size, size).float()
        thermal = thermal / 255 if frame.dtype == np.uint8 else thermal
        judged[name] = file, network.flame_probability(thermal * 2 - 1).reshape(patches.shape[:2]).numpy()
    rows: list[list[Any]] = [["frame", "row", "column", "probability", "longitude", "latitude"]]
    places: list[dict[str, Any]] = []
    for name, (file, probability) in judged.items():
        place = position(file)
        save_png(out / f"{name}.png", overlay(read(file), probability, size))
        cells = [(row, column, f"{probability[row, column]:.4f}") for row, column in np.ndindex(probability.shape)]
        rows += [[name, *cell, *(place or ("", ""))] for cell in cells]
        if place is not None:
            most = {"frame": name, "flame_patches": int((probability > 0.5).sum()), "most": float(probability.max())}
            point = {"type": "Point", "coordinates": list(place)}
            places.append({"type": "Feature", "geometry": point, "properties": most})
    csv.writer(table := io.StringIO(newline="")).writerows(rows)
    write_text(out / "patches.csv", table.getvalue())
    if places:
        write_text(out / "flames.geojson", documents.dumps({"type": "FeatureCollection", "features": places}, indent=1))
    flames, skipped = sum(bool((p > 0.5).any()) for _, p in judged.values()), len(frames) - len(judged)
    if json:
        said = {"frames": len(judged), "with_flames": flames, "skipped": skipped, "positions": len(places)}
        print(documents.dumps({**said, "out": str(out)}))
    else:
        print(f"{flames} of {len(judged)} frames have a patch with flames; {skipped} skipped. Pictures, tables: {out}")


def exported(finished: plait.Run) -> tuple[FlameNet, int]:
    """The exported network of a run and the side of its patches; the data that it was trained on are not needed.

    Raises:
        BadInput: the run is not finished, or is none of flamefinder.
    """
    if "flamefinder" not in finished.recipe.plugins or not (finished.export / "config.json").is_file():
        raise BadInput(f"{finished.directory.shown} is no finished run of flamefinder.")
    config = documents.loads((finished.export / "config.json").read_text(encoding="utf-8"))
    info = DataInfo(config["task"], tuple(config["input_shape"]), config["num_classes"])
    options = FlamefinderOptions(**finished.recipe.plugins["flamefinder"])
    network = attentive(options, build_model(finished.recipe.model, info), info.num_classes, torch.Generator())
    shapes = config["tensors"]
    if "centres" in shapes:
        network.decide_by(options.decision, torch.zeros(shapes["centres"]))
    if any(list(value.shape) != shapes.get(name) for name, value in network.state_dict().items()):
        narrowed = finished.model  # another plugin changed its shapes: only a rebuilt run knows how
        assert isinstance(narrowed, FlameNet)
        return narrowed, info.input_shape[-1]
    load_model(network, finished.export / "model.safetensors")
    return network.eval(), info.input_shape[-1]


def annotate(folder: Path, out: Path = Path("masks"), rule: Rule = "strict", json: bool = False) -> None:
    """Show what the RGB rule takes for flame: the mask in blue over each frame of a folder, to be looked at.

    Args:
        folder: RGB frames.
        out: where to write OUT/NAME.png.
        rule: paper-like, loose or strict.
        json: print one JSON document.
    """
    frames = frames_in(folder, out)
    masks = {name: flame_mask(read_rgb(file), rule) for name, file in frames.items()}
    for name, mask in masks.items():
        save_png(out / f"{name}.png", np.where(mask[..., None], MARK, read_rgb(frames[name])))
    pixels = {name: int(mask.sum()) for name, mask in masks.items()}
    empty = sum(not count for count in pixels.values())
    if json:
        print(documents.dumps({"frames": len(pixels), "empty": empty, "pixels": pixels, "out": str(out)}))
    else:
        print(f"{len(pixels)} frames, {empty} of them without a flame pixel by the rule {rule!r}. Pictures: {out}")


def frames_in(folder: Path, out: Path) -> dict[str, Path]:
    """The images in a folder and below it, but not in ``out``, each by a name of its own: its path without the ending.

    Raises:
        BadInput: there is none.
    """
    files: dict[str, Path] = {}
    there = [file for file in folder.rglob("*") if file.suffix.lower() in IMAGES]
    if folder.resolve() in out.resolve().parents:
        there = [file for file in there if out.resolve() not in file.resolve().parents]
    for file in sorted(there):
        path = file.relative_to(folder)
        name = "_".join(path.with_suffix("").parts)
        files["_".join(path.parts) if name in files else name] = file  # a.jpg and a.tiff side by side
    if not files:
        raise BadInput(f"{folder}: no image in it ({', '.join(IMAGES)}).")
    return files


def overlay(frame: npt.NDArray[Any], probability: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    """A thermal frame with each patch of flame tinted red, by its probability, uint8 [H, W, 3].

    The frame is uint8, or float in [0, 1], [H, W]; the probability [rows, columns], of patches of ``size`` pixels.
    """
    grey = frame if frame.dtype == np.uint8 else (frame * 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, 2).astype(np.float32)
    rows, columns = probability.shape
    top, left = (frame.shape[0] - rows * size) // 2, (frame.shape[1] - columns * size) // 2
    strength = np.kron(np.where(probability > 0.5, probability, 0), np.ones((size, size)))[..., None]
    inside = (slice(top, top + rows * size), slice(left, left + columns * size))
    picture[inside] += (np.array([255, 40, 0]) - picture[inside]) * 0.6 * strength
    return picture.astype(np.uint8)
