"""How a check of the conformance kit ends when the plugin does not simply pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NoReturn


class Broken(AssertionError):
    """The plugin fails a check; the message says what is wrong, where, and what to change."""


class DoesNotApply(Exception):
    """The check asks nothing of this plugin; the message says why."""


def broken(problems: Iterable[str], change: str) -> NoReturn:
    """Raise `Broken`: every problem on a line of its own, then what to change."""
    raise Broken("\n".join([*dict.fromkeys(problems), f"Change: {change}"]))


def expect_none(problems: Collection[str], change: str) -> None:
    """`broken`, if there is any problem."""
    if problems:
        broken(problems, change)
