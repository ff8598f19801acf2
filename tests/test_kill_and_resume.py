"""SIGKILL in every part of a run, for four sets of plugins: the resumed run is equal to the bit.

A run is cut into equal parts of its time and of its calls that write to the disk, and killed at a random instant of
each: between steps, inside a checkpoint write, while it evaluates, exports and makes its report.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state, first_difference, forked, preload, resume_until_done
from plait_chase.plugin import ChasePlugin
from plait_fairsam.plugin import FairsamPlugin

INSTANTS = 8
"""Kills by the clock, one in each eighth of the run."""
CALLS = [("os.replace", 1, 6), ("os.fsync", 10, 30), ("os.fsync", 31, 48), ("os.replace", 15, 20)]
"""Kills at a call: of which function, and from which to which call of a run."""
CHASE = {"density": 0.3, "exploration_interval": 3, "channel_interval": 6, "timing_repeats": 0, "score": "umm"}
PLUGINS: dict[str, dict[str, Any]] = {
    "dense": {},
    "chase": {"chase": {**CHASE, "shrink_during": True, "growth": "random"}},
    "fairsam": {"fairsam": {"weights": "adaptive", "asam": True, "rho": 0.5, "severities": [3]}},
    "both": {"chase": CHASE, "fairsam": {"severities": [3]}},
}


def recipe(plugins: str) -> dict[str, Any]:
    return {
        "data": {"name": "tiny-images"},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": 40, "batch_size": 24, "evaluate_every": 2, "select": "best"},
        "checkpoint": {"every_steps": 3},
        "device": "cpu",
        "plugins": PLUGINS[plugins],
    }


@pytest.fixture(scope="module", params=list(PLUGINS))
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, float]]:
    """A set of plugins, its run that nothing happens to, and the seconds of that."""
    name: str = request.param
    path = tmp_path_factory.mktemp(name) / "run"
    methods_only = pretend(ChasePlugin, FairsamPlugin, distribution="plait", alone=True)
    with nullcontext() if name == "dense" else methods_only:  # a report takes half of a run's time: one set makes it
        preload()  # is no part of the run
        start = time.monotonic()
        assert forked(lambda: plait.run(recipe(name), out=path)) == 0
        yield name, path, time.monotonic() - start


@pytest.mark.parametrize("trial", range(INSTANTS + len(CALLS)))
def test_killed_run_ends_with_the_same_bits(tmp_path: Path, unbroken: tuple[str, Path, float], trial: int) -> None:
    plugins, reference, seconds = unbroken
    moments = random.Random(f"{plugins} {trial}")
    path = tmp_path / "run"
    how: dict[str, Any] = {"kill_after": (trial + moments.random()) / INSTANTS * seconds}
    if trial >= INSTANTS:
        function, first, last = CALLS[trial - INSTANTS]
        how = {"kill_at": (function, moments.randint(first, last))}
    code = forked(lambda: plait.run(recipe(plugins), out=path), **how)
    assert code == -signal.SIGKILL or (code == 0 and trial < INSTANTS)  # the last instants may come after its end
    resume_until_done(path, recipe(plugins))
    assert first_difference(final_state(path), final_state(reference)) is None
    assert plait.load_run(path).metrics == plait.load_run(reference).metrics
