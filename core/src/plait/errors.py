"""Errors for people: what was wrong, where, and what to do. Each carries the exit code the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class PlaitError(Exception):
    """Base of every error that plait raises on purpose.

    Attributes:
        exit_code: what the command line ends with.
        shown: another process of the run has told the user already.
        echo: it follows from the failure of another process.
    """

    exit_code = 1
    shown = False
    echo = False


class RunFailed(PlaitError):
    """The run could not go on (a loss that is not finite, a full disk, a step that broke the contract)."""


class BadInput(PlaitError, ValueError):
    """Something the user gave cannot be used: a name, an option, a file."""

    exit_code = 2


class BadCheckpoint(BadInput):
    """A checkpoint that is truncated, changed, foreign, or of another model; nothing in it was executed."""


class RunLocked(BadInput):
    """Another process is writing this run directory."""


@dataclass(frozen=True)
class Refusal:
    """Why a set of plugins cannot work together, and what to change."""

    rule: str
    plugins: tuple[str, ...]
    message: str
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait plan --json``."""
        return {"rule": self.rule, "plugins": list(self.plugins), "message": self.message, "fix": self.fix}


class Refused(PlaitError):
    """The plugins cannot work together.

    Attributes:
        refusals: every reason, each with the rule, the plugins, the message and the fix.
    """

    exit_code = 3

    def __init__(self, refusals: Iterable[Refusal]) -> None:
        self.refusals = list(refusals)
        super().__init__("\n".join(f"{r.message} {r.fix}" for r in self.refusals))


class Interrupted(PlaitError):
    """The user stopped the run; a checkpoint was written and says how to go on."""

    exit_code = 130


@contextmanager
def blame(plugin: str) -> Iterator[None]:
    """Turn a method library's ``ValueError`` into bad input that names the plugin."""
    try:
        yield
    except PlaitError:
        raise
    except ValueError as error:
        raise BadInput(f"plugin {plugin!r}: {error}") from error


@contextmanager
def failing(step: int, *plugins: str) -> Iterator[None]:
    """A method's ``ValueError`` in the middle of training ends the run, naming step and plugin."""
    try:
        yield
    except PlaitError:
        raise
    except ValueError as error:
        who = f"plugin {' or '.join(map(repr, plugins))}" if plugins else "the model"
        raise RunFailed(f"step {step}: {who}: {error}. The last checkpoint is kept.") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def nearest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest valid name, or an empty string when none is close."""
    closest = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {closest[0]!r}?" if closest else ""
