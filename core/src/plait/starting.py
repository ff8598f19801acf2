"""How a run begins: alike in every process, in a directory that is free or holds this very run. No torch here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from plait import composition
from plait.directory import RunDirectory
from plait.errors import BadInput
from plait.scale.processes import here
from plait.scale.ranks import differences

if TYPE_CHECKING:
    from accelerate import Accelerator

    from plait.recorder import Recorder


def started_with(plan: composition.Plan) -> dict[str, Any]:
    """What every process of a run must have been started with."""
    from importlib.metadata import version

    from plait.claims.cells import sources_of
    from plait.environment import versions

    return {
        "versions": {**versions(["torch", "accelerate", *plan.distributions]), "torch": version("torch")},
        "sources": sources_of(dict.fromkeys(plan.distributions, "")),
        "recipe": json.loads(plan.recipe.model_dump_json()),
    }


def begin(plan: composition.Plan, directory: RunDirectory, fresh: bool, go_on: bool | None) -> str:
    """On rank 0: whether the run begins (``fresh``), goes on, or is ``finished``; makes the directory."""
    if not fresh:
        return "resumed"
    directory.fetch()
    if not (directory.launched_by(here()) if go_on is None else go_on) or not directory.recipe_file.exists():
        directory.create()
        directory.launched(here())
        return "fresh"
    there = directory.recipe().model_dump(mode="json", exclude={"distributed", "device"})
    other = list(differences(there, plan.recipe.model_dump(mode="json", exclude={"distributed", "device"})))
    if other:
        place, before, now = other[0]
        raise BadInput(
            f"{directory.shown} holds a run of another recipe ({place} is {before!r} there and {now!r} here): "
            f"choose another --out, or `plait resume {directory.shown}`."
        )
    directory.launched(here())
    return "finished" if directory.result() is not None else "resumed"


def write_start(plan: composition.Plan, directory: RunDirectory, recorder: Recorder, accelerator: Accelerator) -> None:
    from plait import environment, files

    described = environment.describe(str(accelerator.device), plan.distributions, accelerator.num_processes)
    files.write_text(directory.environment_file, json.dumps(described, indent=2))
    files.write_text(directory.recipe_file, plan.recipe.to_toml())
    recorder.event("plan", **plan.as_dict())
