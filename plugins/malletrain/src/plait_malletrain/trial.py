"""The live trial as an arm of a claim: real runs under `serve` and a script, against the same runs left alone."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from plait.declare.recipe import Recipe
from plait.storage.directory import RunDirectory

__all__ = ["live"]

SLOTS, STEPS = 4, 480
SCRIPT = "0 join 2\n0 join 3\n7 leave 0\n10 join 0\n13 kill 1\n16 join 1\n"
"""On a quiet machine the jobs take half a minute: every event has to come before that."""


def live(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Two jobs on 4 slots that come, go and are killed.

    Returns:
        ``live/finished`` jobs; ``live/same_bits``, 1 if both exports equal those of undisturbed runs;
        ``live/missing_steps`` of those wanted; ``live/release``, the longest wait for a node that was asked back;
        ``live/rescale``, the median of the planned resizes; ``live/resizes`` and ``live/redone`` steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "seed": recipe.seed,
        "data": {"name": "tiny-images", "train": 256},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": STEPS, "batch_size": 32, "log_every": 2, "evaluate_every": 1000},
        "checkpoint": {"every_steps": 20},
    }
    woven = {**plain, "plugins": {"chase": {"timing_repeats": 0}, "fairsam": {"severities": [3]}}}
    for name, values in (("plain", plain), ("woven", woven)):
        (folder / f"{name}.toml").write_text(Recipe.parse(values).to_toml(), encoding="utf-8")
    (folder / "script.txt").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def plait(*arguments: str) -> str:
        line = [sys.executable, "-P", "-m", "plait_cli", *arguments]
        return subprocess.run(line, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    names = ["plain", "woven"]
    given = ["--slots", str(SLOTS), "--script", "script.txt", "--out", "served", "--json"]
    quick = ["--measure-seconds", "1", "--warmup-steps", "3"]
    state = json.loads(plait("malletrain", "serve", *(f"{name}.toml" for name in names), *given, *quick))
    same, missing = 1, 0
    for name in names:
        plait("run", f"served/recipes/{name}.toml", "--nproc", str(SLOTS), "--out", f"alone-{name}", "--json")
        first, second = (folder / place / "export/model.safetensors" for place in (f"served/{name}", f"alone-{name}"))
        same &= int(first.read_bytes() == second.read_bytes())
        events = [e for e in RunDirectory(folder / "served" / name).events() if e.get("event") == "scalars"]
        logged = {e["step"] for e in events if "train/loss" in e["values"]}
        missing += len(set(range(2, STEPS + 1, 2)) - logged)
    rescales = [seconds for job in state["jobs"] for seconds in job["rescales"]]
    return {
        "live/finished": float(sum(job["state"] == "done" for job in state["jobs"])),
        "live/same_bits": float(same),
        "live/missing_steps": float(missing),
        "live/release": max(state["release_s"], default=float("nan")),
        "live/rescale": statistics.median(rescales) if rescales else float("nan"),
        "live/resizes": float(len(rescales)),
        "live/redone": float(sum(job["redone"] for job in state["jobs"])),
    }
