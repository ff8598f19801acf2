"""Try a set of plugins: does the plan refuse it, and if not, does a tiny run end, and resume bit for bit?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from plait.declare.recipe import Recipe
from plait.declare.rules import Implementation, Rule
from plait.declare.sources import DataSource, ModelSource
from plait.errors import PlaitError
from plait.hooks import rule_of
from plait.planning import discovery
from plait.planning.plan import Plan, make_plan
from plait.run import execute
from plait.storage import places
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference
from plait_authoring.tiny import STEPS, around, described, tiny_recipe

OFFER = re.compile(r"--(data|model) ([^\s,;]+?)(?=[.,;]?(?:\s|$))")

Status = Literal["runs", "refused", "crashed"]


@dataclass
class Outcome:
    """What came of a set of plugins.

    Attributes:
        plugins: in the recipe's order.
        status: ``runs``; ``refused`` by the plan; or ``crashed``, which is a fault of a plugin or of the core.
        data, model: what it was tried on.
        followed: the fix of a first refusal that was followed to get there, e.g. ``--data toned-digits``.
        steps: how many were done.
        masks: the steps after which a mask had changed, by ``update_masks`` or by a strategy between its phases.
        hooks: plugin -> its hooks that were called.
        unreached: what the run is made of and did not come to: the plugin's `tiny` options should see to that.
        metrics: names of the figures at the end.
        resumed: the checkpoint from which the run was done once more, with the same bits at the end.
        rule, sentence, fix: of a refusal.
        error: of a crash, with the place.
    """

    plugins: tuple[str, ...]
    status: Status
    data: str = ""
    model: str = ""
    followed: str = ""
    steps: int = 0
    masks: list[int] = field(default_factory=list)
    hooks: dict[str, list[str]] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    resumed: str = ""
    rule: str = ""
    sentence: str = ""
    fix: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What is known of it; the same on every machine, unless it crashed."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v or k == "plugins"}


def recipe(names: Sequence[str], *, data: str | None = None, model: str | None = None, steps: int = STEPS) -> Recipe:
    """The recipe of a tiny run, each plugin with its own `Plugin.tiny` options.

    Raises:
        BadInput: unknown names, or options that cannot be used.
    """
    options: dict[str, Mapping[str, Any]] = {}
    for name in names:
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        options[name] = dict(plugin.tiny)
    fallback = discovery.FALLBACK
    return tiny_recipe(options, data=data or fallback["data_sources"], model=model or fallback["models"], steps=steps)


def trial(
    names: Sequence[str],
    *,
    data: str | None = None,
    model: str | None = None,
    steps: int = STEPS,
    resume: bool = True,
    folder: Path | str | None = None,
) -> Outcome:
    """Plan a set, follow the plan's fixes to other data and another model, train, evaluate, export, resume.

    Args:
        names: usable plugins, in the recipe's order; none is the plain run.
        data, model: what to try it on, and nothing else; by default the core's generated data and small model first.
        steps: the budget.
        resume: also do the run once more from its first checkpoint, and compare every bit of the end.
        folder: where the run is written; by default nowhere that stays.
    """
    outcome = Outcome(tuple(names), "refused")
    try:
        plan = make_plan(recipe(names, data=data, model=model, steps=steps))
        chosen = {kind: name for kind, name in (("data", data), ("model", model)) if name is not None}
        followed: dict[str, str] = {}
        while offer := {kind: name for kind, name in offers(plan).items() if kind not in chosen}:
            chosen |= offer  # data of another task, and then a model for it
            followed |= offer
            plan = make_plan(recipe(names, steps=steps, **chosen))
        outcome.followed = " ".join(f"--{kind} {name}" for kind, name in followed.items())
    except PlaitError as error:
        return _not_planned(outcome, error)
    outcome.data, outcome.model = str(plan.recipe.data.name), str(plan.recipe.model.name)
    if not plan.ok:
        first = plan.refusals[0]
        outcome.rule, outcome.sentence, outcome.fix = first.rule, first.message, first.fix
        return outcome
    with tempfile.TemporaryDirectory(prefix="plait-trial-") as temporary:
        return _run(plan, outcome, Path(folder or temporary) / "run", resume)


def _not_planned(outcome: Outcome, error: PlaitError) -> Outcome:
    if error.__cause__ is not None and not isinstance(error.__cause__, PlaitError):
        return replace(outcome, status="crashed", error=str(error))  # a declaration raised
    fix = "Its author: give values for a run of a few steps as `tiny` on the plugin."
    return replace(outcome, rule="options", sentence=str(error), fix=fix)


def offers(plan: Plan) -> dict[str, str]:
    """The data source and the model that the refusals' fixes name first and that can be used as they are."""
    offered: dict[str, str] = {}
    for refusal in plan.refusals:
        for kind, name in OFFER.findall(refusal.fix):
            source = discovery.data_source(name) if kind == "data" else discovery.model_source(name)
            if kind not in offered and at_hand(source):
                offered[kind] = name
    return offered


def at_hand(source: DataSource | ModelSource | None) -> bool:
    """Whether a data source or model needs neither an option nor a file on the user's disk."""
    if source is None or (isinstance(source, DataSource) and source.places):
        return False
    return not any(option.is_required() for option in source.options.model_fields.values())


# ---- the run -----------------------------------------------------------------------------------------------------
def _run(plan: Plan, outcome: Outcome, path: Path, resume: bool) -> Outcome:
    called: dict[str, set[str]] = {name: set() for name in plan.plugins}
    _observe(plan, called, outcome.masks)
    outcome.status = "crashed"
    try:
        run = execute(plan, places.at(path), artifacts=False)
        outcome.steps = _steps(run.directory)
        outcome.metrics = list(run.metrics)
        saved = run.directory.saved_checkpoints()
        if resume and len(saved) > 1:
            before = final_state(path, generators=False)
            again = make_plan(run.directory.recipe())
            execute(again, run.directory, fresh=False, checkpoint=saved[0].stem, artifacts=False)
            difference = first_difference(before, final_state(path, generators=False))
            if difference is not None:
                raise AssertionError(f"resumed from {saved[0].stem}, it ends with another {difference.lstrip('/')}")
            outcome.resumed = saved[0].stem
    except (Exception, SystemExit) as error:
        outcome.error = described(error).partition("\n")[0]
        return outcome
    outcome.status = "runs"
    own = {name: hooks for name, hooks in called.items() if name != discovery.BUILTIN}
    outcome.hooks = {name: sorted(hooks) for name, hooks in own.items() if hooks}
    outcome.unreached = [
        f"{i.plugin}: {hook}"
        for hook, composed in plan.composed.items()
        for i in composed.implementations
        if _acts(hook) and hook not in called[i.plugin]
    ]
    owners = plan.composed["update_masks"].implementations
    if owners and not outcome.masks:
        outcome.unreached += [f"{i.plugin}: a change of a mask" for i in owners]
    return outcome


def _acts(hook: str) -> bool:
    """Whether a hook acts in a run; a registry is asked before it, but for views."""
    return rule_of(hook) is not Rule.REGISTRY or hook == "views"


def _observe(plan: Plan, called: dict[str, set[str]], changes: list[int]) -> None:
    """Note every call of a hook, and the steps after which masks had changed."""
    around(plan, lambda known: _observed(known, called[known.plugin], changes))


def _observed(implementation: Implementation, called: set[str], changes: list[int]) -> Implementation:
    last: list[int] = []

    def noted(*values: Any) -> Any:
        called.add(implementation.hook)
        return implementation.function(*values)

    def watched(trainer: Any, *values: Any) -> Any:
        before = trainer.masks.checksum()
        answer = noted(*values)
        after = trainer.masks.checksum()
        moments = ((trainer.step - 1, bool(last) and last[0] != before), (trainer.step, after != before))
        changes.extend(step for step, changed in moments if changed and step not in changes)
        last[:] = [after]
        return answer

    if implementation.hook == "update_masks":
        return replace(implementation, function=watched, arguments=("trainer", *implementation.arguments))
    return replace(implementation, function=noted)


def _steps(directory: RunDirectory) -> int:
    return max((int(e["step"]) for e in directory.events() if isinstance(e.get("step"), int)), default=0)


def usable() -> list[str]:
    """The installed plugins that take part in a run, sorted; what only registers data, models or commands does not."""
    return sorted(
        name
        for name, item in discovery.active_registry().items()
        if name != discovery.BUILTIN and (not item.hooks or any(_acts(hook) for hook in item.hooks))
    )


Say = Callable[[str], None]
