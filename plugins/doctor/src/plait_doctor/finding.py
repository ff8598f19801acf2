"""What `plait doctor` says of one thing, and what an examiner is given. An examiner that raises is itself reported."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from plait.errors import first_line
from plait_doctor.probe import Probe

Status = Literal["ok", "warning", "problem"]
INDEX = "https://pypi.org/pypi"
"""Where ``plait doctor --online`` asks: ``INDEX/<distribution>/json``."""


@dataclass(frozen=True)
class Finding:
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


@dataclass
class Case:
    """What the examiners are given.

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


Examiner = Callable[[Case], Iterable[Finding]]


def guarded(path: str, part: str, case: Case) -> list[Finding]:
    """What one examiner says; when it raises, what it had said until then and that it raised.

    Args:
        path: ``module:function`` of this package.
        part: the part of the examination.
        case: what it is given.
    """
    module, _, name = path.partition(":")
    findings: list[Finding] = []
    try:
        examiner: Examiner = getattr(importlib.import_module(f"plait_doctor.{module}"), name)
        for finding in examiner(case):
            findings.append(finding)
    except (Exception, SystemExit) as error:
        findings.append(
            Finding(
                name,
                "problem",
                f"looking at it failed: {type(error).__name__}: {first_line(error)}",
                "What this check looks at is not known.",
                "PLAIT_DEBUG=1 plait doctor shows the place. It is a bug of plait, or a package is damaged.",
                details={"traceback": traceback.format_exc()},
            )
        )
    return [replace(finding, part=part) for finding in findings]
