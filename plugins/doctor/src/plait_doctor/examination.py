"""The examination: which parts there are, who looks at each, and what they say together.

Every examiner is independent: one that raises is reported and the others go on. Nothing is changed, and nothing is
asked of the network unless ``online`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.errors import BadInput, nearest
from plait_doctor.finding import INDEX, Case, Finding, guarded

EXAMINERS = {
    "environment": ("environment:python", "environment:command", "environment:terminal"),
    "packages": (
        "packages:versions",
        "packages:requirements",
        "packages:metadata",
        "packages:optional",
        "index:releases",
    ),
    "devices": (
        "hardware:torch",
        "hardware:torchvision",
        "hardware:processor",
        "hardware:memory",
        "hardware:disk",
    ),
    "plugins": ("plugins:plugins", "plugins:claims", "plugins:components", "plugins:data"),
    "here": ("folder:runs",),
}
"""Part -> its examiners, as module and function of this package; a module is imported when its turn comes."""
PARTS = tuple(EXAMINERS)
"""What can be looked at: interpreter and terminal; distributions; machine; plugins and data; runs in this folder."""


def examine(
    parts: Sequence[str] = (),
    *,
    folder: Path | str = ".",
    online: bool = False,
    index: str = INDEX,
    say: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Look at everything, or at some parts.

    Args:
        parts: some of `PARTS`; none means all.
        folder: where runs are looked for and free space is measured.
        online: also ask the package index for newer releases.
        index: its address, with ``/<distribution>/json`` behind it.
        say: told what is looked at next.

    Raises:
        BadInput: no such part.
    """
    for part in parts:
        if part not in PARTS:
            raise BadInput(f"plait doctor has no part {part!r}.{nearest(part, PARTS)} It has: {', '.join(PARTS)}.")
    chosen = [part for part in PARTS if part in parts or not parts]
    case = Case(Path(folder), online, index)
    findings: list[Finding] = []
    try:
        if "devices" in chosen:  # begin now what takes longest
            case.torch.start()
            case.torchvision.start()
        for part in chosen:
            for path in EXAMINERS[part]:
                say(path.partition(":")[2])
                findings += guarded(path, part, case)
    finally:
        case.torch.stop()
        case.torchvision.stop()
    return findings


def sound(findings: Iterable[Finding]) -> bool:
    """Whether nothing is a problem."""
    return all(finding.status != "problem" for finding in findings)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The form printed by ``plait doctor --json``."""
    counts = {status: sum(finding.status == status for finding in findings) for status in ("ok", "warning", "problem")}
    return {"ok": sound(findings), "counts": counts, "checks": [asdict(finding) for finding in findings]}
