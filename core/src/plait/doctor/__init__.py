"""`plait doctor`: what is installed, on what machine, what is out of date or broken, and what to type.

Every check is independent: one that raises is reported and the others go on. Nothing is changed, and nothing is asked
of the network unless ``online`` is given. Importing this imports no torch; torch is imported in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from plait.doctor.check import INDEX, Case, Check, guarded
from plait.errors import BadInput, nearest

__all__ = ["EXAMINERS", "PARTS", "Case", "Check", "document", "examine", "sound"]

EXAMINERS = {
    "environment": ("environment:python", "environment:command", "environment:terminal"),
    "packages": (
        "packages:versions",
        "packages:requirements",
        "packages:metadata",
        "packages:optional",
        "online:releases",
    ),
    "devices": (
        "hardware:torch",
        "hardware:torchvision",
        "hardware:processor",
        "hardware:memory",
        "hardware:disk",
    ),
    "plugins": ("plugins:plugins", "plugins:claims", "plugins:components", "plugins:data"),
    "here": ("here:runs",),
}
"""Part -> the checks, as module and function of this package; a module is imported when its check is made."""
PARTS = tuple(EXAMINERS)
"""What can be looked at: interpreter and terminal; distributions; machine; plugins and data; runs in this folder."""


def examine(
    parts: Sequence[str] = (),
    *,
    folder: Path | str = ".",
    online: bool = False,
    index: str = INDEX,
    say: Callable[[str], None] = lambda text: None,
) -> list[Check]:
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
    found: list[Check] = []
    try:
        if "devices" in chosen:  # begin now what takes longest
            case.torch.start()
            case.torchvision.start()
        for part in chosen:
            for path in EXAMINERS[part]:
                say(path.partition(":")[2])
                found += guarded(path, part, case)
    finally:
        case.torch.stop()
        case.torchvision.stop()
    return found


def sound(checks: Iterable[Check]) -> bool:
    """Whether nothing is a problem."""
    return all(check.status != "problem" for check in checks)


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """The form printed by ``plait doctor --json``."""
    counts = {status: sum(c.status == status for c in checks) for status in ("ok", "warning", "problem")}
    return {"ok": sound(checks), "counts": counts, "checks": [check.as_dict() for check in checks]}
