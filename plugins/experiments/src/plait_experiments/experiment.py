"""From a claim to cells: every arm at every seed, and the grid points among which an arm chooses on validation data."""

from __future__ import annotations

import inspect
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.declare.options import load_object
from plait.declare.recipe import Recipe, validated
from plait.errors import BadInput, Refused
from plait.planning import discovery
from plait.planning.discovery import component_options, data_source, model_source
from plait_experiments import choice as choosing
from plait_experiments.cells import Cache, Job, Outcome
from plait_experiments.grid import value_at
from plait_experiments.schema import Arm, Book, Claim, ScaleName, ScaleTable
from plait_experiments.statistics import Summary, summary

OPTION = "options."
"""Dotted keys with this head belong to an arm's function, not to the recipe."""

PILOT = 3
"""Seeds of a pilot."""

VARIABLE = re.compile(r"\$(?:([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)\})")
"""An environment variable in a text: ``$NAME`` or ``${NAME}``."""

Point = tuple[tuple[str, Any], ...]
"""Values of a grid's keys."""


@dataclass(frozen=True)
class Tried:
    """A grid point and what it reached on validation data.

    Attributes:
        point: dotted key -> value.
        score: mean over the tuning seeds; None when a seed is missing or undefined, which puts the point out.
        scores: by tuning seed.
        chosen: whether the arm takes it.
        default: whether the arm takes it where no other point is better by more than the standard error.
        gain: its score minus the default's, paired over the tuning seeds; None for the default, and where one is out.
    """

    point: dict[str, Any]
    score: float | None
    scores: dict[int, float | None]
    chosen: bool = False
    default: bool = False
    gain: Summary | None = None


@dataclass
class Experiment:
    """What must run for some claims of a book at one scale.

    Attributes:
        book: the claims file.
        scale: which size.
        claims: those that have this scale.
        seeds: claim id -> its seeds.
        cache: of cells.
        count: how many seeds, instead of each claim's own; of a pilot, how many to run.
        pilot: whether only the first `count` seeds (default `PILOT`) of each claim are run.
        settings: dotted keys that the user changed.
        problems: arm -> why it cannot run at all.
    """

    book: Book
    scale: ScaleName
    claims: list[Claim]
    cache: Cache
    count: int | None = None
    pilot: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in self.book.scales:
            raise BadInput(f"{self.book.where}: there is no scale {self.scale!r}.")
        self.table: ScaleTable = self.book.scales[self.scale]
        self.seeds = {claim.id: self._seeds(claim) for claim in self.claims}
        first = [seed for seeds in self.seeds.values() for seed in seeds[: self.count or PILOT]]
        self.run_now = set(first) if self.pilot else {seed for seeds in self.seeds.values() for seed in seeds}
        self._used: set[str] = set()

    def _seeds(self, claim: Claim) -> list[int]:
        own = seeds_of(claim, self.table)
        return own if self.pilot and len(own) >= (self.count or 0) else seeds_of(claim, self.table, self.count)

    @property
    def arms(self) -> dict[str, list[int]]:
        """Arm -> every seed that some claim needs of it."""
        wanted: dict[str, dict[int, None]] = {}
        for claim in self.claims:
            for arm in self.book.arms_of(claim):
                wanted.setdefault(arm, {}).update(dict.fromkeys(self.seeds[claim.id]))
        return {arm: sorted(seeds) for arm, seeds in wanted.items()}

    def points(self, arm: str) -> list[Point]:
        """The grid of an arm; one empty point without a grid."""
        return grid_points(self.book.arms[arm], self.scale)

    def tuning(self) -> dict[str, list[tuple[Point, list[Job]]]]:
        """Arm -> its grid points, each with a job per tuning seed; only arms with something to choose."""
        tuned = {}
        for arm in self.arms:
            points = self.points(arm)
            if len(points) > 1:
                jobs = [self._jobs(arm, point, self.table.tuning_seeds) for point in points]
                if arm not in self.problems:
                    tuned[arm] = list(zip(points, jobs, strict=True))
        return tuned

    def default(self, arm: str) -> Point:
        """The grid point that an arm takes without a choice: what it does without its grid.

        That is the arm's own setting, else the default of the recipe, of the plugin's option or of the function's
        argument; for a key whose default is not in the grid its first value.
        """
        table = self.book.arms[arm]
        grid = grid_of(table, self.scale)
        try:
            job = self.job(arm, (), 0)
        except (BadInput, Refused):  # only the grid makes it complete
            return self.points(arm)[0]
        plain = {**_arguments(table.function, grid), **{OPTION + key: value for key, value in job.options.items()}}
        own = {key: plain.get(key, value_at(job.recipe, key)) for key in grid}
        return tuple((key, own[key] if own[key] in values else values[0]) for key, values in grid.items())

    def final(self, arm: str, point: Point) -> list[Job]:
        """The jobs of the final comparison; empty when the arm cannot run (see ``problems``)."""
        return self._jobs(arm, point, self.arms[arm])

    def check_settings(self) -> None:
        """Refuse a changed key that no arm knows.

        Raises:
            BadInput: naming the key.
        """
        for key in self.settings:
            if key not in self._used and not self.problems:
                raise BadInput(f"--set {key}: no arm of these claims has such a key.")

    def _jobs(self, arm: str, point: Point, seeds: Sequence[int]) -> list[Job]:
        try:
            return [self.job(arm, point, seed) for seed in seeds]
        except Refused as error:
            self.problems[arm] = f"its plugins cannot work together: {error}"
        except BadInput as error:
            self.problems[arm] = str(error)
        return []

    def job(self, arm: str, point: Point, seed: int) -> Job:
        """One cell.

        Raises:
            BadInput: a bad key or value, or something that is not installed.
        """
        table = self.book.arms[arm]
        recipe, options, used = assembled(self.book, self.scale, arm, dict(point), self.settings, seed)
        self._used |= used
        return self.cache.job(
            recipe,
            arm,
            dict(point),
            function=table.function,
            options=options,
            measure=table.measure,
            plugin=self.book.plugin,
        )


def grid_points(arm: Arm, scale: ScaleName) -> list[Point]:
    """The points of an arm's grid at a scale; one empty point without a grid."""
    grid = grid_of(arm, scale)
    return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def grid_of(arm: Arm, scale: ScaleName) -> Mapping[str, Sequence[Any]]:
    """The grid of an arm at a scale."""
    change = arm.at.get(scale)
    return change.grid if change is not None and change.grid is not None else arm.grid


def _arguments(function: str | None, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a function's arguments that a grid varies; none where it cannot be imported here."""
    if function is None or not any(key.startswith(OPTION) for key in grid):
        return {}
    try:
        parameters = inspect.signature(load_object(function, "function")).parameters
    except BadInput:
        return {}
    return {OPTION + name: p.default for name, p in parameters.items() if p.default is not p.empty}


def seeds_of(claim: Claim, scale: ScaleTable, count: int | None = None) -> list[int]:
    """A claim's seeds; with ``count`` the first so many, continued upwards without touching the tuning seeds."""
    seeds = list(claim.seeds or scale.seeds)
    if count is None:
        return seeds
    further = itertools.count(max(seeds) + 1)
    while len(seeds) < count:
        seed = next(further)
        if seed not in scale.tuning_seeds:
            seeds.append(seed)
    return seeds[:count]


def assembled(
    book: Book,
    scale: ScaleName,
    arm: str,
    point: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int = 0,
    environment: Mapping[str, str] = os.environ,
) -> tuple[Recipe, dict[str, Any], set[str]]:
    """An arm's recipe, the options of its function, and the keys of ``settings`` that it took.

    Raises:
        BadInput: an unknown key, a bad value, or an environment variable of the scale that is not set.
    """
    table, side = book.scales[scale], book.arms[arm]
    where = f"{book.where}: arms.{arm} at {scale}"

    def expanded(value: Any) -> Any:
        """A copy with ``$NAME`` and ``${NAME}`` replaced."""
        if isinstance(value, Mapping):
            return {k: expanded(v) for k, v in value.items()}
        if isinstance(value, list):
            return [expanded(v) for v in value]
        return VARIABLE.sub(variable, value) if isinstance(value, str) else value

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in table.environment:
            raise BadInput(f"{book.where}: scales.{scale}.environment: {name} is used and not described there.")
        if name not in environment:
            raise BadInput(f"the environment variable {name} is not set; it names {table.environment[name]}")
        return environment[name]

    values = expanded(table.recipe)
    values["seed"] = seed
    values["plugins"] = {
        name: {**table.plugins.get(name, {}), **expanded(options)} for name, options in side.plugins.items()
    }
    changes = {**side.set, **(side.at[scale].set if scale in side.at else {})}
    changes = {**expanded(changes), **point}
    options = {**side.options, **{k.removeprefix(OPTION): v for k, v in changes.items() if k.startswith(OPTION)}}
    recipe = Recipe.parse(values, where)
    recipe = recipe.merged({k: v for k, v in changes.items() if not k.startswith(OPTION)}, where)
    heads = {*Recipe.model_fields, *recipe.plugins} - {"plugins", "seed"}
    mine = {k: v for k, v in settings.items() if k.partition(".")[0] in heads}
    return recipe.merged(mine), options, set(mine)


def choose(
    arm: Arm, tried: Sequence[tuple[Point, Sequence[Job]]], outcomes: Mapping[str, Outcome], default: Point
) -> list[Tried]:
    """The grid points with their validation scores; the one to take is marked.

    The best is taken where its score exceeds the default's by more than the standard error of that difference, paired
    over the tuning seeds; else the default.
    """
    assert arm.choose is not None
    scores = [{job.seed: _value(outcomes.get(job.key), arm.choose) for job in jobs} for _, jobs in tried]
    return compared([dict(point) for point, _ in tried], scores, dict(default), arm.choose_better == "higher")


def compared(
    points: Sequence[dict[str, Any]],
    scores: Sequence[Mapping[int, float | None]],
    default: Mapping[str, Any],
    higher: bool,
) -> list[Tried]:
    """`choose`, given the scores by tuning seed."""
    place = points.index(dict(default)) if default in points else None
    choice = choosing.choose(scores, place, higher)
    results = []
    for position, (point, by_seed) in enumerate(zip(points, scores, strict=True)):
        mean = summary(list(by_seed.values()))
        score = None if mean.undefined else mean.mean
        chosen, gain = position == choice.chosen, choice.gains[position]
        results.append(Tried(point, score, dict(by_seed), chosen, position == place, gain))
    return results


def _value(outcome: Outcome | None, metric: str) -> float | None:
    return outcome.metrics.get(metric) if outcome is not None else None


def check(book: Book) -> list[str]:
    """Problems of a book's arms that its schema cannot see: recipe keys and plugin options at every scale.

    What is not installed (a data source, another plugin) is not judged.

    Returns:
        A line per problem, with file and key.
    """
    return list(dict.fromkeys(_arm_checks(book)))


def _arm_checks(book: Book) -> Iterator[str]:
    for scale, table in book.scales.items():
        environment = {**{name: f"${name}" for name in table.environment}, **os.environ}
        for arm in book.arms:
            for point in grid_points(book.arms[arm], scale):
                try:
                    recipe, _, _ = assembled(book, scale, arm, dict(point), {}, environment=environment)
                    _check_options(recipe, f"{book.where}: arms.{arm} at {scale}")
                except BadInput as error:
                    yield from str(error).splitlines()


def _check_options(recipe: Recipe, where: str) -> None:
    for name, options in recipe.plugins.items():
        item = discovery.active_registry().get(name)
        if item is not None and item.plugin is not None:
            validated(item.plugin.Options, options, f"{where}: plugins.{name}")
    for kind, look, hook in (("data", data_source, "data_sources"), ("model", model_source, "models")):
        component = getattr(recipe, kind)
        if component.name in discovery.collect(hook)[0]:
            source = look(component.name)
            assert source is not None
            component_options(f"{where}: {kind}", component.name, source, component.options)
