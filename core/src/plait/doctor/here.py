"""The runs of the present folder: damaged ones, and locks that nobody seems to use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice

from plait import listing
from plait.directory import RunDirectory
from plait.doctor.check import Case, Check

SILENT = 24 * 3600.0
"""Seconds without an event after which a lock is suspected."""
MOST = 500
"""Runs that are looked at; a folder with more is not a problem."""


def runs(case: Case) -> Iterator[Check]:
    """Every run in ``runs/``, and the present folder when it is a run itself."""
    own = RunDirectory(case.folder)
    itself = [own] if own.recipe_file.is_file() else []
    found = list(islice(chain(itself, listing.find(case.folder / "runs")), MOST))
    if not found:
        yield Check("runs", "ok", f"no runs in {case.folder.absolute() / 'runs'}")
        return
    seen = [listing.look(directory) for directory in found]
    for directory, one in zip(found, seen, strict=True):
        if one.status == "damaged":
            why = "plait runs, compare and report cannot use it."
            fix = f"move it away or delete it: rm -r {one.path}"
            yield Check("runs", "warning", f"{one.path} cannot be read: {one.reason}", why, fix)
        elif one.status == "running" and (silent := silence(directory)) > SILENT:
            text = f"{one.path} is locked, and nothing was written to it for {silent / 3600:.0f} hours"
            why = "Its process hangs, or a network disk kept the lock of a dead one; plait resume waits for it in vain."
            fix = f"fuser -v {one.path / '.lock'} names the process; without one: rm {one.path / '.lock'}"
            yield Check("runs", "warning", text, why, fix)
    counts = {
        s: sum(one.status == s for one in seen) for s in ("finished", "running", "interrupted", "failed", "damaged")
    }
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    waiting = [one.path for one in seen if one.status == "interrupted"]
    fix = f"go on with one: plait resume {waiting[0]}" if waiting else ""
    yield Check("runs", "ok", text, fix=fix, details=counts)


def silence(directory: RunDirectory) -> float:
    """Seconds since the last event of a run."""
    try:
        return time.time() - directory.events_file.stat().st_mtime
    except OSError:
        return 0.0
