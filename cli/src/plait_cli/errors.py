"""How errors end a command: a few plain lines on stderr, an exit code, and with ``--json`` one document on stdout."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, cast

from plait_cli import output

INTERRUPTED = 130


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the user, and return the exit code.

    Typer's own errors (a missing argument, an unknown option) are recognised by their ``format_message``, which is the
    same whether Typer brings its own parser or uses click.
    """
    from plait.errors import Interrupted, PlaitError, Refused, first_line

    if isinstance(error, PlaitError) and error.shown:  # another process of the run has told the user
        return error.exit_code
    extra: dict[str, Any] = {}
    kind = type(error).__name__
    word = "error"
    if isinstance(error, PlaitError):
        code, message = error.exit_code, str(error)
        if isinstance(error, Refused):
            extra = {"ok": False, "refusals": [r.as_dict() for r in error.refusals]}
            word = "refused"
        elif isinstance(error, Interrupted):
            word = "interrupted"
    elif isinstance(error, KeyboardInterrupt) or kind == "Abort":
        code, kind, word, message = INTERRUPTED, "Interrupted", "interrupted", "stopped."
    elif kind == "NoArgsIsHelpError":
        cast(Any, error).show()  # the help text
        return 2
    elif callable(getattr(error, "format_message", None)):
        code, kind, message = int(getattr(error, "exit_code", 2)), "BadInput", usage_message(error)
    else:
        code = 1
        message = (
            f"{kind}: {first_line(error)}{place(error)}\n"
            "This is a bug or a broken plugin; the full traceback is shown with PLAIT_DEBUG=1."
        )
    if as_json:
        output.emit({**extra, "error": {"type": kind, "message": message, "exit_code": code}})
    output.complain(word, message)
    if os.environ.get("PLAIT_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    return code


def usage_message(error: Any) -> str:
    """Typer's message and where to read more."""
    message: str = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f"\nTry `{context.command_path} --help`." if context is not None else ""
    return f"{message}{hint}"


def place(error: BaseException) -> str:
    """`` (in package/module.py, line 3)``: the innermost frame of the error, which names a broken plugin's file."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    file = "/".join(frames[-1].filename.replace("\\", "/").split("/")[-2:])
    return f" (in {file}, line {frames[-1].lineno})"
