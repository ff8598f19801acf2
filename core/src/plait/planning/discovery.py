"""Which plugins are installed, and in what state: found by entry points, checked, named when broken, never fatal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import getattr_static
from typing import Any, cast

import pluggy
from pydantic import BaseModel

from plait._version import __version__
from plait.declare.options import Later
from plait.declare.recipe import Recipe, validated
from plait.declare.rules import Implementation, Rule
from plait.declare.sources import DataSource, ModelSource
from plait.errors import BadInput, nearest
from plait.hooks import CONTRACT_VERSION, HookSpecs, hook_names, rule_of
from plait.plugin import Plugin

GROUP = "plait"
BUILTIN = "task"
"""The core's own plugin, active in every run: the task's metrics, and generated data and a model to try things on."""
FALLBACK = {"data_sources": "tiny-images", "models": "tiny-cnn"}
RESERVED = frozenset(Recipe.model_fields)
"""A plugin's options stand beside these in a recipe's ``--set``."""
RELEASES = {1: "plait-core>=0.1,<0.2"}
"""Hook contract -> the releases of plait-core that speak it."""
CHANGES = "docs/hook-contract.md#changes"
"""Where the author of a plugin reads what a version of the contract changed."""
NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")


@dataclass
class Installed:
    """One entry point of the group ``plait``, loaded or not."""

    name: str
    distribution: str
    version: str
    status: str = "ok"
    """``ok``, ``broken`` (does not import or breaks the contract), ``incompatible`` (another contract version) or
    ``duplicate``."""
    reason: str = ""
    plugin: type[Plugin] | None = None
    hooks: list[str] = field(default_factory=list)
    contract: int | None = None
    """The hook contract that it declares, None when that cannot be seen."""

    def as_dict(self) -> dict[str, Any]:
        """The form printed by ``plait plugins --json``."""
        plain = {name: value for name, value in vars(self).items() if name != "plugin"}
        summary, paper = (self.plugin.summary, self.plugin.paper) if self.plugin else ("", "")
        return {**plain, "summary": summary, "paper": paper}


class _Manager(pluggy.PluginManager):
    """pluggy's, but quick, because every command looks at every plugin: it examines only what `hookimpl` has marked."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        marked = any(hasattr(vars(kind).get(name), "plait_impl") for kind in type(plugin).__mro__)
        return super().parse_hookimpl_opts(plugin, name) if marked else None


@cache
def _manager() -> _Manager:
    manager = _Manager("plait")
    manager.add_hookspecs(HookSpecs)
    return manager


def implementations(plugin: Plugin) -> list[Implementation]:
    """The plugin's hook functions, checked against the specs by pluggy.

    Raises:
        pluggy.PluginValidationError: for a wrong signature or an unknown hook.
    """
    manager = _manager()
    implementations_of = []
    try:
        manager.register(plugin, plugin.name)
        for caller in manager.get_hookcallers(plugin) or []:
            if not caller.has_spec():
                known = nearest(caller.name, hook_names())
                raise pluggy.PluginValidationError(plugin, f"unknown hook {caller.name!r}.{known}")
            for impl in caller.get_hookimpls():
                order = getattr(impl.function, "plait_order", {})
                if order.get("inner") and rule_of(caller.name) is not Rule.WRAP:
                    problem = f"hook {caller.name!r} has no innermost step: inner=True belongs to optimizer_step"
                    raise pluggy.PluginValidationError(plugin, problem)
                arguments = tuple(impl.argnames)
                implementations_of.append(Implementation(plugin.name, caller.name, impl.function, arguments, **order))
    finally:
        # a refused signature leaves the plugin half registered; a fresh manager forgets it
        _manager.cache_clear() if plugin.name not in dict(manager.list_name_plugin()) else manager.unregister(plugin)
    return implementations_of


def default_instance(plugin: type[Plugin]) -> Plugin:
    """An instance for registry hooks, whose answers do not depend on options: these are made when one is read."""
    bare = plugin.__init__ is Plugin.__init__
    return plugin.__new__(plugin) if bare else plugin(plugin.Options.model_construct())


def discover() -> list[Installed]:
    """Every installed plugin, sorted by name; broken ones are named with their reason, and nothing is raised."""
    entries = [EntryPoint(BUILTIN, "plait.planning.task:TaskPlugin", GROUP)]
    entries += sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value))
    items = [_load(entry) for entry in entries]
    mark_duplicates(items)
    return items


_installed: tuple[Installed, ...] | None = None


def installed() -> tuple[Installed, ...]:
    """`discover`, once per process."""
    global _installed
    if _installed is None:
        _installed = tuple(discover())
    return _installed


@contextmanager
def pretend(*plugins: type[Plugin], distribution: str = "stranger", alone: bool = False) -> Iterator[None]:
    """Plugin classes that no package brings count as installed inside the ``with`` block, judged as any other.

    For tests and for trying a plugin before it is packaged.

    Args:
        plugins: subclasses of `plait.Plugin`.
        distribution: the distribution shown for them, with ``-<plugin>`` behind it.
        alone: hide the plugins that really are installed (the core's own stays).
    """
    global _installed
    before = installed()
    really = [i for i in discover() if not alone or i.name == BUILTIN]
    given = [examine(Installed(p.name, f"{distribution}-{p.name}", "1.0"), p) for p in plugins]
    mark_duplicates([*really, *given])
    _installed = (*really, *given)
    try:
        yield
    finally:
        _installed = before


def active_registry() -> dict[str, Installed]:
    """The usable plugins by name."""
    return {item.name: item for item in installed() if item.status == "ok"}


def find_plugin(name: str) -> Installed:
    """The usable plugin of that name.

    Raises:
        BadInput: unknown (with the nearest name and how to install) or installed but unusable (with its reason).
    """
    usable = active_registry()
    if name in usable:
        return usable[name]
    for item in installed():
        if item.name == name:
            raise BadInput(f"plugin {name!r} ({item.distribution} {item.version}) is {item.status}: {item.reason}")
    raise BadInput(
        f"no plugin named {name!r} is installed.{nearest(name, usable)} "
        f"Installed: {', '.join(sorted(usable)) or 'none'}. If it exists: pip install plait-{name}."
    )


def _load(entry: EntryPoint) -> Installed:
    metadata = entry.dist.metadata if entry.dist else {"Name": "plait-core", "Version": __version__}
    item = Installed(entry.name, metadata["Name"], metadata["Version"])
    try:
        plugin = entry.load()
    except (Exception, SystemExit) as error:
        item.status, item.reason = "broken", f"importing {entry.value} failed: {type(error).__name__}: {error}"
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "plait":
            item.reason += f". It may be written for a newer plait-core than {__version__}: pip install -U plait-core"
        return item
    return examine(item, plugin)


def examine(item: Installed, plugin: Any) -> Installed:
    """Judge what an entry point gave, and fill in the plugin and its hooks when it is usable."""
    item.status, item.reason = _judge(item, plugin)
    if item.status == "broken":
        return item
    item.plugin = plugin
    if item.status == "ok":
        try:
            # not by its constructor, which may need its options: they are imported where they are used
            item.hooks = sorted(i.hook for i in implementations(plugin.__new__(plugin)))
        except Exception as error:  # a stranger's constructor or signature may raise anything
            item.status, item.reason = "broken", " ".join(str(error).split())
    return item


def _judge(item: Installed, plugin: Any) -> tuple[str, str]:
    name = item.name
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        return "broken", f"its entry point names {plugin!r}, which is not a subclass of plait.Plugin"
    declared: Any = plugin.contract
    item.contract = declared if type(declared) is int else None
    judged = judge_contract(declared, name, item.distribution)
    if judged[0] != "ok":
        return judged  # first: what else looks wrong may be right in its own contract
    if plugin.name != name:
        return "broken", f"its entry point is called {name!r} but the plugin calls itself {plugin.name!r}"
    if not NAME.match(name) or name in RESERVED:
        return "broken", f"the name {name!r} is reserved or not of lower-case letters, digits, - and _"
    if hasattr(plugin, "claims"):
        return "broken", "its claims() is now called ownership(), and returns plait.Ownership"
    options = getattr_static(plugin, "Options")
    if not isinstance(options, Later) and not (isinstance(options, type) and issubclass(options, BaseModel)):
        return "broken", "its Options is not a pydantic model (subclass plait.Options)"
    return "ok", ""


def mark_duplicates(items: list[Installed]) -> None:
    """Make every plugin of a name that several packages register unusable, naming the packages."""
    for item in items:
        same = [other for other in items if other.name == item.name]
        # the core's own plugin, which is the first, stays usable whatever a stranger calls itself
        if len(same) > 1 and not (item.name == BUILTIN and item is same[0]):
            owners = " and ".join(sorted(f"{i.distribution} {i.version}" for i in same))
            item.status, item.plugin = "duplicate", None
            item.reason = f"the name {item.name!r} is registered by {owners}: uninstall one of them"


def collect(hook: str) -> tuple[dict[str, tuple[str, Any]], dict[str, str]]:
    """The registry of a hook over all usable plugins.

    Returns:
        name -> (plugin, declaration), and the names that several plugins register -> an error naming both packages.
        A plugin whose hook raises contributes nothing and is reported under its own name.
    """
    entries: dict[str, tuple[str, Any]] = {}
    problems: dict[str, str] = {}
    for item in active_registry().values():
        if hook not in item.hooks or item.plugin is None:
            continue
        try:
            answer: Mapping[str, Any] = getattr(default_instance(item.plugin), hook)()
            pairs = list(answer.items())
        except Exception as error:
            problems[item.name] = f"plugin {item.name!r}: {hook} raised {type(error).__name__}: {error}"
            continue
        for name, declaration in pairs:
            if name in entries:
                both = f"{active_registry()[entries[name][0]].distribution} and by {item.distribution}"
                problems[name] = f"{hook} {name!r} is registered by {both}: uninstall one of them."
            else:
                entries[name] = (item.name, declaration)
    for name in problems:
        entries.pop(name, None)
    return entries, problems


def judge_contract(declared: Any, name: str, distribution: str) -> tuple[str, str]:
    """(status, reason) of a plugin by the ``contract`` that its author wrote; ``("ok", "")`` for the present one."""
    if type(declared) is not int:
        return "broken", (
            f"its contract is {declared!r}, not a number; write `contract = {CONTRACT_VERSION}` if it was written for "
            f"the contract of this plait-core {__version__}"
        )
    if declared == CONTRACT_VERSION:
        return "ok", ""
    if not declared:
        return "incompatible", f"it declares no hook contract; write `contract = {CONTRACT_VERSION}` in the plugin"
    speaks = f"this plait-core {__version__} speaks contract {CONTRACT_VERSION}"
    first = f"it was written for hook contract {declared}, and {speaks}: {remedy(declared, distribution)}, for"
    if declared > CONTRACT_VERSION:
        return "incompatible", (
            f"{first} a release that speaks contract {declared}. "
            f"Without one, an older release of {distribution} may be written for contract {CONTRACT_VERSION}."
        )
    older, apart = RELEASES.get(declared), " Without one, in an environment of its own: pip install"
    install = f"{apart} {distribution} {older!r}." if older else ""
    return "incompatible", (
        f"{first} a newer release of plugin {name!r}.{install} Its author finds what changed in {CHANGES}."
    )


def remedy(declared: int | None, distribution: str) -> str:
    """What to type about a plugin of another contract."""
    newer = declared is not None and declared > CONTRACT_VERSION
    return "pip install -U plait-core" if newer else f"pip install -U {distribution}"


def data_source(name: str | None) -> DataSource | None:
    """The declaration of a registered data source, None for an import path; BadInput for an unknown name."""
    return cast("DataSource | None", _component("data_sources", "data source", name))


def model_source(name: str | None) -> ModelSource | None:
    """The declaration of a registered model, None for an import path; BadInput for an unknown name."""
    return cast("ModelSource | None", _component("models", "model", name))


def _component(hook: str, what: str, name: str | None) -> Any:
    if name is None or ":" in name:
        return None
    entries, problems = collect(hook)
    if name in problems:
        raise BadInput(problems[name])
    if name not in entries:
        raise BadInput(
            f"no {what} named {name!r}.{nearest(name, entries)} Known: {', '.join(sorted(entries))}. "
            "A function of your own is given as package.module:function."
        )
    return entries[name][1]


def component_options(kind: str, name: str, source: DataSource | ModelSource, values: Mapping[str, Any]) -> BaseModel:
    """The checked options of a registered data source or model."""
    return validated(source.options, dict(values), f"{kind} {name}")
