"""What a check of `plait doctor` says, and what it is given. A check that raises is itself reported."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from plait.doctor.probe import Probe

Status = Literal["ok", "warning", "problem"]
INDEX = "https://pypi.org/pypi"
"""Where `online` asks: ``INDEX/<distribution>/json``."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two.
        status: ``ok``; ``warning``: plait works, and something may surprise; ``problem``: something cannot be used.
        found: what is there, in a sentence.
        why: why it matters, empty when all is well.
        fix: what to type; for an ``ok`` one how to get what is optional.
        part: the part of the examination that it belongs to.
        details: the same for machines.
    """

    name: str
    status: Status
    found: str
    why: str = ""
    fix: str = ""
    part: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait doctor --json``."""
        return {
            "part": self.part,
            "name": self.name,
            "status": self.status,
            "found": self.found,
            "why": self.why,
            "fix": self.fix,
            "details": dict(self.details),
        }


@dataclass
class Case:
    """What the checks are given.

    Attributes:
        folder: the present folder.
        online: whether the package index may be asked.
        index: its address.
        torch, torchvision: what a process of their own finds out by importing them.
    """

    folder: Path
    online: bool = False
    index: str = INDEX
    torch: Probe = field(default_factory=lambda: Probe("torch"))
    torchvision: Probe = field(default_factory=lambda: Probe("torchvision"))


Examiner = Callable[[Case], Iterable[Check]]


def guarded(path: str, part: str, case: Case) -> list[Check]:
    """The checks of one examiner; when it raises, those it had made and one that says so.

    Args:
        path: ``module:function`` of this package.
        part: the part of the examination.
        case: what it is given.
    """
    module, _, name = path.partition(":")
    made: list[Check] = []
    try:
        examiner: Examiner = getattr(importlib.import_module(f"plait.doctor.{module}"), name)
        for check in examiner(case):
            made.append(check)
    except (Exception, SystemExit) as error:
        first = next(iter(str(error).splitlines()), "")
        made.append(
            Check(
                name,
                "problem",
                f"looking at it failed: {type(error).__name__}: {first}",
                "What this check looks at is not known.",
                "PLAIT_DEBUG=1 plait doctor shows the place. It is a bug of plait, or a package is damaged.",
                details={"traceback": traceback.format_exc()},
            )
        )
    return [replace(check, part=part) for check in made]
