"""What a sweep varies: ``KEY=VALUES`` as an axis of a grid, or as a range for an optimiser. No torch here."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.declare.recipe import parse_value
from plait.errors import BadInput

Point = dict[str, Any]
"""Dotted key -> value."""

SEED = "seed"
MOST = 100_000
"""More runs than this are a typing error."""

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COUNT = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")
SPAN = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")


@dataclass(frozen=True)
class Axis:
    """A key of the recipe and the values it takes."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A key and the numbers between which an optimiser looks.

    Attributes:
        low, high: both ends belong to it.
        log: look on a logarithmic scale.
        whole: integers only.
    """

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


def parse(text: str) -> Axis | Range:
    """One ``--over``: ``KEY=0.05,0.1``, ``KEY=0:5`` (0 to 4), ``KEY=0:10:2``, ``KEY=0.01..0.5``, ``KEY=1e-4..1:log``.

    A range between two integers is of integers: ``4..16``; write ``0.0..1.0`` for the numbers between.

    Raises:
        BadInput: it is none of these, or has no value.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")) or not values:
        raise BadInput(f"--over {text}: write it as KEY=VALUES: chase.density=0.05,0.1 or seed=0:5.")
    count, span = COUNT.fullmatch(values), SPAN.fullmatch(values)
    if count:
        step = int(count[3] or 1)
        numbers = range(int(count[1]), int(count[2]), step) if step else range(0)
        if not numbers:
            raise BadInput(f"--over {text}: no number lies in {values} (the end does not belong to it).")
        return _axis(text, key, numbers[: MOST + 1])
    if span:
        whole = all(re.fullmatch(r"[-+]?\d+", span[i]) for i in (1, 2))
        between = Range(key, float(span[1]), float(span[2]), bool(span[3]), whole)
        if between.low >= between.high or (between.log and between.low <= 0):
            raise BadInput(f"--over {text}: a range goes up, and a logarithmic one begins above 0.")
        return between
    return _axis(text, key, _listed(values))


def _listed(values: str) -> list[Any]:
    array = parse_value(f"[{values}]")
    return array if isinstance(array, list) else [parse_value(part.strip()) for part in values.split(",")]


def _axis(text: str, key: str, values: Sequence[Any]) -> Axis:
    if len(values) > MOST:
        raise BadInput(f"--over {text}: more than {MOST:,} values.")
    unique = list({repr(value): value for value in values}.values())
    if len(unique) < len(values):
        raise BadInput(f"--over {text}: a value is there twice.")
    return Axis(key, tuple(values))


def parse_all(over: Sequence[str] | Mapping[str, Sequence[Any]]) -> list[Axis | Range]:
    """Every ``--over``; from Python also a mapping of key -> values.

    Raises:
        BadInput: nothing to vary, or a key twice.
    """
    if isinstance(over, Mapping):
        axes: list[Axis | Range] = [_axis(f"{key}=...", key, list(values)) for key, values in over.items()]
    else:
        axes = [parse(text) for text in over]
    keys = [axis.key for axis in axes]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise BadInput(f"--over {twice}: given twice; write all its values in one.")
    if not axes:
        raise BadInput("a sweep needs something to vary: --over chase.density=0.05,0.1 or --over seed=0:5.")
    return axes


def points(axes: Sequence[Axis]) -> Iterator[Point]:
    """Every combination, the last axis fastest.

    Raises:
        BadInput: more than `MOST` runs.
    """
    total = math.prod(len(axis.values) for axis in axes)
    if total > MOST:
        raise BadInput(f"--over asks for {total:,} runs; the most is {MOST:,}.")
    for values in itertools.product(*[axis.values for axis in axes]):
        yield {axis.key: value for axis, value in zip(axes, values, strict=True)}


def value_at(recipe: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a resolved recipe, as ``optimizer.lr`` or ``chase.density``; None without one."""
    value: Any = recipe
    parts = key.split(".")
    for part in ["plugins", *parts] if parts[0] in recipe["plugins"] else parts:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
