"""How errors end a command: a few plain lines on stderr, an exit code, and with ``--json`` one document on stdout."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, cast

from plait_cli import output

INTERRUPTED = 130
LONGEST = 160
"""Characters of a path that are shown."""


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the user, and return the exit code.

    Typer's own errors (a missing argument, an unknown option) are recognised by their ``format_message``, which is the
    same whether Typer brings its own parser or uses click.
    """
    from plait.errors import Interrupted, PlaitError, Refused, first_line

    if getattr(error, "shown", False):  # another process of the run has told the user
        return int(getattr(error, "exit_code", 1))
    extra: dict[str, Any] = {}
    kind = type(error).__name__
    word = "error"
    if isinstance(error, PlaitError):
        code, message = error.exit_code, f"{error}{beneath(error)}"
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
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        code, message = 2, f"{shortened(os.fsdecode(str(error.filename)))}: {error.strerror}{beneath(error)}"
    elif isinstance(error, OSError) and hasattr(error, "__notes__"):  # a loader process has sent its message alone
        code, message = 2, f"{first_line(error)}{beneath(error)}"
    else:
        code = 1
        message = f"{unexpected(error)}\nThe full traceback is shown with PLAIT_DEBUG=1."
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


def unexpected(error: BaseException) -> str:
    """What is said of an error that is not ours: whose code raised it, where, and why."""
    from plait.errors import first_line

    line, kind = first_line(error), type(error).__name__
    carried = kind == "RuntimeError" and hasattr(error, "__notes__")  # of a class that torch could not make again
    reason = line if carried or line == kind else f"{kind}: {line}"
    if kind in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in line:
        return f"out of memory: {reason}\nA smaller train.batch_size or a greater train.accumulate needs less."
    if isinstance(error, RuntimeError) and line.startswith("DataLoader worker (pid"):
        return f"a loader process was lost (out of memory?): {line.rstrip(' .')}. Fewer train.workers need less."
    try:
        from plait_cli import origin

        return origin.sentence(error, reason)
    except Exception:  # damaged metadata of a package must not hide the error
        return reason


def beneath(error: BaseException) -> str:
    """The place in the user's own code or in a plugin that an error has come from, on a line of its own, or nothing."""
    from plait.errors import PlaitError

    deepest: BaseException | None = error
    while isinstance(deepest, PlaitError):
        deepest = deepest.__cause__ or deepest.__context__
    if deepest is None:
        return ""
    try:
        from plait_cli import origin

        place = origin.origin(deepest)
    except Exception:  # as above
        return ""
    said = place is not None and place.owner.kind == "plugin" and isinstance(deepest, ValueError)
    if place is None or place.owner.kind not in ("own", "plugin") or said:  # a method's ValueError says all itself
        return ""
    whose = "your own file" if place.owner.kind == "own" else f"{place.owner.name},"
    return f"\nIt comes from {whose} {place.place}."


def shortened(text: str) -> str:
    """The beginning and the end of a long path."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
