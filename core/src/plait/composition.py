"""From a recipe to an ordered, checked plan: who runs in each hook and why, what collides, what is missing.

Everything here works from declarations: no plugin is named, no torch is imported, nothing is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from plait import registry
from plait.components import DataSource, ModelSource
from plait.errors import BadInput, Refused, nearest
from plait.hooks import hook_names, rule_of
from plait.plugin import Options, Plugin
from plait.recipe import Component, Recipe, validated
from plait.rules import Composed, Implementation, Refusal, Rule, judge
from plait.vocabulary import CORE_PROVIDES, Claim

DEFAULT_EPOCHS = 10
"""Passes over the data when neither the recipe nor a plugin says."""


@dataclass
class Plan:
    """A recipe with its defaults resolved, its plugins, their order in every hook, and the refusals if there are any.

    Attributes:
        recipe: the recipe with data, model and suggested settings filled in.
        plugins: the active plugins by name, the core's own first.
        composed: hook -> its ordered implementations.
        reasons: hook -> why the order is as it is, a sentence per decision.
        claims: plugin -> what it owns.
        unchecked: needs that can only be checked when the data or model is loaded.
        refusals: empty when the set can run.
    """

    recipe: Recipe
    plugins: dict[str, Plugin]
    composed: dict[str, Composed] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    claims: dict[str, tuple[Claim, ...]] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def distributions(self) -> list[str]:
        """The distributions whose code takes part: plugins, and the owners of data and model."""
        names = [*self.plugins]
        for hook, name in (("data_sources", self.recipe.data.name), ("models", self.recipe.model.name)):
            entry = registry.collect(hook)[0].get(name or "")
            names += [entry[0]] if entry else []
        return sorted({i.distribution for i in registry.installed() if i.name in names} | {"plait-core"})

    @property
    def ok(self) -> bool:
        """Whether the set can run."""
        return not self.refusals

    @cached_property
    def order(self) -> dict[str, list[str]]:
        """Hook -> plugins in the order in which they act."""
        return {hook: [i.plugin for i in c.implementations] for hook, c in self.composed.items() if c}

    def raise_if_refused(self) -> None:
        """Raise `Refused` with every refusal, if there is one."""
        if self.refusals:
            raise Refused(self.refusals)

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait plan --json``."""
        return {
            "ok": self.ok,
            "order": self.order,
            "refusals": [r.as_dict() for r in self.refusals],
            "reasons": self.reasons,
            "claims": {name: [str(c) for c in claims] for name, claims in self.claims.items()},
            "unchecked": self.unchecked,
            "data": self.recipe.data.name,
            "model": self.recipe.model.name,
        }


def make_plan(recipe: Recipe) -> Plan:
    """Judge a recipe.

    Raises:
        BadInput: an unknown or unusable plugin, data source or model, or a bad option.
    """
    plugins = instantiate(recipe)
    recipe = with_suggestions(recipe, list(plugins.values()))
    plan = Plan(recipe, plugins)
    found = [i for plugin in plugins.values() for i in registry.implementations(plugin)]
    words = {name: plugin.provides() for name, plugin in plugins.items()}
    for hook in hook_names():
        rule = rule_of(hook)
        mine = [i for i in found if i.hook == hook]
        ordered, reasons, cycle = arrange(hook, mine, words)
        plan.composed[hook] = Composed(hook, rule, ordered)
        if reasons:
            plan.reasons[hook] = reasons
        plan.refusals += cycle + judge(rule, hook, mine)
        if rule is Rule.WRAP:
            plan.composed[hook].implementations.sort(key=lambda i: i.inner)
    plan.claims = {name: plugin.claims() for name, plugin in plugins.items() if plugin.claims()}
    plan.refusals += judge_claims(plan.claims, plan.composed["update_masks"].implementations)
    plan.refusals += judge_sharing(recipe, plugins, found)
    refusals, plan.unchecked = judge_needs(recipe, plugins)
    plan.refusals += refusals
    return plan


def instantiate(recipe: Recipe) -> dict[str, Plugin]:
    """The active plugins, the core's own ``task`` first, each with its checked options."""
    plugins: dict[str, Plugin] = {}
    builtin = registry.find_plugin(registry.BUILTIN).plugin
    for name, values in {registry.BUILTIN: {}, **recipe.plugins}.items():
        plugin = builtin if name == registry.BUILTIN else registry.find_plugin(name).plugin
        assert plugin is not None
        options = validated(plugin.Options, values, f"plugin {name}")
        try:
            plugins[name] = made = plugin(options)
            made.needs(), made.provides(), made.breaks(), made.claims()
        except Exception as error:  # a stranger's declarations may raise anything
            raise BadInput(f"plugin {name!r}: its declarations raised {type(error).__name__}: {error}") from error
    return plugins


def arrange(
    hook: str, implementations: Sequence[Implementation], words: Mapping[str, frozenset[str]]
) -> tuple[list[Implementation], list[str], list[Refusal]]:
    """Order by declared before/after, else as the recipe lists them; a circle is refused."""

    def matching(names: Iterable[str]) -> set[str]:
        wanted = set(names)
        return {i.plugin for i in implementations if i.plugin in wanted or words.get(i.plugin, frozenset()) & wanted}

    after: dict[str, set[str]] = {i.plugin: matching(i.after) - {i.plugin} for i in implementations}
    for one in implementations:
        for later in matching(one.before) - {one.plugin}:
            after[later].add(one.plugin)
    reasons = [f"{late} after {early}: declared" for late, earlier in after.items() for early in sorted(earlier)]
    ordered: list[Implementation] = []
    waiting = list(implementations)
    while waiting:
        done = {i.plugin for i in ordered}
        ready = next((i for i in waiting if after[i.plugin] <= done), None)
        if ready is None:
            names = tuple(i.plugin for i in waiting)
            message = f"{' and '.join(map(repr, names))} each declare to run before the other in {hook!r}."
            fix = f"Drop {' or '.join(f'-p {n}' for n in names)}, or ask an author to relax before/after."
            return list(implementations), reasons, [Refusal("order", names, message, fix)]
        ordered.append(ready)
        waiting.remove(ready)
    if len(ordered) > 1 and not reasons:
        reasons = ["the recipe's order"]
    return ordered, reasons, []


def judge_claims(claims: Mapping[str, tuple[Claim, ...]], owners: Sequence[Implementation]) -> list[Refusal]:
    """Two owners of one thing, and mask updaters that claim nothing, are refused."""
    refusals = []
    names = list(claims)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            both = [(a, b) for a in claims[first] for b in claims[second] if a.overlaps(b)]
            if both:
                what = ", ".join(sorted({str(a) if a == b else f"{a} and {b}" for a, b in both}))
                refusals.append(
                    Refusal(
                        Rule.PARTITION.value,
                        (first, second),
                        f"{first!r} and {second!r} both own the masks of {what}; a tensor has one owner.",
                        f"Drop -p {first} or -p {second}, or restrict one of them to other names by its options.",
                    )
                )
    for owner in owners:
        if owner.plugin not in claims:
            refusals.append(
                Refusal(
                    Rule.PARTITION.value,
                    (owner.plugin,),
                    f"{owner.plugin!r} updates masks but declares no claim.",
                    "Its author must return what it owns from claims().",
                )
            )
    return refusals


def judge_sharing(recipe: Recipe, plugins: Mapping[str, Plugin], found: Sequence[Implementation]) -> list[Refusal]:
    """Under FSDP no process has a whole parameter: what acts on parameters by name cannot work there.

    A plugin whose step works on spread parameters says so by providing ``parameters:sharded``.
    """
    if recipe.distributed.strategy != "fsdp":
        return []
    fix = "Use --set distributed.strategy=ddp, with which every process holds the network"
    refusals = []
    for name, plugin in plugins.items():
        hooks = {i.hook for i in found if i.plugin == name}
        masks = "update_masks" in hooks or any(claim.kind == "parameters" for claim in plugin.claims())
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


def judge_needs(recipe: Recipe, plugins: Mapping[str, Plugin]) -> tuple[list[Refusal], list[str]]:
    """Every need must be provided and not broken; needs that an import path may meet are listed as unchecked."""
    data, model = data_source(recipe.data.name), model_source(recipe.model.name)
    provided = CORE_PROVIDES.union(*(p.provides() for p in plugins.values()))
    provided |= (data.provides if data else frozenset()) | (model.provides if model else frozenset())
    breakers = {word: name for name, plugin in plugins.items() for word in plugin.breaks()}
    needs = [(name, word) for name, plugin in plugins.items() for word in sorted(plugin.needs())]
    if model:
        needs += [(f"model {recipe.model.name}", word) for word in sorted(model.needs)]
    refusals, unchecked = [], []
    for who, word in needs:
        if word in breakers and breakers[word] != who:
            other = breakers[word]
            message = f"{who!r} needs {word}, which {other!r} takes away."
            refusals.append(Refusal("needs", (who, other), message, f"Drop -p {other} or -p {who}."))
        elif word not in provided:
            open_kinds = {"field": data, "task": data, "model": model}
            kind = word.partition(":")[0]
            if kind in open_kinds and open_kinds[kind] is None:
                unchecked.append(f"{who} needs {word}: checked when the data and the model are loaded")
                continue
            refusals.append(Refusal("needs", (who,), *_missing(who, word, recipe)))
    return refusals, unchecked


def _missing(who: str, word: str, recipe: Recipe) -> tuple[str, str]:
    kind = word.partition(":")[0]
    lacking = {
        "field": f"data {recipe.data.name!r}",
        "task": f"data {recipe.data.name!r}",
        "model": f"model {recipe.model.name!r}",
    }
    message = f"{who!r} needs {word}; {lacking.get(kind, 'nothing in this run')} provides none."
    if word == "field:group":
        message = f"{who!r} needs a sensitive attribute ({word}); {lacking['field']} provides none."
    data, model = data_source(recipe.data.name), model_source(recipe.model.name)
    needed, given = model.needs if model else frozenset(), data.provides if data else None
    sources = [(n, s) for n, (_, s) in registry.collect("data_sources")[0].items() if word in s.provides]
    nets = [(n, s) for n, (_, s) in registry.collect("models")[0].items() if word in s.provides]
    # what suits the rest of the recipe; where nothing does, all of it
    offers = [f"--data {n}" for n, s in sources if needed <= s.provides] or [f"--data {n}" for n, _ in sources]
    fitting = [f"--model {n}" for n, s in nets if given is None or s.needs <= given]
    offers += fitting or [f"--model {n}" for n, _ in nets]
    for item in registry.active_registry().values():
        if item.plugin and word in registry.default_instance(item.plugin).provides():
            offers.append(f"-p {item.name}")
    if offers:
        return message, f"Use {' or '.join(offers)}."
    return message, f"Nothing installed provides {word}: install a package that does (plait-zoo has data and models)."


# ---- components --------------------------------------------------------------------------------------------------
def data_source(name: str | None) -> DataSource | None:
    """The declaration of a registered data source, None for an import path; BadInput for an unknown name."""
    found = _component("data_sources", "data source", name)
    assert found is None or isinstance(found, DataSource)
    return found


def model_source(name: str | None) -> ModelSource | None:
    """The declaration of a registered model, None for an import path; BadInput for an unknown name."""
    found = _component("models", "model", name)
    assert found is None or isinstance(found, ModelSource)
    return found


def _component(hook: str, what: str, name: str | None) -> Any:
    if name is None or ":" in name:
        return None
    entries, problems = registry.collect(hook)
    if name in problems:
        raise BadInput(problems[name])
    if name not in entries:
        raise BadInput(
            f"no {what} named {name!r}.{nearest(name, entries)} Known: {', '.join(sorted(entries))}. "
            "A function of your own is given as package.module:function."
        )
    return entries[name][1]


def component_options(kind: str, name: str, source: DataSource | ModelSource, values: Mapping[str, Any]) -> Options:
    """The checked options of a registered data source or model."""
    return validated(source.options, dict(values), f"{kind} {name}")


def with_suggestions(recipe: Recipe, plugins: Sequence[Plugin]) -> Recipe:
    """Fill what the recipe leaves open from the plugins' suggestions; explicit values are never replaced."""
    overrides: dict[str, Any] = {}
    name = recipe.data.name
    if name is None:
        name = overrides["data.name"] = _choose("data_sources", [n for p in plugins for n in p.suggests_data], plugins)
    # a plugin's data, model and settings belong together: whose data is taken goes first for the others
    plugins = sorted(plugins, key=lambda p: name not in p.suggests_data)
    if recipe.model.name is None:
        overrides["model.name"] = _choose("models", [n for p in plugins for n in p.suggests_model], plugins)
    for plugin in reversed(plugins):
        for dotted, value in plugin.suggests.items():
            table, _, key = dotted.partition(".")
            given = getattr(recipe, table).model_fields_set if key else recipe.model_fields_set
            rival = {"epochs": "steps", "steps": "epochs"}.get(key)
            if (key or table) not in given and rival not in given:
                overrides.pop(f"{table}.{rival}", None)
                overrides[dotted] = value
    if recipe.train.epochs is None and recipe.train.steps is None:
        overrides.setdefault("train.epochs", None)
        if overrides["train.epochs"] is None and "train.steps" not in overrides:
            overrides["train.epochs"] = DEFAULT_EPOCHS
    filled = recipe.merged({k: v for k, v in overrides.items() if v is not None}, "a plugin's suggestion")
    # every default is written out, so that a resumed run does not depend on a newer release's defaults
    complete: dict[str, Any] = {"plugins": {p.name: _written(p.options) for p in plugins if p.name in filled.plugins}}
    complete["plugins"] = {n: complete["plugins"][n] for n in filled.plugins}
    for kind, source in (("data", data_source(filled.data.name)), ("model", model_source(filled.model.name))):
        if source is not None:
            component = getattr(filled, kind)
            options = component_options(kind, component.name, source, component.options)
            complete[kind] = Component.model_validate({"name": component.name, **_written(options)})
    return filled.model_copy(update=complete)


def _written(options: BaseModel) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude_none=True)


def _choose(hook: str, suggested: Sequence[str], plugins: Sequence[Plugin]) -> str:
    """The first suggested component that meets every need it could meet, else the core's own generated one."""
    entries, _ = registry.collect(hook)
    kinds = ("field:", "task:") if hook == "data_sources" else ("model:",)
    needs = {word for p in plugins for word in p.needs() if word.startswith(kinds)}
    needs -= frozenset().union(*(p.provides() for p in plugins))
    candidates = [name for name in suggested if name in entries]
    for name in candidates:
        if needs <= entries[name][1].provides:
            return name
    return candidates[0] if candidates else registry.FALLBACK[hook]
