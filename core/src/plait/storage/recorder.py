"""What a run writes down while it trains: events, checkpoints, progress; and how it is asked to stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from plait.errors import RunFailed
from plait.storage import checkpoints
from plait.storage.directory import RunDirectory
from plait.storage.progress import Silent

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


class Recorder:
    """The one place that writes to the run directory; where not ``writes`` (on ranks other than 0) it writes nothing.

    ``accelerator`` has the trackers (TensorBoard, MLflow, W&B); ``stop_requested`` says that a signal asked the run to
    stop at the next step boundary, ``goes_on`` that an earlier record was cut back to be gone on with.
    """

    def __init__(
        self, directory: RunDirectory, progress: Silent, accelerator: Accelerator | None = None, writes: bool = True
    ) -> None:
        self.directory, self.progress, self.accelerator, self.writes = directory, progress, accelerator, writes
        self.stop_requested = False
        self.goes_on = False
        self._shown = 0.0
        self._file: TextIO | None = None

    def event(self, kind: str, **values: Any) -> None:
        """Append one event line.

        Raises:
            RunFailed: the disk is full or not writable.
        """
        if not self.writes:
            return
        entry = _finite({"event": kind, "time": round(time.time(), 3), **values})
        line, path = json.dumps(entry, allow_nan=False, default=str), self.directory.events_file
        try:
            if self._file is None:
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - one write a step
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise RunFailed(f"{path} could not be written: {error}. The last checkpoint is kept.") from error
        if kind == "scalars" and self.accelerator is not None and self.accelerator.trackers:
            self.accelerator.log(values["values"], step=values["step"])

    def note(self, text: str) -> None:
        """Show a line above the progress bar and keep it as an event."""
        self.progress.say(text)
        self.event("note", text=text)

    def advance(self, step: int, loss: Tensor) -> None:
        """Show progress, at most ten times a second."""
        now = time.monotonic()
        if now - self._shown >= 0.1:
            self._shown = now
            self.progress.advance(step, f"loss {loss.item():.4f}")

    def checkpoint(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint between two steps, then drop the oldest ones beyond ``keep``.

        Raises:
            RunFailed: it could not be written; the ones before are intact.
        """
        if not self.writes:
            return
        path = self.directory.checkpoints / f"step-{step:09d}.safetensors"
        self.event("checkpoint", step=step, file=path.name)
        assert self._file is not None
        os.fsync(self._file.fileno())
        checkpoints.save(path, {**state, "events_bytes": os.fstat(self._file.fileno()).st_size})
        for old in self.directory.saved_checkpoints()[:-keep]:
            with contextlib.suppress(OSError):
                old.unlink()
        self.directory.publish()

    def rewind(self, size: int) -> None:
        """Cut the events back to what they were at the checkpoint, so a resumed file reads like an unbroken one."""
        self.goes_on = True
        if self.writes and self.directory.events_file.exists():
            self.close()
            with open(self.directory.events_file, "r+b") as file:
                file.truncate(min(size, os.fstat(file.fileno()).st_size))

    def close(self) -> None:
        """Close the events file; the next event opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop between steps; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_requested = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
