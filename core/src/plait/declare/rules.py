"""The eight composition rules: how several implementations of one hook become one.

Each hook spec names its rule (see `plait.hooks`). A rule does two things and knows no plugin: it judges a set of
implementations from their declarations, and it calls them in the order that the plan fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
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
                wanted = f"return the {value_name} it was given, changed or not"
                raise BadInput(f"plugin {implementation.plugin!r}: {self.hook} returned None; {wanted}.")
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
            call = partial(implementation, {**values, "proceed": call})
        return call()


def judge(rule: Rule, hook: str, implementations: Sequence[Implementation]) -> list[Refusal]:
    """What the rule itself forbids about these implementations (ownership is judged in `plait.planning.needs`)."""
    rivals = tuple(i.plugin for i in implementations if rule is Rule.ONE or (rule is Rule.WRAP and i.inner))
    if len(rivals) < 2:
        return []
    listed = " and ".join(map(repr, rivals))
    if rule is Rule.ONE:
        message, others = f"{listed} each replace {hook!r}, and only one plugin may.", "."
    else:
        message = f"{listed} each own the innermost {hook!r}: each computes the gradients of the step itself."
        others = "; wrappers around it may stay."
    fix = f"Keep one of them: drop {' or '.join(f'-p {name}' for name in rivals)}{others}"
    return [Refusal(rule.value, rivals, message, fix)]
