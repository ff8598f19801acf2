"""What a run reports: captions and how good they are, how close the tokens come, retrieval, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from plait.declare.results import Metric, Plot, Table
from plait.storage.files import write_atomically

from .alignment import align
from .captions import cider, objects, score
from .masking import Contrast, interval
from .options import BrainotOptions
from .transport import distances, exact_plan

__all__ = [
    "Facts",
    "captioned",
    "closeness",
    "pictures",
    "retrieval",
    "samples_of",
    "save_maps",
    "save_pictures",
    "total",
]

Figures = dict[str, Metric | Table | Plot]
Numbers = npt.NDArray[np.float64]
SHOWN = 12
"""Captions in the table, and pictures beside what was said of them."""
RETRIEVED = 40
"""Samples among which a sample is looked for by transport, whose every pair is a problem of its own."""
NOTHING = 1e-12
"""Mass up to which a token counts as not transported."""


@dataclass(frozen=True)
class Facts:
    """What is known of the scenes, by number of the scene.

    Attributes:
        captions: references.
        phrases: the objects that are there, ``red car``.
        vocabulary: all objects that are looked for in captions.
        word: one word that tells the scene's light, or its category.
    """

    captions: Sequence[Sequence[str]]
    phrases: Sequence[Sequence[str]]
    vocabulary: Sequence[str]
    word: Sequence[str]

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Facts | None:
        """Those that the data bring in ``info.extra``; None without captions."""
        if "captions" not in extra:
            return None
        count = len(extra["captions"])
        phrases = extra.get("phrases", [()] * count)
        return cls(extra["captions"], phrases, extra.get("vocabulary", ()), extra.get("word", [""] * count))

    def kinds(self, count: int) -> list[str]:
        """The scores that so many captions can be given: ``cider``, ``object_f1``, ``word``."""
        there = {"cider": count > 1, "object_f1": bool(self.vocabulary), "word": any(self.word)}
        return [kind for kind, possible in there.items() if possible]

    def references(self, scene: Tensor) -> list[Sequence[str]]:
        """The references of these scenes."""
        return [self.captions[i] for i in scene.tolist()]


def samples_of(kind: str, captions: Sequence[str], scene: Tensor, facts: Facts) -> Numbers:
    """What each caption is worth, for `total`: CIDEr [n], counts of objects [n, 3], or 0 and 1 [n]."""
    if kind == "cider":
        return cider(captions, facts.references(scene))
    if kind == "object_f1":
        return objects(captions, [facts.phrases[i] for i in scene.tolist()], facts.vocabulary)
    words = [facts.word[i] for i in scene.tolist()]
    return np.array([float(w in text.split()) for w, text in zip(words, captions, strict=True)])


def total(kind: str, samples: Numbers) -> float:
    """The score of some samples: CIDEr as tables show it, F1 in %, or share in %."""
    if kind == "object_f1":
        right, named, wanted = samples.sum(0)
        return 200 * float(right) / max(float(named + wanted), 1e-9)
    return 100 * float(samples.mean())


def captioned(said: Mapping[str, Sequence[str]], scene: Tensor, facts: Facts, resamples: int) -> Figures:
    """The caption metrics, with intervals in a table, and the bounds that every one must lie between.

    Args:
        said: captions of ``brain``, of the ``true`` image tokens, of ``shuffled`` brains and of the ``mean`` token.
        scene: number of each sample's scene.
        facts: of the scenes.
        resamples: of the bootstrap.
    """
    references = facts.references(scene)
    given: Figures = {}
    for name, (value, reason) in score(said["brain"], references).items():
        if name in ("spice", "clip_s", "refclip_s"):
            continue  # never there without weights; `plait brainot score` lists all ten
        given[name] = Metric(nan if value is None else value, "%", "higher", reason)
    rows: list[list[Any]] = []
    for kind in facts.kinds(len(references)):
        for who, captions in said.items():
            samples = samples_of(kind, captions, scene, facts)
            between = interval(samples, lambda values, kind=kind: total(kind, values), resamples)  # type: ignore[misc]
            rows.append([kind, who, between.value, between.low, between.high])
            given[kind if who == "brain" else f"{kind}_{who}"] = Metric(between.value, "%", "higher")
    empty = sum(not text for text in said["brain"])
    given["empty_captions"] = Metric(100 * empty / len(references), "%", "lower")
    given["bounds"] = Table(
        "Captions of brains between their bounds", ["metric", "tokens of", "value", "low", "high"], rows
    )
    columns = ["scene", "caption of the brain", "caption of the image tokens", "a reference"]
    of_image = said.get("true", said["brain"])
    texts = zip(scene.tolist(), said["brain"], of_image, (known[0] for known in references), strict=True)
    listed = [list(row) for row in texts][:SHOWN]
    given["captions"] = Table("What a brain saw", columns, listed)
    return given


def closeness(brain: Tensor, image: Tensor, options: BrainotOptions) -> Figures:
    """How close brain tokens [n, N, D] come to image tokens [n, M, D].

    The transport figures are by exact plans whatever the loss was, so that losses compare.
    """
    cost, moved = distances(brain, image), options.moved
    plan = exact_plan(cost, moved).plan
    paid = float((cost * plan).sum((1, 2)).mean()) / moved
    given: Figures = {
        "transport_cost": Metric(paid, "", "lower", f"exact, for m = {moved:g}"),
        "mass": Metric(float(plan.sum((1, 2)).mean()), "", "neither"),
        "untransported": Metric(100 * float((plan.sum(2) <= NOTHING).double().mean()), "%", "neither"),
        "norm_ratio": Metric(float(brain.norm(dim=2).mean() / image.norm(dim=2).mean()), "", "neither"),
    }
    if brain.shape == image.shape:
        given["token_cosine"] = Metric(float(functional.cosine_similarity(brain, image, dim=2).mean()), "", "higher")
        given["mse"] = Metric(float((brain - image).square().mean()), "", "lower")
    if options.align == "entropic_partial":
        said = align(brain, image, options).info
        given["violation"] = Metric(said["violation"], "", "lower", f"{said['sweeps']:.0f} sweeps")
    return given


def retrieval(brain: Tensor, image: Tensor) -> Figures:
    """How often the right image is among the first, by cosine of all tokens and by transport cost."""
    given: Figures = {}
    if brain.shape[1:] == image.shape[1:]:
        alike = functional.normalize(brain.flatten(1), dim=1) @ functional.normalize(image.flatten(1), dim=1).T
        given |= _ranks("cosine", alike)
    few = min(RETRIEVED, len(brain))
    x, y = brain[:few], image[:few]
    pairs = distances(x.repeat_interleave(few, 0), y.repeat(few, 1, 1))
    cost = (pairs * exact_plan(pairs, 1.0).plan).sum((1, 2)).reshape(few, few)
    return given | _ranks(f"transport_of_{RETRIEVED}", -cost)


def _ranks(name: str, alike: Tensor) -> Figures:
    given: Figures = {}
    for direction, matrix in (("image", alike), ("brain", alike.T)):
        place = (matrix > matrix.diagonal()[:, None]).sum(1)
        for first in (1, 5):
            share = 100 * float((place < first).double().mean())
            given[f"{direction}_top{first}_{name}"] = Metric(share, "%", "higher", f"among {len(matrix)}")
    return given


def pictures(brain: Tensor, image: Tensor, extra: Mapping[str, Any], scene: Tensor, said: Sequence[str]) -> Figures:
    """Brain and image tokens in the plane, and a few scenes beside what was said of them."""
    given: Figures = {}
    if brain.shape == image.shape:
        both = torch.cat([brain.flatten(1), image.flatten(1)])
        centred = both - both.mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        x, y = (centred @ axes[:2].T).T.tolist()
        half = len(brain)
        series = {"brain": (x[:half], y[:half]), "image": (x[half:], y[half:])}
        given["plane"] = Plot("Brain and image tokens by their two main components", "", "", series, "graph")
    if "places" in extra:
        for number, (where, text) in enumerate(list(zip(scene.tolist(), said, strict=True))[:3], 1):
            title = f"Scene {where}, and its brain says: {text}"
            given[f"scene_{number}"] = Plot(title, "", "", extra["places"](where), "graph")
    return given


def save_maps(stem: Path, brain: Tensor, image: Tensor, options: BrainotOptions) -> None:
    """Write two heat maps and their numbers: STEM-similarity.png, STEM-plan.png, STEM.npz.

    Similarity: cosine of all tokens of a brain with those of an image, of up to 100 samples, scaled to [0, 1]; the
    plan is that of the first sample, brain tokens in rows.
    """
    plan = exact_plan(distances(brain[:1], image[:1]), options.moved).plan[0].numpy()
    maps = {"plan": plan}
    if brain.shape == image.shape:
        x, y = (functional.normalize(tokens[:100].flatten(1), dim=1) for tokens in (brain, image))
        alike = (x @ y.T).numpy()
        maps["similarity"] = (alike - alike.min()) / max(float(alike.max() - alike.min()), 1e-12)
    for name, values in maps.items():
        pixels = np.kron(255 * values / max(float(values.max()), 1e-12), np.ones((4, 4))).astype(np.uint8)
        write_atomically(stem.with_name(f"{stem.name}-{name}.png"), partial(Image.fromarray(pixels).save, format="PNG"))
    arrays: Mapping[str, Any] = {**maps, "untransported": plan.sum(1) <= NOTHING}

    def save(file: Path) -> None:
        with open(file, "wb") as handle:
            np.savez(handle, **arrays)

    write_atomically(stem.with_suffix(".npz"), save)


def save_pictures(file: Path, shown: Sequence[npt.NDArray[np.uint8]], said: Sequence[str], columns: int = 4) -> None:
    """Write a PNG of pictures, uint8 [H, W, 3] each, row by row, and under each what was said of it."""
    height, width = shown[0].shape[:2]
    rows, below = -(-len(shown) // columns), 40
    sheet = Image.new("RGB", (columns * width, rows * (height + below)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, text) in enumerate(zip(shown, said, strict=True)):
        left, top = number % columns * width, number // columns * (height + below)
        sheet.paste(Image.fromarray(pixels), (left, top))
        pen.multiline_text((left + 3, top + height + 2), "\n".join(wrap(text, width // 6)[:3]), fill="black")
    write_atomically(file, partial(sheet.save, format="PNG"))


def contrasts(found: Mapping[str, Contrast], kind: str) -> Figures:
    """The analysis of masked regions by one score: metrics, a table with every interval, and bars."""
    given: Figures = {}
    for name, between in found.items():
        unit = "" if name == "redundancy" else "points"
        ends = {} if name.startswith(("drop_", "alone_")) else {"_low": between.low, "_high": between.high}
        for suffix, value in {"": between.value, **ends}.items():
            given[f"{name}_{kind}{suffix}"] = Metric(value, unit, "neither")
    rows = [[n, b.value, b.low, b.high, "yes" if b.established else "no"] for n, b in found.items()]
    columns = ["contrast", kind, "low", "high", "interval excludes 0"]
    given[f"regions_{kind}"] = Table(f"Regions left out at the test, by {kind}", columns, rows)
    series: dict[str, tuple[Sequence[Any], Sequence[float]]] = {}
    for start, label in (("drop_", "lost without it"), ("alone_", "gained by it alone")):
        of = {n.removeprefix(start): b.value for n, b in found.items() if n.startswith(start)}
        series[label] = (list(of), list(of.values()))
    given[f"worth_{kind}"] = Plot(f"What each region is worth, by {kind}", "region", kind, series, "bar")
    return given
