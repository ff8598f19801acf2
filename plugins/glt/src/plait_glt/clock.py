"""How long the rounds of a run took. Kept in the events and not in checkpoints, whose bits do not depend on a clock."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from plait_glt.phases import Phase

NAME = "glt/seconds"


class Clock:
    """Seconds of each round, the dense reference being round 0.

    Attributes:
        seconds: round -> seconds; nan where the run was interrupted in it.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.began: float | None = None

    def begin(self, phase: Phase) -> None:
        """A phase begins; a round does so with its first one."""
        if phase.kind != "retrain":
            self.began = time.perf_counter()

    def end(self, phase: Phase) -> dict[str, float]:
        """A round ended; its seconds as a scalar for the events."""
        taken = math.nan if self.began is None else time.perf_counter() - self.began
        self.began, self.seconds[phase.round] = None, taken
        return {NAME: round(taken, 3)}

    def recall(self, phases: Iterable[Phase], events: Iterable[Mapping[str, Any]]) -> None:
        """Take back the seconds of the rounds that ended before a run was resumed.

        Args:
            phases: those that are done.
            events: of the run.
        """
        ends = {phase.end: phase.round for phase in phases if phase.kind != "masks"}
        for event in events:
            values = event.get("values", {})
            if event.get("step") in ends and NAME in values:
                seconds = values[NAME]
                self.seconds[ends[event["step"]]] = math.nan if seconds is None else float(seconds)
