"""From a recipe to an ordered, checked plan: who runs in each hook and why, what collides, what is missing.

Everything here works from declarations: no plugin is named, no torch is imported, nothing is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from plait.declare.recipe import Component, Recipe, assemble, validated
from plait.declare.rules import Composed, Implementation, Rule, judge
from plait.declare.words import Ownership
from plait.errors import BadInput, Refusal, Refused
from plait.hooks import hook_names, rule_of
from plait.planning import discovery
from plait.planning.needs import judge_needs, judge_ownership, judge_sharing
from plait.plugin import Plugin

if TYPE_CHECKING:
    from torch import nn

    from plait.data import DataInfo

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
        ownership: plugin -> what it owns.
        unchecked: needs that can only be checked when the data or model is loaded.
        refusals: empty when the set can run.
    """

    recipe: Recipe
    plugins: dict[str, Plugin]
    composed: dict[str, Composed] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    ownership: dict[str, tuple[Ownership, ...]] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def distributions(self) -> list[str]:
        """The distributions whose code takes part: plugins, and the owners of data and model."""
        names = [*self.plugins]
        for hook, name in (("data_sources", self.recipe.data.name), ("models", self.recipe.model.name)):
            entry = discovery.collect(hook)[0].get(name or "")
            names += [entry[0]] if entry else []
        return sorted({i.distribution for i in discovery.installed() if i.name in names} | {"plait-core"})

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

    def judge_loaded(self, info: DataInfo, network: nn.Module) -> None:
        """Judge the needs once more, by the loaded data and model.

        Raises:
            Refused: a needed field, task or model property is missing.
        """
        refusals, _ = judge_needs(self.recipe, self.plugins, info, network)
        if refusals:
            raise Refused(refusals)

    def __str__(self) -> str:
        """The plan for people, as ``plait plan`` prints it."""
        recipe = self.recipe
        lines = [f"{' + '.join(recipe.plugins) or 'no plugin'} on {recipe.data.name} with {recipe.model.name}"]
        acting = {hook: rule_of(hook) for hook in self.order}
        rows = [
            (hook, rule.value, " -> ".join(self.order[hook]), "; ".join(self.reasons.get(hook, [])))
            for hook, rule in acting.items()
            if rule is not Rule.REGISTRY or hook == "views"
        ]
        owned = [(name, ", ".join(map(str, things))) for name, things in self.ownership.items()]
        if rows:
            lines += ["", *_aligned([("HOOK", "RULE", "ORDER", "WHY"), *rows])]
        if owned:
            lines += ["", "OWNERSHIP", *_aligned(owned)]
        if self.unchecked:
            lines += ["", "NOT CHECKED YET", *self.unchecked]
        lines += ["", *(["ok: they can work together."] if self.ok else [])]
        for refusal in self.refusals:
            lines += [f"refused ({refusal.rule}): {refusal.message}", f"  fix: {refusal.fix}"]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait plan --json``."""
        return {
            "ok": self.ok,
            "order": self.order,
            "refusals": [r.as_dict() for r in self.refusals],
            "reasons": self.reasons,
            "ownership": {name: [str(own) for own in owned] for name, owned in self.ownership.items()},
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
    implementations = [i for plugin in plugins.values() for i in discovery.implementations(plugin)]
    words = {name: plugin.provides() for name, plugin in plugins.items()}
    for hook in hook_names():
        rule = rule_of(hook)
        of_hook = [i for i in implementations if i.hook == hook]
        ordered, reasons, cycle = arrange(hook, of_hook, words)
        plan.composed[hook] = Composed(hook, rule, ordered)
        if reasons:
            plan.reasons[hook] = reasons
        plan.refusals += cycle + judge(rule, hook, of_hook)
        if rule is Rule.WRAP:
            plan.composed[hook].implementations.sort(key=lambda i: i.inner)
    plan.ownership = {name: plugin.ownership() for name, plugin in plugins.items() if plugin.ownership()}
    plan.refusals += judge_ownership(plan.ownership, plan.composed["update_masks"].implementations)
    plan.refusals += judge_sharing(recipe, plugins, implementations)
    refusals, plan.unchecked = judge_needs(recipe, plugins)
    plan.refusals += refusals
    return plan


def instantiate(recipe: Recipe) -> dict[str, Plugin]:
    """The active plugins, the core's own ``task`` first, each with its checked options."""
    plugins: dict[str, Plugin] = {}
    for name, values in {discovery.BUILTIN: {}, **recipe.plugins}.items():
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        options = validated(plugin.Options, values, f"plugin {name}")
        try:
            active = plugins[name] = plugin(options)
            active.needs(), active.provides(), active.breaks(), active.ownership()
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
    for implementation in implementations:
        for later in matching(implementation.before) - {implementation.plugin}:
            after[later].add(implementation.plugin)
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
    if recipe.train.epochs is None and recipe.train.steps is None and "train.steps" not in overrides:
        overrides.setdefault("train.epochs", DEFAULT_EPOCHS)
    filled = recipe.merged(overrides, "a plugin's suggestion")
    # every default is written out, so that a resumed run does not depend on a newer release's defaults
    of_plugin = {plugin.name: plugin.options for plugin in plugins}
    complete: dict[str, Any] = {"plugins": {name: _written(of_plugin[name]) for name in filled.plugins}}
    sources = {"data": discovery.data_source(filled.data.name), "model": discovery.model_source(filled.model.name)}
    for kind, source in sources.items():
        if source is not None:
            component = getattr(filled, kind)
            options = discovery.component_options(kind, component.name, source, component.options)
            complete[kind] = Component.model_validate({"name": component.name, **_written(options)})
    return filled.model_copy(update=complete)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, the cells in columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _written(options: BaseModel) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude_none=True)


def _choose(hook: str, suggested: Sequence[str], plugins: Sequence[Plugin]) -> str:
    """The first suggested component that meets every need it could meet and keeps its own, else the core's fallback."""
    entries, _ = discovery.collect(hook)
    kinds = ("field:", "task:") if hook == "data_sources" else ("model:",)
    needs = {word for p in plugins for word in p.needs() if word.startswith(kinds)}
    needs -= frozenset().union(*(p.provides() for p in plugins))
    broken = frozenset().union(*(p.breaks() for p in plugins))
    candidates = [name for name in suggested if name in entries]
    for name in candidates:
        source = entries[name][1]
        if needs <= source.provides and not broken & source.needs:
            return name
    return candidates[0] if candidates else discovery.FALLBACK[hook]


def plan(recipe: Recipe | Path | str | Mapping[str, Any] | None = None, **changes: Any) -> Plan:
    """The ordered, checked plan of a recipe; its ``refusals`` say why it cannot run.

    Args:
        recipe: a recipe, a TOML file, a nested mapping, or nothing.
        changes: as in `plait.declare.recipe.assemble`: plugins, data, model, settings, ...

    Raises:
        BadInput: an unknown plugin, component, key or a bad value.
    """
    return make_plan(assemble(recipe, **changes))
