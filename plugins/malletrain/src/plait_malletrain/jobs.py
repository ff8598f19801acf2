"""Recipes as jobs: which may be one, and what has become of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from plait.declare.recipe import Recipe
from plait.errors import BadInput, Refusal, Refused
from plait.planning.plan import make_plan

from .channel import Ended
from .curves import CurveTable
from .options import ServeOptions

__all__ = ["Generation", "Job", "admitted", "spread"]


@dataclass
class Generation:
    """What is known of a job's present processes, and not written down.

    Attributes:
        ranks: of each node it was started on.
        waiting_for: ranks that have not ended; ``ends`` of the others.
        reports: (time, step), the newest last.
        told: when something was last heard of it, or asked.
        before: time of the last step, seconds of a step, and nodes, of the generation that this one resizes.
        lost_node, killed: how it ends; ``measured``: whether its stay is in the table.
    """

    ranks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    waiting_for: set[int] = field(default_factory=set)
    ends: list[Ended] = field(default_factory=list)
    reports: list[tuple[float, int]] = field(default_factory=list)
    told: float = 0.0
    before: tuple[float, float, int] | None = None
    lost_node: bool = False
    killed: bool = False
    measured: bool = False


@dataclass
class Job:
    """A recipe and what has become of it.

    Attributes:
        name: of the recipe's file, and of the run's folder.
        table: what is known of its scaling.
        state: waiting, starting, running, stopping, done or failed.
        slots: the nodes that it has, the newest last.
        generation: how often it was started; ``now`` the present one.
        step, total: of training; ``batch`` samples a step.
        restarts: after nodes were lost or processes failed, since it last made progress.
        redone: steps that were done again after nodes were lost.
        rescales: seconds from the last step before to the first after each planned resize, less a step.
        sizes: (seconds since the manager began, nodes) at each start.
        why: of a failure.
    """

    name: str
    recipe: str
    directory: str
    batch: int
    table: CurveTable
    state: str = "waiting"
    slots: list[str] = field(default_factory=list)
    generation: int = 0
    step: int = 0
    total: int = 0
    restarts: int = 0
    redone: int = 0
    rescales: list[float] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    profiled: bool = False
    why: str = ""
    now: Generation = field(default_factory=Generation)

    @property
    def live(self) -> bool:
        """Whether it is neither done nor failed."""
        return self.state not in ("done", "failed")

    def measure(self, options: ServeOptions) -> bool:
        """Record the rate of the present stay, if it was long enough: total samples over total time."""
        reports = self.now.reports
        settled = [r for r in reports if r[1] >= reports[0][1] + options.warmup_steps]
        if len(settled) < 2:
            return False
        (start, first), (end, last) = settled[0], settled[-1]
        if end - start < options.measure_seconds or last - first < options.measure_steps:
            return False
        self.table.record(len(self.slots), (last - first) * self.batch, end - start)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What is written down, as JSON values."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("table", "now")}
        return {**kept, "table": self.table.state_dict()}

    @classmethod
    def of(cls, state: Mapping[str, Any], most: int, exponent: float) -> Job:
        """A job as it was written down; its processes are gone, or will be.

        Args:
            state: of `state_dict`.
            most, exponent: as of `plait_malletrain.curves.CurveTable`.
        """
        table = CurveTable(most, exponent=exponent)
        table.load_state_dict(state["table"])
        job = cls(**{**state, "table": table, "slots": []})
        job.state = "waiting" if job.live else job.state
        return job


def admitted(paths: Sequence[Path]) -> dict[str, Recipe]:
    """Recipes that can be jobs, by the names of their files, with what a run of them fills in.

    Raises:
        Refused: plugins that cannot work together, or that train a network for each participant.
        BadInput: a file that cannot be used, naming it; or two of one name.
    """
    recipes: dict[str, Recipe] = {}
    for path in paths:
        recipe = Recipe.load(path)
        if path.stem in recipes:
            raise BadInput(f"{path}: another recipe is named {path.stem}, too; names of files are names of jobs.")
        try:
            plan = make_plan(recipe)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
        plan.raise_if_refused()
        for plugin in plan.plugins.values():
            if "parameters:single" in plugin.breaks():
                what = f"{path}: {plugin.name} trains a network of its own for each participant"
                why = "Participants are places with private data; they cannot be spread over another number of nodes."
                fix = f"Run it without malletrain: plait run, or take {plugin.name} out of the recipe."
                raise Refused([Refusal("malletrain:participants", (plugin.name,), f"{what}. {why}", fix)])
        recipes[path.stem] = plan.recipe
    return recipes


def spread(slots: Sequence[str], world: int) -> dict[str, tuple[int, ...]]:
    """Which of ``world`` ranks run on which slot, evenly."""
    cuts = [round(i * world / len(slots)) for i in range(len(slots) + 1)] if slots else []
    return {name: tuple(range(cuts[i], cuts[i + 1])) for i, name in enumerate(slots)}
