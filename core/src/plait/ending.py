"""How a run ends: with a report, and with what went wrong written down."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from plait.directory import RunDirectory
from plait.errors import Interrupted, RunFailed

if TYPE_CHECKING:
    from plait.recorder import Recorder


def write_report(directory: RunDirectory) -> None:
    """Write ``report.html``; when that fails, say so and go on."""
    from plait.report import write_report as write

    try:
        write(directory)
    except (OSError, RunFailed) as error:  # the run itself is complete; `plait report RUN` can repeat this
        print(f"the report could not be written: {error}", file=sys.stderr)


def _last_step(directory: RunDirectory) -> int:
    newest = directory.checkpoint()
    return int(newest.stem.removeprefix("step-")) if newest else 0


def noted(recorder: Recorder, error: Exception) -> Exception:
    """Write down what ended the run; returns what to tell the user."""
    if isinstance(error, Interrupted):
        recorder.event("interrupted", step=_last_step(recorder.directory))
        told = Interrupted(f"{error} Go on with: plait resume {recorder.directory.shown}")
        told.shown = error.shown
        return told
    with contextlib.suppress(RunFailed):  # a full disk must not hide what happened before
        recorder.event("failed", error=str(error) or type(error).__name__)
    return error
