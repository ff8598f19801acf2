"""``plait doctor``."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from plait_cli import output, startup
from plait_cli.parameters import AsJson

if TYPE_CHECKING:
    from plait.doctor import Check

PROBLEM = 1
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
WIDTH = max(map(len, COLOURS))


def doctor(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART",
            help="Only these: environment, packages, devices, plugins, here.",
            autocompletion=lambda incomplete: [p for p in _parts() if p.startswith(incomplete)],
        ),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Also ask PyPI for newer releases.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the environment, the devices and the plugins: what is broken or out of date, and what to type.

    Exit code 1 when something is a problem; warnings are none. Nothing is changed.

    Examples:

      plait doctor
      plait doctor plugins packages
      plait doctor --online --json
    """
    startup.long()
    from plait import doctor as library

    with spinner() as say:
        checks = library.examine(parts or (), online=online, say=say)
    if as_json:
        output.emit(library.document(checks))
    else:
        typer.echo(described(checks))
    if os.environ.get("PLAIT_DEBUG") == "1":
        for check in checks:
            if "traceback" in check.details:
                output.note(str(check.details["traceback"]))
    if not library.sound(checks):
        raise typer.Exit(PROBLEM)


def _parts() -> Sequence[str]:
    from plait.doctor import PARTS

    return PARTS


@contextlib.contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """What is looked at, on stderr while it is a terminal: importing torch takes seconds."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("looking ...") as status:
        yield lambda text: status.update(f"looking at {text} ...")


def described(checks: Sequence[Check]) -> str:
    """The checks for people, by part."""
    width = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 160
    names = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    part = ""
    for check in checks:
        if check.part != part:
            part = check.part
            lines += ["", output.heading(part.upper())]
        word = typer.style(check.status.ljust(WIDTH), fg=COLOURS[check.status], bold=check.status != "ok")
        indent = " " * (WIDTH + names + 4)
        first, *others = folded(check.found, width, indent)
        lines += [f"{word}  {check.name.ljust(names)}  {first}", *others]
        label = "optional" if check.status == "ok" else "fix"
        for said, text in (("why", check.why), (label, check.fix)):
            if text:
                first, *others = folded(f"{said}: {text}", width, indent)
                lines += [indent + first, *others]
    counts = [sum(c.status == status for c in checks) for status in ("problem", "warning", "ok")]
    words = [f"{counts[0]} problem{'s' * (counts[0] != 1)}", f"{counts[1]} warning{'s' * (counts[1] != 1)}"]
    ended = "problem" if counts[0] else "warning" if counts[1] else "ok"
    lines += ["", typer.style(f"{', '.join(words)}, {counts[2]} ok.", fg=COLOURS[ended], bold=True)]
    return "\n".join(lines[1:])


def folded(text: str, width: int, indent: str) -> list[str]:
    """A text in lines of a width; the first without its indent. Commands and paths are never cut."""
    room = max(30, width - len(indent))
    return [
        (indent if number else "") + line
        for number, line in enumerate(textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""])
    ]
