"""From a claim to cells: every arm at every seed, and the grid points among which an arm chooses on validation data."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.claims import cells
from plait.claims.cells import Job, Outcome
from plait.claims.schema import Arm, Book, Claim, ScaleName, ScaleTable, patterned
from plait.errors import BadInput, Refused
from plait.recipe import Recipe

OPTION = "options."
"""Dotted keys with this head belong to an arm's function, not to the recipe."""

Point = tuple[tuple[str, Any], ...]
"""Values of a grid's keys."""


class Unavailable(BadInput):
    """Something the experiment needs is not on this machine: data, an environment variable, a package."""


@dataclass(frozen=True)
class Tried:
    """A grid point and what it reached on validation data.

    Attributes:
        point: dotted key -> value.
        score: mean over the tuning seeds; None when a seed is missing or undefined, which puts the point out.
        scores: by tuning seed.
        chosen: whether it won.
    """

    point: dict[str, Any]
    score: float | None
    scores: dict[int, float | None]
    chosen: bool = False


@dataclass
class Experiment:
    """What must run for some claims of a book at one scale.

    Attributes:
        book: the claims file.
        scale: which size.
        claims: those that have this scale.
        seeds: claim id -> its seeds.
        cache: where cells lie.
        settings: dotted keys that the user changed.
        problems: arm -> why it cannot run at all.
    """

    book: Book
    scale: ScaleName
    claims: list[Claim]
    cache: Path
    count: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in self.book.scales:
            raise BadInput(f"{self.book.where}: there is no scale {self.scale!r}.")
        self.table: ScaleTable = self.book.scales[self.scale]
        self.seeds = {claim.id: seeds_of(claim, self.table, self.count) for claim in self.claims}
        self._used: set[str] = set()
        self._sources: dict[str, str] = {}

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
        change = self.book.arms[arm].at.get(self.scale)
        grid = change.grid if change is not None and change.grid is not None else self.book.arms[arm].grid
        return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def tuning(self) -> dict[str, list[tuple[Point, list[Job]]]]:
        """Arm -> its grid points, each with a job per tuning seed; only arms with something to choose."""
        found = {}
        for arm in self.arms:
            points = self.points(arm)
            if len(points) > 1:
                jobs = [self._jobs(arm, point, self.table.tuning_seeds) for point in points]
                if arm not in self.problems:
                    found[arm] = list(zip(points, jobs, strict=True))
        return found

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
        from plait.composition import make_plan

        table = self.book.arms[arm]
        recipe, options, used = assembled(self.book, self.scale, arm, dict(point), self.settings, seed)
        self._used |= used
        plan = make_plan(recipe)
        plan.raise_if_refused()
        versions = cells.involved(plan.recipe, self.book.plugin)
        if not self._sources or not versions.keys() <= self._sources.keys():
            self._sources |= dict.fromkeys(versions, "") | cells.sources_of(versions)
        key = cells.make_key(plan.recipe, versions, table.function, options, table.measure)
        return Job(
            key,
            str(self.cache / key),
            arm,
            seed,
            dict(point),
            plan.recipe.model_dump(mode="json", exclude_none=True),
            table.function,
            options,
            table.measure,
            versions,
            {name: self._sources[name] for name in versions if self._sources[name]},
        )


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
    book: Book, scale: ScaleName, arm: str, point: Mapping[str, Any], settings: Mapping[str, Any], seed: int = 0
) -> tuple[Recipe, dict[str, Any], set[str]]:
    """An arm's recipe, the options of its function, and the keys of ``settings`` that it took.

    Raises:
        Unavailable: an environment variable of the scale is not set.
        BadInput: an unknown key or a bad value.
    """
    table, made = book.scales[scale], book.arms[arm]
    where = f"{book.where}: arms.{arm} at {scale}"
    values = _expanded(copy.deepcopy(dict(table.recipe)), table, book, scale)
    values["seed"] = seed
    values["plugins"] = {
        name: {**table.plugins.get(name, {}), **_expanded(dict(options), table, book, scale)}
        for name, options in made.plugins.items()
    }
    changes = {**made.set, **(made.at[scale].set if scale in made.at else {})}
    changes = {**_expanded(changes, table, book, scale), **point}
    options = {**made.options, **{k.removeprefix(OPTION): v for k, v in changes.items() if k.startswith(OPTION)}}
    recipe = Recipe.parse(values, where)
    recipe = recipe.merged({k: v for k, v in changes.items() if not k.startswith(OPTION)}, where)
    heads = {*Recipe.model_fields, *recipe.plugins} - {"plugins", "seed"}
    mine = {k: v for k, v in settings.items() if k.partition(".")[0] in heads}
    return recipe.merged(_one_budget(mine, recipe)), options, set(mine)


def _one_budget(settings: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A budget in steps takes the place of one in epochs, and the other way round."""
    found = dict(settings)
    for key, rival in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{key}" in settings and getattr(recipe.train, rival) is not None:
            found.setdefault(f"train.{rival}", None)
    return found


def _expanded(value: Any, table: ScaleTable, book: Book, scale: str) -> Any:
    if isinstance(value, dict):
        return {k: _expanded(v, table, book, scale) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, table, book, scale) for v in value]
    if not isinstance(value, str):
        return value
    for name in patterned(value):
        if name not in table.environment:
            raise BadInput(f"{book.where}: scales.{scale}.environment: {name} is used and not described there.")
        if name not in os.environ:
            raise Unavailable(f"the environment variable {name} is not set; it names {table.environment[name]}")
        value = value.replace(f"${{{name}}}", os.environ[name]).replace(f"${name}", os.environ[name])
    return value


def choose(arm: Arm, tried: Sequence[tuple[Point, Sequence[Job]]], outcomes: Mapping[str, Outcome]) -> list[Tried]:
    """The grid points with their validation scores; the best one is marked, the first of equals."""
    assert arm.choose is not None
    found = []
    for point, jobs in tried:
        scores = {job.seed: _value(outcomes.get(job.key), arm.choose) for job in jobs}
        known = [s for s in scores.values() if s is not None]
        score = math.fsum(known) / len(known) if len(known) == len(scores) else None
        found.append(Tried(dict(point), score, scores))
    sign = 1 if arm.choose_better == "higher" else -1
    able = [(sign * t.score, -position) for position, t in enumerate(found) if t.score is not None]
    if not able:
        return found
    best = -max(able)[1]
    return [Tried(t.point, t.score, t.scores, position == best) for position, t in enumerate(found)]


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
    from plait import registry
    from plait.composition import component_options, data_source, model_source
    from plait.recipe import validated

    for scale, table in book.scales.items():
        environment = {name: f"${name}" for name in table.environment}
        experiment = Experiment(book, scale, [], Path())
        for arm in book.arms:
            for point in experiment.points(arm):
                try:
                    with _environment(environment):
                        recipe, _, _ = assembled(book, scale, arm, dict(point), {})
                    where = f"{book.where}: arms.{arm} at {scale}"
                    for name, options in recipe.plugins.items():
                        item = registry.active_registry().get(name)
                        if item is not None and item.plugin is not None:
                            validated(item.plugin.Options, options, f"{where}: plugins.{name}")
                    for kind, look, hook in (
                        ("data", data_source, "data_sources"),
                        ("model", model_source, "models"),
                    ):
                        component = getattr(recipe, kind)
                        if component.name in registry.collect(hook)[0]:
                            source = look(component.name)
                            assert source is not None
                            component_options(f"{where}: {kind}", component.name, source, component.options)
                except BadInput as error:
                    yield from str(error).splitlines()


class _environment:
    """Environment variables that are set only for a while."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = {name: value for name, value in values.items() if name not in os.environ}

    def __enter__(self) -> None:
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        for name in self.values:
            del os.environ[name]
