"""What the commands print. stdout carries the answer, stderr everything else; no text of the user is read as markup."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

_document_stream: ContextVar[TextIO | None] = ContextVar("document_stream", default=None)


# ---- the streams -------------------------------------------------------------------------------------------------
class Stream(io.FileIO):
    """A standard stream that goes on when it cannot be written (a full disk, no reader), and remembers why.

    A run must not die of a line that nobody can read.

    Args:
        number: 1 for stdout, 2 for stderr.
        absent: the caller has closed it.
    """

    def __init__(self, number: int, absent: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.absent = absent
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or drop the data."""
        try:
            if self.absent:
                raise OSError(errno.EBADF, "it is closed")
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make stdout and stderr streams that never raise: neither for want of space or reader nor for a letter.

    What the caller has closed leads nowhere. Else its number would be given to the next file that is opened, and what a
    library prints would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        before: Any = getattr(sys, name)
        buffer = getattr(before, "buffer", None)
        if before is None or type(getattr(buffer, "raw", buffer)) is io.FileIO:  # not a console of Windows
            stream = io.TextIOWrapper(
                io.BufferedWriter(Stream(number, before is None)),
                encoding=getattr(before, "encoding", "utf-8"),
                errors="backslashreplace",
                line_buffering=number == 2 or os.isatty(number),
                write_through=getattr(before, "write_through", False),
            )
            setattr(sys, name, stream)


def undelivered() -> OSError | None:
    """Why something that was printed on stdout did not arrive; None when all did."""
    stream: Any = _document_stream.get() or sys.stdout
    with contextlib.suppress(ValueError):  # closed by whoever wrote to it
        stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, Stream) else None


# ---- text --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def document_only() -> Iterator[None]:
    """Everything printed inside goes to stderr; only `emit` reaches stdout."""
    token = _document_stream.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _document_stream.reset(token)


def emit(document: Any) -> None:
    """Print the JSON document of a command: NaN and infinities as null, paths as text."""
    stream = _document_stream.get() or sys.stdout
    narrow = "utf" not in (stream.encoding or "utf").lower()
    stream.write(json.dumps(plain(document), allow_nan=False, indent=2, ensure_ascii=narrow, default=str) + "\n")
    stream.flush()


def plain(value: Any) -> Any:
    """Numbers that JSON cannot hold become None, sets sorted lists, keys text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def complain(word: str, message: str) -> None:
    """``word: message`` on stderr, further lines indented."""
    first, *others = message.splitlines() or [""]
    typer.secho(f"{word}: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo("\n  ".join([first, *others]), err=True)


def note(message: str) -> None:
    """A line on stderr."""
    typer.echo(message, err=True)


def heading(text: str) -> str:
    """Bold where the terminal can."""
    return typer.style(text, bold=True)


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of cells in columns two spaces apart; the last column runs on.

    The short commands use this: a rich table costs an import of a third of their time.
    """
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)]
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)


# ---- rich --------------------------------------------------------------------------------------------------------
def console() -> Console:
    """A rich console on stdout; wide enough not to fold tables when the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Any:
    """A rich table of plain text cells; ``right`` are the columns aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(Text(column), justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*[cell if isinstance(cell, Text) else Text(figure(cell)) for cell in row])
    return grid


def show(*things: Any) -> None:
    """Print texts and tables on stdout."""
    screen = console()
    for thing in things:
        screen.print(thing, markup=False)


def figure(value: Any) -> str:
    """A number with four digits that matter, counts in full, anything else as text; ``-`` for an undefined value."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def metric_rows(details: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a run's metrics, the exported model's value in a column of its own when there is one."""
    exported = {k.removesuffix("@export"): d for k, d in details.items() if k.endswith("@export")}
    names = list(dict.fromkeys(k.removesuffix("@export") for k in details))
    columns = ["metric", "value", *(["exported"] if exported else []), "unit", "better"]
    notes = any(d.get("note") for d in details.values())
    rows: list[list[Any]] = []
    for name in names:
        own = details.get(name) or {}
        after = exported.get(name) or {}
        known = own or after
        row: list[Any] = [name, figure(own.get("value"))]
        if exported:
            row.append(figure(after.get("value")) if after else "")
        direction = known.get("better", "neither")
        row += [known.get("unit", ""), "" if direction == "neither" else direction]
        if notes:
            row.append(known.get("note", "") or after.get("note", ""))
        rows.append(row)
    return [*columns, *(["note"] if notes else [])], rows


def existing(path: Path) -> Path | None:
    """The path if something is there."""
    return path if path.exists() else None
