"""The runs of the present folder: damaged ones, and locks that nobody seems to use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice

from plait.storage.directory import RunDirectory
from plait_cli import catalog
from plait_doctor.finding import Case, Finding

SILENT = 24 * 3600.0
"""Seconds without an event after which a lock is suspected."""
MOST = 500
"""Runs that are looked at; a folder with more is not a problem."""


def runs(case: Case) -> Iterator[Finding]:
    """Every run in ``runs/``, and the present folder when it is a run itself."""
    own = RunDirectory(case.folder)
    itself = [own] if own.recipe_file.is_file() else []
    directories = list(islice(chain(itself, catalog.find(case.folder / "runs")), MOST))
    if not directories:
        yield Finding("runs", "ok", f"no runs in {case.folder.absolute() / 'runs'}")
        return
    runs_seen = [catalog.look(directory) for directory in directories]
    for directory, run in zip(directories, runs_seen, strict=True):
        if run.status == "damaged":
            why = "plait runs, compare and report cannot use it."
            fix = f"move it away or delete it: rm -r {run.path}"
            yield Finding("runs", "warning", f"{run.path} cannot be read: {run.reason}", why, fix)
        elif run.status == "running" and (silent := silence(directory)) > SILENT:
            text = f"{run.path} is locked, and nothing was written to it for {silent / 3600:.0f} hours"
            why = "Its process hangs, or a network disk kept the lock of a dead one; plait resume waits for it in vain."
            fix = f"fuser -v {run.path / '.lock'} names the process; without one: rm {run.path / '.lock'}"
            yield Finding("runs", "warning", text, why, fix)
    states = [run.status for run in runs_seen]
    counts = {s: states.count(s) for s in ("finished", "running", "interrupted", "failed", "damaged")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    waiting = [run.path for run in runs_seen if run.status == "interrupted"]
    fix = f"go on with one: plait resume {waiting[0]}" if waiting else ""
    yield Finding("runs", "ok", text, fix=fix, details=counts)


def silence(directory: RunDirectory) -> float:
    """Seconds since the last event of a run."""
    try:
        return time.time() - directory.events_file.stat().st_mtime
    except OSError:
        return 0.0
