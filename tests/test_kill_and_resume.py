"""SIGKILL at 20 random instants, some inside a checkpoint write, for four sets of plugins: equal to the bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import plait
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done

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


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    found = {}
    for name in PLUGINS:
        path = tmp_path_factory.mktemp(name) / "run"
        start = time.monotonic()
        assert forked(lambda name=name, path=path: plait.run(recipe(name), out=path)) == 0  # type: ignore[misc]
        found[name] = (path, time.monotonic() - start)
    return found


@pytest.mark.parametrize("trial", range(20))
@pytest.mark.parametrize("plugins", list(PLUGINS))
def test_killed_run_ends_with_the_same_bits(
    tmp_path: Path, unbroken: dict[str, tuple[Path, float]], plugins: str, trial: int
) -> None:
    reference, seconds = unbroken[plugins]
    moments = random.Random(f"{plugins} {trial}")
    path = tmp_path / "run"
    how: dict[str, Any] = {"kill_after": moments.uniform(0.1, 1.0) * seconds}
    if trial % 3 == 0:
        how = {"kill_at": (moments.choice(["os.fsync", "os.replace"]), moments.randint(1, 14))}
    assert forked(lambda: plait.run(recipe(plugins), out=path), **how) in (-signal.SIGKILL, 0)
    resume_until_done(path, recipe(plugins))
    assert first_difference(final_state(path), final_state(reference)) is None
    assert plait.load_run(path).metrics == plait.load_run(reference).metrics
