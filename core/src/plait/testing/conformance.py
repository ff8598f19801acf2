"""The rules that a plugin is checked against: what each asks, and how a check says no or does not apply."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from plait.testing.subject import Subject


class Broken(AssertionError):
    """The plugin breaks a rule; the message says what is wrong, where, and what to change."""


class DoesNotApply(Exception):
    """The rule asks nothing of this plugin; the message says why."""


class Stage(StrEnum):
    """What must have succeeded before a rule can be checked."""

    NAMED = "named"
    """Nothing: only a name or a class was given."""
    LOADED = "loaded"
    """The plugin's class could be imported."""
    USABLE = "usable"
    """Its status is ok, so that it can be planned."""
    RUN = "run"
    """A tiny run finished."""


@dataclass(frozen=True)
class Rule:
    """One rule of the suite.

    Attributes:
        name: the test is called ``test_<name>``.
        asks: one sentence for the table and for ``pytest --collect-only``.
        stage: what the check builds on.
        check: raises `Broken` or `DoesNotApply`.
    """

    name: str
    asks: str
    stage: Stage
    check: Callable[[Subject], None]


_RULES: dict[str, Rule] = {}
MODULES = ("package_rules", "option_rules", "hook_rules", "declaration_rules", "run_rules", "result_rules")
"""The modules that hold the checks, in the order of the suite."""

Check = Callable[["Subject"], None]


def rule(stage: Stage) -> Callable[[Check], Check]:
    """Make a function a rule of the suite: its name is the rule's, its docstring what the rule asks."""

    def add(check: Check) -> Check:
        asks = " ".join((check.__doc__ or "").split())
        _RULES[check.__name__] = Rule(check.__name__, asks, stage, check)
        return check

    return add


def rules() -> tuple[Rule, ...]:
    """Every rule, in the order in which they are checked."""
    for module in MODULES:
        importlib.import_module(f"plait.testing.{module}")
    order = [f"plait.testing.{module}" for module in MODULES]
    return tuple(sorted(_RULES.values(), key=lambda one: order.index(one.check.__module__)))


def check(subject: Subject, one: Rule) -> None:
    """Check one rule on a plugin.

    Raises:
        Broken: the plugin breaks it.
        DoesNotApply: it asks nothing of this plugin, or what it builds on failed (which another rule reports).
    """
    with subject.present():
        subject.require(one)
        one.check(subject)


def passes(subject: Subject, name: str) -> bool:
    """Whether a rule is kept, or does not apply."""
    rules()
    try:
        _RULES[name].check(subject)
    except Broken:
        return False
    except DoesNotApply:
        return True
    return True


def broken(problems: Iterable[str], change: str) -> NoReturn:
    """Raise `Broken`: every problem on a line of its own, then what to change."""
    raise Broken("\n".join([*dict.fromkeys(problems), f"Change: {change}"]))
