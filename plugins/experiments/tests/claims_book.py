"""A small claims file for the tests, and functions that its arms name."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

from plait.declare.recipe import Recipe
from plait_experiments.schema import Book, parse_book

VALUES: dict[str, Any] = {
    "schema": 1,
    "metrics": {
        "accuracy": {"name": "task/accuracy", "better": "higher", "unit": "%"},
        "other": {"name": "made/other"},
    },
    "scales": {
        "laptop": {
            "seeds": [0, 1, 2],
            "tuning_seeds": [100, 101],
            "recipe": {
                "device": "cpu",
                "data": {"name": "tiny-images", "train": 64, "size": 8, "noise": 0.02},
                "model": {"name": "tiny-cnn", "width": 4},
                "train": {"steps": 12, "batch_size": 32},
                "checkpoint": {"every_steps": 100},
            },
        }
    },
    "arms": {
        "trained": {"set": {"train.steps": 40}},
        "untrained": {"set": {"train.steps": 0}},
    },
    "claims": [
        {
            "id": "learns",
            "sentence": "Training helps.",
            "source": "nowhere",
            "expect": ["trained.accuracy - untrained.accuracy > 0"],
            "minutes": {"laptop": 0.1},
        }
    ],
}


def values(**changes: Any) -> dict[str, Any]:
    """A copy of `VALUES` with dotted keys replaced (``arms__trained__set``)."""
    changed = copy.deepcopy(VALUES)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place: Any = changed
        for part in parents:
            place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
        place[int(last) if last.isdigit() else last] = value
    return changed


def book(**changes: Any) -> Book:
    """The claims file with changes, checked."""
    return parse_book(values(**changes), "test/claims.toml", "demo")


# ---- functions for arms ------------------------------------------------------------------------------------------
def fine(recipe: Recipe, folder: Path, *, bonus: float = 0.0) -> dict[str, float]:
    """Metrics from nothing."""
    return {"task/accuracy": 50.0 + recipe.seed + bonus, "task/accuracy@validation": bonus}


def noisy(recipe: Recipe, folder: Path, *, gain: float = 1.0) -> dict[str, float]:
    """The validation score of two tuning seeds moves by 4 from seed to seed where the gain is 2."""
    score = 50.0 + gain + (4.0 * (recipe.seed - 100.5) if gain == 2.0 else 0.0)
    return {"task/accuracy": 50.0 + recipe.seed + gain, "task/accuracy@validation": score}


def crash(recipe: Recipe, folder: Path) -> dict[str, float]:
    """An arm with a bug, at one seed."""
    if recipe.seed == 1:
        raise ZeroDivisionError("a bug in the arm")
    return {"task/accuracy": 1.0}


def die(recipe: Recipe, folder: Path) -> dict[str, float]:
    """An arm whose process is killed, at one seed."""
    if recipe.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"task/accuracy": 1.0}


def undefined(recipe: Recipe, folder: Path) -> dict[str, float]:
    """An arm that diverges at one seed."""
    return {"task/accuracy": float("nan") if recipe.seed == 2 else 99.0}


def measured(run: Any) -> dict[str, float]:
    """A measure after a run."""
    return {"made/other": float(run.recipe.seed)}
