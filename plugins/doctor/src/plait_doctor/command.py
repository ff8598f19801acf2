"""``plait doctor``."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer

from plait_cli import output
from plait_cli.parameters import AsJson
from plait_doctor.examination import PARTS, document, examine, sound
from plait_doctor.finding import Finding

PROBLEM = 1
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
WIDTH = max(map(len, COLOURS))


def doctor(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART",
            help="Only these: environment, packages, devices, plugins, here.",
            autocompletion=lambda incomplete: [part for part in PARTS if part.startswith(incomplete)],
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
    with spinner() as say:
        findings = examine(parts or (), online=online, say=say)
    if as_json:
        output.emit(document(findings))
    else:
        typer.echo(described(findings))
    if os.environ.get("PLAIT_DEBUG") == "1":
        for finding in findings:
            if "traceback" in finding.details:
                output.note(str(finding.details["traceback"]))
    if not sound(findings):
        raise typer.Exit(PROBLEM)


@contextlib.contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """What is looked at, on stderr while it is a terminal: importing torch takes seconds."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("looking ...") as status:
        yield lambda text: status.update(f"looking at {text} ...")


def described(findings: Sequence[Finding]) -> str:
    """What was found, for people, by part."""
    width = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 160
    names = max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    part = ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            lines += ["", output.heading(part.upper())]
        word = typer.style(finding.status.ljust(WIDTH), fg=COLOURS[finding.status], bold=finding.status != "ok")
        indent = " " * (WIDTH + names + 4)
        first, *others = folded(finding.found, width, indent)
        lines += [f"{word}  {finding.name.ljust(names)}  {first}", *others]
        label = "optional" if finding.status == "ok" else "fix"
        for said, text in (("why", finding.why), (label, finding.fix)):
            if text:
                first, *others = folded(f"{said}: {text}", width, indent)
                lines += [indent + first, *others]
    counts = [sum(finding.status == status for finding in findings) for status in ("problem", "warning", "ok")]
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
