"""What commands print, word for word: plans, and the messages with which plans, runs and commands end."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from making.shared import only_ours

REPOSITORY = Path(__file__).parents[2]
ENDS = re.compile(r"^(error|refused|interrupted): ", re.M)


def all_words(commands: str) -> str:
    """What the last of several commands prints, or the error it ends with; commands are separated by `` ; ``."""
    return said(commands, whole=True)


def last_words(commands: str) -> str:
    """Only the message that the last of several commands ends with."""
    return said(commands, whole=False)


def said(commands: str, *, whole: bool) -> str:
    """A console block with the last command and what it prints; the earlier ones prepare the folder it works in.

    Args:
        commands: as typed after ``plait``, separated by `` ; ``.
        whole: stdout too, not only the message at the end.

    Raises:
        SystemExit: a message was expected and there was none.
    """
    lines = commands.split(" ; ")
    out = err = ""
    with only_ours(stand_ins=_stand_ins(commands)), _empty_folder():
        for line in lines:
            out, err = _run(shlex.split(line))
    end = ENDS.search(err)
    if not whole and end is None:
        raise SystemExit(f"make_tables: `plait {lines[-1]}` was to end with a message, and did not:\n{err}")
    printed = (out if whole else "") + (err[end.start() :] if end else "")
    return f"```console\n$ plait {lines[-1]}\n{_plain(printed).rstrip()}\n```"


def _run(arguments: list[str]) -> tuple[str, str]:
    """stdout and stderr of the command line, in this process."""
    from plait_cli.app import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        app(arguments, prog_name="plait")
    return out.getvalue(), err.getvalue()


def _stand_ins(commands: str) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", action="append", default=[])
    return list(parser.parse_known_args(shlex.split(commands))[0].p)


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _plain(text: str) -> str:
    """Without colours, and without the folder in which this repository lies."""
    return re.sub(r"\x1b\[[^m]*m", "", text).replace(f"{REPOSITORY}/", "")
