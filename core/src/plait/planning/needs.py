"""Whether a set of plugins can work together: needs, ownership, shared parameters.

One judgement serves before loading, from declarations alone and without torch, and after it, when data and model of the
user's own have shown what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from typing import TYPE_CHECKING

from plait.declare.recipe import Recipe
from plait.declare.rules import Implementation, Rule
from plait.declare.sources import DataSource, ModelSource
from plait.declare.words import CORE_PROVIDES, TASKS, Ownership
from plait.errors import Refusal
from plait.planning import discovery
from plait.plugin import Plugin

if TYPE_CHECKING:
    from torch import nn

    from plait.data import DataInfo

MOST = 3
"""Alternatives that a refusal names where none of them fits the rest of the recipe."""


def judge_ownership(owned: Mapping[str, tuple[Ownership, ...]], owners: Sequence[Implementation]) -> list[Refusal]:
    """Two owners of one thing are refused, and ``owners`` (who implements ``update_masks``) that own nothing."""
    refusals = []
    for first, second in combinations(owned, 2):
        both = [(a, b) for a in owned[first] for b in owned[second] if a.overlaps(b)]
        if both:
            what = ", ".join(sorted({str(a) if a == b else f"{a} and {b}" for a, b in both}))
            message = f"{first!r} and {second!r} both own the masks of {what}; a tensor has one owner."
            fix = f"Drop -p {first} or -p {second}, or restrict one of them to other names by its options."
            refusals.append(Refusal(Rule.PARTITION.value, (first, second), message, fix))
    for owner in owners:
        if owner.plugin not in owned:
            message = f"{owner.plugin!r} updates masks but declares no ownership."
            fix = "Its author must return what it owns from ownership()."
            refusals.append(Refusal(Rule.PARTITION.value, (owner.plugin,), message, fix))
    return refusals


def judge_sharing(
    recipe: Recipe, plugins: Mapping[str, Plugin], implementations: Sequence[Implementation]
) -> list[Refusal]:
    """Under FSDP no process has a whole parameter: what acts on parameters by name cannot work there.

    A plugin whose step works on spread parameters says so by providing ``parameters:sharded``.
    """
    if recipe.distributed.strategy != "fsdp":
        return []
    fix = "Use --set distributed.strategy=ddp, with which every process holds the network"
    refusals = []
    for name, plugin in plugins.items():
        hooks = {i.hook for i in implementations if i.plugin == name}
        masks = "update_masks" in hooks or any(own.kind == "parameters" for own in plugin.ownership())
        acts = sorted(hooks & {"optimizer_step", "fit"})
        if masks or (acts and "parameters:sharded" not in plugin.provides()):
            what = "owns masks, which are of whole parameters" if masks else f"acts on the parameters in {acts[0]}"
            message = f"{name!r} {what}; distributed.strategy = 'fsdp' spreads each parameter over the processes."
            refusals.append(Refusal("sharing", (name,), message, f"{fix}, or drop -p {name}."))
    for key, wrong in (("train.select", recipe.train.select == "best"), ("compile", recipe.compile)):
        if wrong:
            message = f"{key} is not supported with distributed.strategy = 'fsdp'."
            refusals.append(Refusal("sharing", (), message, f"{fix}, or leave {key} out."))
    return refusals


def judge_needs(
    recipe: Recipe, plugins: Mapping[str, Plugin], info: DataInfo | None = None, network: nn.Module | None = None
) -> tuple[list[Refusal], list[str]]:
    """Every need must be provided and not broken.

    Args:
        recipe: names data and model.
        plugins: the active plugins.
        info, network: the loaded data's and the loaded model; None before loading. What they show counts instead of the
            declarations of ``field:`` and ``task:``, and beside those of ``model:``: a model of the user's own that has
            ``channel_groups()`` provides ``model:channel-groups``, others it may name in an attribute ``provides``.

    Returns:
        The refusals, and the needs that can only be judged after loading, because data or model are given by import
        path.
    """
    data, model = discovery.data_source(recipe.data.name), discovery.model_source(recipe.model.name)
    provided = CORE_PROVIDES.union(*(p.provides() for p in plugins.values()))
    if info is not None:
        provided |= {f"field:{name}" for name in info.fields} | {f"task:{info.task}"}
    elif data:
        provided |= data.provides
    if model:
        provided |= model.provides
    elif network is not None:
        provided |= set(getattr(network, "provides", ()))
    if callable(getattr(network, "channel_groups", None)):
        provided |= {"model:channel-groups"}
    unknown = {"field", "task"} if data is None and info is None else set()
    unknown |= {"model"} if model is None and network is None else set()

    breakers = {word: name for name, plugin in plugins.items() for word in plugin.breaks()}
    needs = [(name, word) for name, plugin in plugins.items() for word in sorted(plugin.needs())]
    needs += [(f"model {recipe.model.name}", word) for word in sorted(model.needs if model else ())]
    refusals, unchecked = [], []
    for who, word in needs:
        if word in breakers and breakers[word] != who:
            other = breakers[word]
            message = f"{who!r} needs {word}, which {other!r} takes away."
            fix = f"Drop -p {other} or {'use another --model' if who not in plugins else f'-p {who}'}."
            refusals.append(Refusal("needs", (who, other), message, fix))
        elif word not in provided and word.partition(":")[0] in unknown:
            unchecked.append(f"{who} needs {word}: checked when the data and the model are loaded")
        elif word not in provided:
            refusals.append(_missing(who, word, recipe, data, model, breakers.keys()))
    tasks = {word.removeprefix("task:") for word in provided if word.startswith("task:")}
    if data and tasks and not tasks.intersection(TASKS) and not any(map(_has_objective, plugins)):
        refusals.append(_without_loss(recipe, min(tasks), provided))
    return refusals, unchecked


def _has_objective(plugin: str) -> bool:
    item = discovery.active_registry().get(plugin)
    return item is not None and "objective" in item.hooks


def _without_loss(recipe: Recipe, task: str, provided: frozenset[str]) -> Refusal:
    message = f"the task {task!r} of data {recipe.data.name!r} has no loss in the core, and no plugin here has one."
    known = {name: item.plugin for name, item in discovery.active_registry().items() if item.plugin}
    fits = {name for name, plugin in known.items() if discovery.default_instance(plugin).needs() <= provided}
    able = [f"-p {name}" for name in known if name in fits and _has_objective(name)]
    fix = f"Use {' or '.join(able)}." if able else "Add a plugin with the hook objective."
    return Refusal("needs", (), message, fix)


def _missing(
    who: str, word: str, recipe: Recipe, data: DataSource | None, model: ModelSource | None, broken: Set[str]
) -> Refusal:
    data_name, model_name = f"data {recipe.data.name!r}", f"model {recipe.model.name!r}"
    lacking = {"field": data_name, "task": data_name, "model": model_name}
    message = f"{who!r} needs {word}; {lacking.get(word.partition(':')[0], 'nothing in this run')} provides none."
    if word == "field:group":
        message = f"{who!r} needs a sensitive attribute ({word}); {data_name} provides none."
    needed = model.needs - CORE_PROVIDES if model else frozenset()
    given = data.provides | CORE_PROVIDES if data else None
    sources = [(n, s) for n, (_, s) in discovery.collect("data_sources")[0].items() if word in s.provides]
    networks = [(n, s) for n, (_, s) in discovery.collect("models")[0].items() if word in s.provides]
    networks.sort(key=lambda item: bool(item[1].needs & broken))
    # what suits the rest of the recipe; where nothing does, some of it
    offers: list[str] = []
    if given is not None and who == f"model {recipe.model.name}":
        known = discovery.collect("models")[0].items()
        offers += [f"--model {n}" for n, (_, s) in known if s.needs and s.needs <= given]
    offers += [f"--data {n}" for n, s in sources if needed <= s.provides]
    kept = [(n, s) for n, s in networks if not s.needs & broken]
    offers += [f"--model {n}" for n, s in kept if given is None or s.needs <= given]
    for item in discovery.active_registry().values():
        if item.plugin and word in discovery.default_instance(item.plugin).provides():
            offers.append(f"-p {item.name}")
    if offers:
        return Refusal("needs", (who,), message, f"Use {' or '.join(offers)}.")
    others = [f"--data {n}" for n, _ in sources] + [f"--model {n}" for n, _ in networks]
    if not others:
        fix = f"Nothing installed provides {word}: install a package that does."
    else:
        more = f" (or {len(others) - MOST} more)" if len(others) > MOST else ""
        rest = model_name if sources else data_name
        fix = f"Nothing that fits {rest} provides it: change that too, for {' or '.join(others[:MOST])}{more}"
        fix += f", or leave out {who!r}." if who in recipe.plugins else "."
    return Refusal("needs", (who,), message, fix)
