"""Checks of options, of the plugin and of the data sources and models that it registers."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from plait.declare.recipe import Recipe, validated
from plait.errors import BadInput
from plait_authoring.conformance import Stage, check
from plait_authoring.subject import Subject
from plait_authoring.verdicts import DoesNotApply, expect_none

UNBOUNDED = "unbounded"
"""The key of ``Field(json_schema_extra={"unbounded": "why"})`` that marks a number without bounds on purpose."""
FAR = 1e15
"""A number that a bounded option refuses, with one of the two signs."""


@dataclass(frozen=True)
class Declared:
    """An options model, where it belongs, and values for its required fields."""

    where: str
    model: type[BaseModel]
    given: Mapping[str, Any]

    def refusals(self, **values: Any) -> list[str]:
        """The keys for which these values are refused; an empty key for the model as a whole."""
        try:
            self.model.model_validate({**self.given, **values})
        except ValidationError as error:
            return [str(problem["loc"][0]) if problem["loc"] else "" for problem in error.errors(include_url=False)]
        except Exception:  # a validator of the plugin's may raise anything
            return [""]
        return []

    def refuses(self, name: str, value: Any) -> bool:
        """Whether a value of one field is refused, by the field or by the model because of it."""
        refused = self.refusals(**{name: value})
        return name in refused or ("" in refused and "" not in self.refusals())


def declared(subject: Subject) -> Iterator[Declared]:
    """Every options model of the plugin, nested ones included."""
    known = {key: value for key, value in subject.options.items() if key in subject.plugin.Options.model_fields}
    yield from _nested(Declared("option", subject.plugin.Options, known))
    for hook, kind in (("data_sources", "data source"), ("models", "model")):
        for name, source in subject.registered(hook).items():
            yield from _nested(Declared(f"{kind} {name!r}, option", source.options, {}))


def _nested(table: Declared) -> Iterator[Declared]:
    yield table
    for name, field in table.model.model_fields.items():
        for inner in _models_in(field.annotation):
            given = table.given.get(name, {})
            yield from _nested(Declared(f"{table.where} {name!r},", inner, given if isinstance(given, Mapping) else {}))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def numbers(annotation: Any) -> Iterator[Callable[[float], Any]]:
    """How a number is written into an option of this type, for each place that takes table."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is int:
        yield int
    elif annotation is float:
        yield float
    elif origin is typing.Annotated:
        yield from numbers(parts[0])
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from numbers(part)
    elif origin is tuple and Ellipsis not in parts:
        for inside in numbers(parts[0]) if parts else ():
            yield lambda value, inside=inside: [inside(value)] * len(parts)  # type: ignore[misc]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        for inside in numbers(parts[1]):
            yield lambda value, inside=inside: {"key": inside(value)}  # type: ignore[misc]
    elif origin is not typing.Literal:
        for part in parts:
            for inside in numbers(part):
                yield lambda value, inside=inside: [inside(value)]  # type: ignore[misc]


@check(Stage.LOADED)
def options_documented(subject: Subject) -> None:
    """Every option has a description: it becomes help, completion and the documentation's table."""
    problems = [
        f"{table.where} {name!r} has no description."
        for table in declared(subject)
        for name, field in table.model.model_fields.items()
        if not (field.description or "").strip()
    ]
    expect_none(problems, 'write Field(..., description="what it is, with its unit").')


@check(Stage.LOADED)
def options_bounded(subject: Subject) -> None:
    """Every number among the options has a bound, or says why it has none; NaN is refused."""
    problems = []
    for table in declared(subject):
        for name, field in table.model.model_fields.items():
            extra = field.json_schema_extra
            reason = extra.get(UNBOUNDED) if isinstance(extra, Mapping) else None
            for written in numbers(field.annotation):
                if not any(table.refuses(name, written(far)) for far in (-FAR, FAR)) and not (
                    isinstance(reason, str) and reason.strip()
                ):
                    problems.append(f"{table.where} {name!r} takes any number, {-FAR:g} as well as {FAR:g}.")
                if written(0.5) != written(0) and not table.refuses(name, written(math.nan)):
                    problems.append(f"{table.where} {name!r} takes NaN.")
    expect_none(
        problems,
        "give a bound, Field(..., ge=0, le=1), or a validator that refuses what makes no sense. A number that "
        'really has none says so: Field(..., json_schema_extra={"unbounded": "why"}). plait.Options refuses NaN.',
    )


@check(Stage.LOADED)
def options_checked(subject: Subject) -> None:
    """The defaults of the options are valid, and an unknown option is refused."""
    problems = []
    for table in declared(subject):
        refused = table.refusals(no_such_option=1)
        if "no_such_option" not in refused:
            problems.append(
                f"{table.where}s: an unknown one is taken in silence, so that a misspelt option does nothing."
            )
        missing = [n for n, f in table.model.model_fields.items() if f.is_required() and n not in table.given]
        if missing:
            continue
        odd = table.refusals()
        if not odd:
            odd = [*_refused_defaults(table)]
        problems += [f"{table.where} {name or 'set as a whole'!r}: the default is refused." for name in odd]
    expect_none(
        problems,
        "derive the options from plait.Options, which refuses unknown keys and checks defaults, "
        "and give defaults within the bounds.",
    )


def _refused_defaults(table: Declared) -> Iterator[str]:
    options = table.model.model_validate(dict(table.given))
    try:
        table.model.model_validate(options.model_dump())
    except ValidationError as error:
        yield from (str(p["loc"][0]) if p["loc"] else "" for p in error.errors(include_url=False))


@check(Stage.LOADED)
def options_round_trip(subject: Subject) -> None:
    """The options read back from a recipe.toml are the options that were written: a resumed run depends on it."""
    problems = []
    checked = 0
    for table in declared(subject):
        if table.where.endswith(","):
            continue  # nested models are written with the model they are in
        if "name" in table.model.model_fields and table.where != "option":
            problems.append(f"{table.where} 'name' collides with the component's own name in the recipe.")
            continue
        if table.refusals():
            continue
        options = table.model.model_validate(dict(table.given))
        checked += 1
        try:
            recipe = Recipe.parse({"plugins": {subject.name: options.model_dump(mode="json", exclude_none=True)}})
            back = validated(table.model, _read(recipe).plugins[subject.name], "recipe.toml")
        except (BadInput, TypeError, ValueError) as error:
            problems.append(f"{table.where}s cannot be written to a recipe and read back: {error}")
            continue
        problems += [
            f"{table.where} {name!r}: {written!r} comes back from recipe.toml as {getattr(back, name)!r}."
            for name, written in options
            if getattr(back, name) != written
        ]
    expect_none(
        problems,
        "use types that TOML holds (numbers, strings, booleans, lists and tables of them). None cannot be written: "
        "an option that is None must have the default None.",
    )
    if not checked:
        raise DoesNotApply("an option is required and was not given: plait_plugin_suite(..., options={...})")


def _read(recipe: Recipe) -> Recipe:
    import tomllib

    return Recipe.parse(tomllib.loads(recipe.to_toml()), "recipe.toml")
