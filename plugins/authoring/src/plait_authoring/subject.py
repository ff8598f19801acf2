"""The plugin under test, and the tiny runs that its checks share, each made when the first check asks for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plait
from plait.declare.recipe import Recipe, validated
from plait.errors import BadInput
from plait.planning import discovery
from plait.plugin import Plugin
from plait.run import execute
from plait.storage import places
from plait_authoring.tiny import TinyRun, apart, described, interval, steady, tiny_recipe
from plait_authoring.verdicts import DoesNotApply

if TYPE_CHECKING:
    from plait_authoring.watch import Watch


@dataclass
class Observed:
    """The tiny run that was watched hook by hook.

    Attributes:
        watch: what the plugin did.
        run: the finished run, None when it stopped.
        error: why it stopped.
    """

    watch: Watch
    run: plait.Run | None = None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """Why it stopped, in a line or two."""
        return described(self.error) if self.error is not None else ""


class Subject:
    """A plugin, how to run it small, and what came of it.

    Args:
        plugin: an installed plugin's name, or a class.
        folder: where the runs are written.
        options, settings, data, model, steps: see `plait_authoring.suite.plait_plugin_suite`.

    Attributes:
        settings, data, model, steps: as given.
        packaged: whether it is installed, rather than a class in no package.
    """

    def __init__(
        self,
        plugin: str | type[Plugin],
        folder: Path,
        options: Mapping[str, Any],
        settings: Mapping[str, Any],
        data: str | None,
        model: str | None,
        steps: int,
    ) -> None:
        if not isinstance(plugin, str):
            # a class that is installed as well would be a duplicate of itself
            plugin = next((item.name for item in discovery.installed() if item.plugin is plugin), plugin)
        self.packaged = isinstance(plugin, str)
        self.name: str = plugin if isinstance(plugin, str) else plugin.name
        self._classes = () if isinstance(plugin, str) else (plugin,)
        self.folder = folder
        self._options, self.settings, self.data, self.model, self.steps = options, settings, data, model, steps

    def present(self) -> AbstractContextManager[None]:
        """A class is installed inside this block; a named plugin is already."""
        there = {item.plugin for item in discovery.installed()}
        return nullcontext() if there.issuperset(self._classes) else self.beside()

    def beside(self, *others: type[Plugin]) -> AbstractContextManager[None]:
        """Other plugin classes are installed as well inside this block."""
        return discovery.pretend(*self._classes, *others, distribution="not-packaged")

    def others(self) -> list[str]:
        """The names of the usable plugins."""
        return sorted(discovery.active_registry())

    # ---- the plugin ---------------------------------------------------------------------------------------------
    @cached_property
    def item(self) -> discovery.Installed | None:
        """The registry's entry."""
        entries = [item for item in discovery.installed() if item.name == self.name]
        return entries[-1] if entries else None

    @property
    def plugin(self) -> type[Plugin]:
        """The class, usable or not.

        Raises:
            DoesNotApply: it could not be loaded.
        """
        if self.item is None or self.item.plugin is None:
            raise DoesNotApply("the plugin could not be loaded: see test_discovered")
        return self.item.plugin

    @property
    def hooks(self) -> list[str]:
        """The hooks that the plugin implements."""
        return self.item.hooks if self.item is not None else []

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's options in the tiny runs: its own ``tiny`` ones, and what was given."""
        return {**self.plugin.tiny, **self._options}

    @cached_property
    def instance(self) -> Plugin:
        """The plugin with the options of the tiny runs.

        Raises:
            DoesNotApply: a required option was not given.
        """
        try:
            return self.plugin(validated(self.plugin.Options, dict(self.options), f"plugin {self.name}"))
        except BadInput as error:
            raise DoesNotApply(f"{error} Give it with plait_plugin_suite(..., options={{...}}).") from error

    def registered(self, hook: str) -> dict[str, Any]:
        """What a registry hook of the plugin declares, by name."""
        if hook not in self.hooks:
            return {}
        try:
            return dict(getattr(discovery.default_instance(self.plugin), hook)())
        except Exception:  # the check `registered` reports it
            return {}

    # ---- recipes ------------------------------------------------------------------------------------------------
    @property
    def every(self) -> int:
        """Steps between checkpoints in the tiny runs."""
        return interval(self.steps)

    def recipe(self, *, without: bool = False, **settings: Any) -> Recipe:
        """The recipe of the tiny runs, with dotted keys (written ``train__steps``) changed.

        Args:
            without: leave the plugin out.
            settings: the keys.

        Raises:
            BadInput: an option or setting cannot be used.
        """
        data, model = self.components
        changed = {**self.settings, **{key.replace("__", "."): value for key, value in settings.items()}}
        plugins = {} if without else {self.name: self.options}
        return tiny_recipe(plugins, data=data, model=model, steps=self.steps, settings=changed)

    @cached_property
    def components(self) -> tuple[str | None, str | None]:
        """Data and model: what was given, else the core's small ones where the plugin can use them, else None."""
        tiny_data, tiny_model = (discovery.FALLBACK[hook] for hook in ("data_sources", "models"))
        for small_data, small_model in ((tiny_data, tiny_model), (None, tiny_model), (tiny_data, None)):
            data, model = self.data or small_data, self.model or small_model
            try:
                if plait.plan(plugins={self.name: self.options}, data=data, model=model).ok:
                    return data, model
            except BadInput:
                continue
        return self.data, self.model

    # ---- runs ---------------------------------------------------------------------------------------------------
    @cached_property
    def observed(self) -> Observed:
        """A run in this process, with every hook of the plugin watched."""
        return self.watched("watched")

    def findings(self, check: str) -> list[str]:
        """What the watched run showed against a check, in words."""
        return self.observed.watch.findings[check]

    def watched(self, folder: str, *others: str) -> Observed:
        """The same in a folder of its own, with other plugins active as well."""
        seen = self._watched(self.folder / folder, others)
        if seen.watch.unclear:  # some libraries draw while they are imported (rich does): now they are imported
            shutil.rmtree(self.folder / folder, ignore_errors=True)
            seen = self._watched(self.folder / folder, others)
        return seen

    def _watched(self, path: Path, others: tuple[str, ...]) -> Observed:
        from plait_authoring.watch import Watch

        seen = Observed(Watch(self.name))
        try:
            if "update_masks" in self.hooks and not self.instance.ownership():
                seen.watch.findings["ownership_kept"].append("update_masks without ownership()")
            plan = plait.plan(self.recipe(), plugins=others)
            plan.raise_if_refused()
            seen.watch.attach(plan)
            with steady():
                seen.run = execute(plan, places.at(path), artifacts=False)
        except Exception as error:
            seen.error = error
        return seen

    def run(self, folder: str, *, without: bool = False, **settings: Any) -> TinyRun:
        """A run in a process of its own; see `recipe`."""
        return apart(self.recipe(without=without, **settings), self.folder / folder)

    @cached_property
    def unbroken(self) -> TinyRun:
        """The same recipe as `observed`, from start to end in a process of its own."""
        return self.run("unbroken")

    def killed(self, folder: str, step: int) -> TinyRun:
        """The same, killed with SIGKILL after ``step`` steps."""
        return apart(self.recipe(), self.folder / folder, kill_after=step)

    def resumed(self, path: Path, checkpoint: str | None = None, *, kill_after: int | None = None) -> TinyRun:
        """Go on with a run directory in a process of its own."""
        recipe = places.existing(path).recipe()
        return apart(recipe, path, fresh=False, checkpoint=checkpoint, kill_after=kill_after)
