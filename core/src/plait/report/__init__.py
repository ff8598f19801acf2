"""The HTML report of a run: one self-contained file, built from the run directory alone. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.directory import RunDirectory

__all__ = ["write_report"]


def write_report(directory: RunDirectory) -> Path:
    """Write ``report.html`` into a run directory, whole or not at all; the same directory gives the same bytes.

    The run may be finished, failed, interrupted or still going.

    Returns:
        The path of the report.

    Raises:
        RunFailed: the disk is full or not writable; an older report still stands.
    """
    from plait.files import write_text
    from plait.report.page import render
    from plait.report.reading import read

    write_text(directory.report, render(read(directory)))
    return directory.report
