"""The data source ``scenes``: generated scenes, and brains that see them with known redundancy and synergy (card, 5.2).

A scene is a grid: one to three objects of 2 x 2 places, a background, a light. Here its image tokens are generated,
too, with nuisance tokens of random content; `plait_brainot.pictures` has the same scenes and brains with pixels. A
brain has regions with a rule each; ``xorA`` and ``xorB`` tell the light only together, ``copy`` repeats ``object``.
With ``places = "fixed"`` an object's place follows from the set of objects, so that the place of every token can be
decoded and matching has nothing to win.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plait import Data, DataInfo

from .options import BrainsOptions, ScenesOptions
from .samples import FIELDS, Samples

__all__ = ["REGIONS", "Scenes", "World", "brains", "generate", "load", "world_of_tokens"]

VERSION = 1
"""Of the generator; part of the data's fingerprint."""
COLOURS = ("red", "blue", "green", "yellow", "white")
BACKGROUNDS = ("grass", "sand", "snow", "water", "stone")
LIGHTS = ("day", "night")
_NAMES = """
dog cat car bus train boat horse cow sheep bird zebra bear clock chair table lamp bottle cup kite ball umbrella
bench pizza apple cake laptop phone book vase sofa bed truck plane bicycle elephant giraffe banana orange shoe hat
"""
CLASSES = tuple(_NAMES.split())
SENTENCES = (
    "{objects} on {ground} at {time}",
    "{objects} on the {ground} by {time}",
    "at {time} there is {objects} on {ground}",
    "a picture of {objects} on {ground} at {time}",
    "on {ground} at {time} is {objects}",
)
REGIONS: Mapping[str, float] = {
    "early": 0.3,
    "object": 0.2,
    "colour": 0.1,
    "place": 0.1,
    "copy": 0.1,
    "xorA": 0.05,
    "xorB": 0.05,
    "noise": 0.1,
}
"""Region -> share of the voxels."""
VOXELS = (1.0, 11 / 12, 10 / 12, 9.6 / 12)
"""Voxels of subjects 1 to 4, relative to the first."""
MOST = 3
"""Objects of a scene at most."""
UNSEEN = 0.15
"""Share of the pairs of kinds that no training scene has together."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scenes:
    """Scenes as they are, S of them.

    Attributes:
        count: objects of each, [S], 1 to 3.
        kind, colour: of each object, [S, 3], -1 where there is none; kinds rise within a scene.
        corner: row and column of its upper left token, [S, 3, 2].
        background, light: [S].
    """

    count: Array
    kind: Array
    colour: Array
    corner: Array
    background: Array
    light: Array

    def phrases(self, world: World) -> list[list[str]]:
        """The objects of each scene in words, ``red car``."""
        return [
            [f"{COLOURS[c]} {world.kinds[k]}" for k, c in zip(kinds[:n], colours[:n], strict=True)]
            for n, kinds, colours in zip(self.count, self.kind, self.colour, strict=True)
        ]

    def captions(self, world: World, generator: np.random.Generator) -> list[list[str]]:
        """Five references of each scene: other orders, other words."""
        given = []
        for objects, ground, light in zip(self.phrases(world), self.background, self.light, strict=True):
            there = [f"a {phrase}" for phrase in objects]
            orders = [generator.permutation(len(there)) for _ in SENTENCES]
            listed = [" and ".join(there[i] for i in order) for order in orders]
            words = {"ground": world.grounds[ground], "time": LIGHTS[light]}
            given.append([form.format(objects=of, **words) for form, of in zip(SENTENCES, listed, strict=True)])
        return given

    def kinds(self, classes: int) -> Array:
        """Which kinds of objects are there, bool [S, K]."""
        present: Array = (self.kind[:, :, None] == np.arange(classes)).any(1)
        return present

    def plan(self, world: World, row: int) -> dict[str, tuple[list[float], list[float]]]:
        """A scene in the plane: what is there -> the places of its tokens, row 0 above."""
        drawn: dict[str, tuple[list[float], list[float]]] = {}
        taken: set[tuple[int, int]] = set()
        grid = world.grid
        for phrase, (top, left) in zip(self.phrases(world)[row], self.corner[row].tolist(), strict=False):
            own = [(top + part // 2, left + part % 2) for part in range(4)]
            taken |= set(own)
            drawn[phrase] = [float(c) for _, c in own], [float(grid - 1 - r) for r, _ in own]
        rest = [(r, c) for r in range(grid) for c in range(grid) if (r, c) not in taken]
        ground = f"{world.grounds[self.background[row]]} at {LIGHTS[self.light[row]]}"
        drawn[ground] = [float(c) for _, c in rest], [float(grid - 1 - r) for r, _ in rest]
        return drawn


PARTS = tuple(Scenes.__dataclass_fields__)
Eye = Callable[[str, Scenes, np.random.Generator], Array]
"""From a split's name and scenes to image tokens, float32 [S, N, D]; ``train`` comes first, for what an eye learns."""


@dataclass(frozen=True)
class World:
    """What scenes are of, and how they look.

    Attributes:
        kinds, grounds: words of the kinds of objects and of the five backgrounds.
        grid: places along a side.
        eye: made from the generator that draws the world.
    """

    kinds: tuple[str, ...]
    grounds: tuple[str, ...]
    grid: int
    eye: Callable[[np.random.Generator], Eye]


def world_of_tokens(options: ScenesOptions) -> World:
    """The world of ``scenes``, whose image tokens are sums of vectors."""

    def eye(generator: np.random.Generator) -> Eye:
        vectors = drawn_vectors(options, generator)
        return lambda split, given, of_split: image_tokens(vectors, given, options, of_split)

    return World(CLASSES[: options.classes], BACKGROUNDS, options.grid, eye)


def scenes(count: int, options: BrainsOptions, world: World, unseen: Array, generator: np.random.Generator) -> Scenes:
    """Draw scenes, without pairs of kinds that are ``unseen``, bool [K, K]."""
    objects = generator.integers(1, MOST + 1, count)
    present = np.arange(MOST) < objects[:, None]
    kind = np.zeros((count, MOST), np.int64)
    todo = np.arange(count)
    while len(todo):  # distinct kinds, no pair that is left for the test
        kind[todo] = np.sort(generator.random((len(todo), len(world.kinds))).argsort(1)[:, :MOST], 1)
        bad = np.zeros(len(todo), bool)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            bad |= present[todo, j] & unseen[kind[todo, i], kind[todo, j]]
        todo = todo[bad]
    colour = generator.integers(len(COLOURS), size=(count, MOST))
    corner = np.zeros((count, MOST, 2), np.int64)
    if options.places == "fixed":
        last = world.grid - 2
        corner[:] = np.array([[0, 0], [0, last], [last, 0]])
    else:
        todo = np.arange(count)
        while len(todo):
            drawn = generator.integers(world.grid - 1, size=(len(todo), MOST, 2))
            corner[todo] = drawn
            apart = np.abs(drawn[:, :, None] - drawn[:, None]).max(-1)
            todo = todo[(apart[:, [0, 0, 1], [1, 2, 2]] < 2).any(1)]
    kind, colour = np.where(present, kind, -1), np.where(present, colour, -1)
    background, light = generator.integers(len(BACKGROUNDS), size=count), generator.integers(2, size=count)
    return Scenes(objects, kind, colour, corner, background, light)


def drawn_vectors(options: ScenesOptions, generator: np.random.Generator) -> dict[str, Array]:
    """What tokens are made of: vectors [n, D] of kinds, parts of an object, colours, backgrounds and lights."""
    sizes = {"kind": (options.classes, 1), "part": (4, 0.5), "colour": (5, 1), "background": (5, 1), "light": (2, 0.5)}
    return {name: scale * generator.standard_normal((n, options.dim)) for name, (n, scale) in sizes.items()}


def image_tokens(
    vectors: Mapping[str, Array], given: Scenes, options: ScenesOptions, generator: np.random.Generator
) -> Array:
    """Image tokens float32 [S, N, D], row by row of the grid."""
    count, grid = len(given.count), options.grid
    ground = vectors["background"][given.background] + vectors["light"][given.light]
    tokens = np.repeat(ground[:, None], grid * grid, 1)
    free = np.ones((count, grid * grid), bool)
    for number in range(MOST):
        rows = np.flatnonzero(given.count > number)
        whole = vectors["kind"][given.kind[rows, number]] + vectors["colour"][given.colour[rows, number]]
        for part in range(4):
            corner = given.corner[rows, number]
            slot = (corner[:, 0] + part // 2) * grid + corner[:, 1] + part % 2
            tokens[rows, slot] = whole + vectors["part"][part]
            free[rows, slot] = False
    tokens += options.token_noise * generator.standard_normal(tokens.shape)
    fixed = np.arange(free.shape[1], dtype=float)[None] if options.places == "fixed" else 0.0
    order = np.where(free, fixed + (generator.random(free.shape) if options.places == "random" else 0), np.inf)
    for place in order.argsort(1).T[: min(options.nuisance, int(free.sum(1).min()))]:
        noise = options.nuisance_std * generator.standard_normal((count, options.dim))
        tokens[np.arange(count), place] = noise
    return tokens.astype(np.float32)


class Brain:
    """One subject: which voxels belong to which region, and what they respond to.

    Args:
        voxels: V.
        kinds: K, of objects.
        tokens: N and D of an image.
        options: signal over noise of the regions.
        generator: draws its readouts.
    """

    def __init__(
        self,
        voxels: int,
        kinds: int,
        tokens: tuple[int, int],
        options: BrainsOptions,
        generator: np.random.Generator,
    ) -> None:
        self.kinds, self.options = kinds, options
        bounds = np.round(np.cumsum([0, *REGIONS.values()]) * voxels).astype(int)
        self.regions = {name: np.arange(a, b) for name, a, b in zip(REGIONS, bounds, bounds[1:], strict=False)}
        normal = generator.standard_normal
        size = {name: len(voxels) for name, voxels in self.regions.items()}
        self.field = generator.integers(tokens[0], size=size["early"])
        self.early = normal((size["early"], tokens[1]))
        sources = {"object": 6 * kinds, "copy": 6 * kinds, "colour": 5, "place": 5}
        self.readouts = {name: normal((count, size[name])) for name, count in sources.items()}
        self.signs = {name: generator.choice([-1.0, 1.0], size[name]) for name in ("xorA", "xorB")}
        self.mean: Array | None = None
        self.scale: Array | None = None
        self.level: dict[str, tuple[float, float]] = {}

    def signals(self, given: Scenes, tokens: Array) -> dict[str, Array]:
        """What each region but the xor ones would say without noise, [S, its voxels]; the first call sets the scale."""
        kinds = given.kinds(self.kinds).astype(float)
        pairs, colours = np.zeros((len(kinds), 5 * kinds.shape[1])), np.zeros((len(kinds), 5))
        for number in range(MOST):
            there = np.flatnonzero(given.count > number)
            kind, colour = given.kind[there, number], given.colour[there, number]
            pairs[there, 5 * kind + colour] += 1
            colours[there, colour] += 1
        objects = np.concatenate([kinds, pairs], 1)
        latent = {"object": objects, "copy": objects, "colour": colours, "place": np.eye(5)[given.background]}
        said = {name: values @ self.readouts[name] for name, values in latent.items()}
        said["early"] = np.einsum("svd,vd->sv", tokens[:, self.field].astype(float), self.early)
        if not self.level:
            self.level = {name: (float(v.mean()), float(v.std()) or 1.0) for name, v in said.items()}
        return said

    def look(self, given: Scenes, signals: Mapping[str, Array], u: Array, generator: np.random.Generator) -> Array:
        """The voxels at one look, [S, V], before they are standardised; ``u`` [S] are the bits of xorA."""
        count, options = len(given.count), self.options
        voxels = generator.standard_normal((count, sum(map(len, self.regions.values()))))
        strength = {"early": options.early_snr}
        for name, values in signals.items():
            mean, spread = self.level[name]
            voxels[:, self.regions[name]] += strength.get(name, options.snr) * (values - mean) / spread
        v = (u ^ given.light) if options.xor else generator.integers(2, size=count)
        for name, bit in (("xorA", u), ("xorB", v)):
            voxels[:, self.regions[name]] += options.xor_snr * (2 * bit[:, None] - 1) * self.signs[name]
        return voxels

    def standardised(self, voxels: Array) -> Array:
        """Float32, by mean and spread of the first voxels that were given: those of training."""
        if self.mean is None or self.scale is None:
            self.mean, self.scale = voxels.mean(0), voxels.std(0)
        return ((voxels - self.mean) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Generated:
    """Everything that was generated, by split: scenes, tokens, and voxels [n, V] with scene and subject of each row."""

    scenes: dict[str, Scenes]
    tokens: dict[str, Array]
    voxels: dict[str, Array]
    scene: dict[str, Array]
    subject: dict[str, Array]
    regions: dict[int, dict[str, Array]]


def generate(options: BrainsOptions, seed: int, world: World) -> Generated:
    """Scenes and brains, the same for the same options and seed.

    A test sample is the mean of its looks, standardised as a single look of training is. The bit u of ``xorA`` is drawn
    anew for each row of training, and once for all looks of a test sample.
    """
    root = np.random.SeedSequence([VERSION, seed])
    for_world, for_brains, *for_splits = (np.random.default_rng(s) for s in root.spawn(5))
    unseen = np.triu(for_world.random((len(world.kinds),) * 2) < UNSEEN, 1)
    eye = world.eye(for_world)
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    drawn: dict[str, Scenes] = {}
    tokens: dict[str, Array] = {}
    for (name, count), generator in zip(sizes.items(), for_splits, strict=True):
        drawn[name] = scenes(count, options, world, unseen if name == "train" else np.zeros_like(unseen), generator)
        tokens[name] = eye(name, drawn[name], generator)
    counts = [round(options.voxels * share) for share in VOXELS[: options.subjects]]
    rows: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in sizes}
    regions = {}
    for number, count in enumerate(counts, 1):
        brain = Brain(count, len(world.kinds), tokens["train"].shape[1:], options, for_brains)
        regions[number] = brain.regions
        for name, generator in zip(sizes, for_splits, strict=True):
            own = _own(name, len(drawn[name].count), number, options.subjects)
            given = Scenes(*(getattr(drawn[name], part)[own] for part in PARTS))
            signals = brain.signals(given, tokens[name][own])
            u = [generator.integers(2, size=len(own)) for _ in range(options.repetitions if name == "train" else 1)]
            looks = np.stack([brain.look(given, signals, u[i % len(u)], generator) for i in range(options.repetitions)])
            seen = looks.reshape(-1, count) if name == "train" else looks.mean(0)
            wide = np.zeros((len(seen), counts[0]), np.float32)
            wide[:, :count] = brain.standardised(seen)
            rows[name].append((wide, np.tile(own, len(seen) // len(own)), np.full(len(seen), number)))
    voxels, scene, subject = (
        {name: np.concatenate([given[part] for given in of]) for name, of in rows.items()} for part in range(3)
    )
    return Generated(drawn, tokens, voxels, scene, subject, regions)


def _own(split: str, count: int, subject: int, subjects: int) -> Array:
    """The scenes that a subject sees: of training a quarter that all see, and its own part of the rest."""
    everything = np.arange(count)
    if split != "train" or subjects == 1:
        return everything
    shared = count // 4
    return np.concatenate([everything[:shared], np.array_split(everything[shared:], subjects)[subject - 1]])


def load(options: ScenesOptions, seed: int) -> Data:
    """``scenes`` as a data set; see `brains`."""
    return brains("scenes", options, seed, world_of_tokens(options))


def brains(name: str, options: BrainsOptions, seed: int, world: World, more: Mapping[str, Any] | None = None) -> Data:
    """Brains that see the scenes of a world, as a data set; ``more`` goes into ``info.extra``.

    Fields: ``input`` float32 [n, V], ``target`` float32 [n, N, D], the image tokens, ``subject``, ``scene`` (number
    over all splits), ``group`` (0 day, 1 night). A training scene has a row for each look of each subject that sees it.
    """
    chosen = options.scene_seed if options.scene_seed >= 0 else seed
    made = generate(options, chosen, world)
    words = np.random.default_rng([VERSION, chosen, 7])
    everywhere = torch.from_numpy(np.concatenate(list(made.tokens.values())))
    known = f"{name} {VERSION} {chosen} {options.model_dump_json(exclude={'scene_seed'})}"
    fingerprint = hashlib.sha256(known.encode()).hexdigest()
    first, splits = 0, {}
    for split, of in made.scenes.items():
        scene = made.scene[split]
        columns = {"subject": made.subject[split], "scene": first + scene, "group": of.light[scene]}
        splits[split] = Samples(made.voxels[split], columns, everywhere, fingerprint=fingerprint)
        first += len(of.count)
    whole = Scenes(*(np.concatenate([getattr(of, part) for of in made.scenes.values()]) for part in PARTS))
    extra = {
        "voxels": {subject: sum(map(len, regions.values())) for subject, regions in made.regions.items()},
        "tokens": tuple(everywhere.shape[1:]),
        "regions": made.regions,
        "captions": whole.captions(world, words),
        "phrases": whole.phrases(world),
        "vocabulary": [f"{colour} {kind}" for kind in world.kinds for colour in COLOURS],
        "word": [LIGHTS[light] for light in whole.light],
        "places": functools.partial(whole.plan, world),
        "bits": {"xorA": 0.0, "xorB": 0.0, "xorA+xorB": float(options.xor)},
        **(more or {}),
    }
    info = DataInfo("brain-tokens", (options.voxels,), 0, 2, FIELDS | {"group"}, extra)
    trained, tested = (made.scenes[split].kinds(len(world.kinds)) for split in ("train", "test"))
    together = trained.T @ trained | np.eye(len(world.kinds), dtype=bool)
    unseen = 100 * float((tested & (tested @ ~together)).any(1).mean())
    note = f"{name}: {unseen:.0f} % of the test scenes have two kinds of objects that no training scene has together"
    names = {"group": LIGHTS}
    return Data(
        info, splits["train"], splits["validation"], splits["test"], forward=by_subject, names=names, notes=(note,)
    )


def by_subject(model: Any, batch: Any) -> Any:
    """The model on voxels and, where there are several brains, whose they are."""
    return model(batch["input"], batch["subject"])
