"""The eight composition rules: how several implementations of one hook become one.

Each hook spec names its rule (see `plait.hooks`). A rule does two things and knows no plugin: it judges a set of
implementations from their declarations, and it calls them in the order that the plan fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from plait.errors import BadInput, Refusal, blame


class Rule(StrEnum):
    """How several implementations of one hook compose."""

    REGISTRY = "registry"
    """Named things from every installed plugin; a duplicate name is an error naming both packages."""
    CHAIN = "chain"
    """Each receives the previous one's result."""
    ONE = "one"
    """At most one plugin; without any, the core's own."""
    PRODUCT = "product"
    """Results are multiplied."""
    SUM = "sum"
    """Named results are collected and added up, reported one by one."""
    WRAP = "wrap"
    """One innermost step, any number of wrappers around it, each receives ``proceed``."""
    PARTITION = "partition"
    """Owners of disjoint things; two owners of one are refused."""
    MERGE = "merge"
    """Named results are united under ``<plugin>/<name>``."""


@dataclass(frozen=True)
class Implementation:
    """One plugin's function for one hook."""

    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    inner: bool = False
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def __call__(self, values: Mapping[str, Any]) -> Any:
        return self.function(*[values[name] for name in self.arguments])


@dataclass
class Composed:
    """The ordered implementations of one hook, callable by its rule."""

    hook: str
    rule: Rule
    implementations: list[Implementation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.implementations)

    def owner(self) -> Implementation | None:
        """The single implementation of a ``one`` hook, or None."""
        return self.implementations[0] if self.implementations else None

    def chain(self, value_name: str, **values: Any) -> Any:
        """Pass ``values[value_name]`` through every implementation; None from one of them is refused."""
        for implementation in self.implementations:
            with blame(implementation.plugin):
                result = implementation(values)
            if result is None:
                raise BadInput(
                    f"plugin {implementation.plugin!r}: {self.hook} returned None; "
                    f"return the {value_name} it was given, changed or not."
                )
            values[value_name] = result
        return values[value_name]

    def named(self, **values: Any) -> list[tuple[str, Any]]:
        """Every implementation's result with its plugin's name, in order."""
        results = []
        for implementation in self.implementations:
            with blame(implementation.plugin):
                results.append((implementation.plugin, implementation(values)))
        return results

    def wrap(self, innermost: Callable[[], Any], **values: Any) -> Any:
        """Run the innermost step (a plugin's, else ``innermost``) inside the wrappers, the first plugin outermost."""
        call = innermost
        for implementation in reversed(self.implementations):
            call = _bind(implementation, call, values)
        return call()


def _bind(implementation: Implementation, inside: Callable[[], Any], values: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: implementation({**values, "proceed": inside})


def judge(rule: Rule, hook: str, implementations: Sequence[Implementation]) -> list[Refusal]:
    """What the rule itself forbids about these implementations (ownership is judged in `plait.planning.needs`)."""
    names = tuple(i.plugin for i in implementations)
    if rule is Rule.ONE and len(names) > 1:
        return [
            Refusal(
                rule.value,
                names,
                f"{_list(names)} each replace {hook!r}, and only one plugin may.",
                f"Keep one of them: drop {' or '.join(f'-p {n}' for n in names)}.",
            )
        ]
    owners = tuple(i.plugin for i in implementations if i.inner)
    if rule is Rule.WRAP and len(owners) > 1:
        return [
            Refusal(
                rule.value,
                owners,
                f"{_list(owners)} each own the innermost {hook!r}: each computes the gradients of the step itself.",
                f"Keep one of them: drop {' or '.join(f'-p {n}' for n in owners)}; wrappers around it may stay.",
            )
        ]
    return []


def _list(names: Sequence[str]) -> str:
    return " and ".join(repr(n) for n in names)
