"""The plugin under test, and the tiny runs that its rules share: each is made once, when the first rule asks for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plait
from plait import registry
from plait.errors import BadInput, PlaitError
from plait.plugin import Plugin
from plait.recipe import Recipe, assemble
from plait.testing.conformance import DoesNotApply, Rule, Stage
from plait.testing.strangers import installed

if TYPE_CHECKING:
    from plait.testing.watching import Watch

TINY = {"data.train": 72}
"""Options of ``tiny-images`` in the tiny runs: three batches an epoch."""
COMMON = {"train.batch_size": 24, "checkpoint.keep": 1000, "device": "cpu"}


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


@dataclass(frozen=True)
class Ended:
    """How a run in a process of its own ended: exit code (negative: a signal), its error, and whether a step began."""

    path: Path
    code: int
    error: str
    trained: bool


def described(error: BaseException) -> str:
    """An error for people: plait's own by message, others with their type and the last line of the plugin's code."""
    if isinstance(error, PlaitError):
        return str(error)
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class Subject:
    """A plugin, how to run it small, and what came of it.

    Args:
        plugin: an installed plugin's name, or a class.
        folder: where the runs are written.
        options, settings, data, model, steps: see `plait.testing.suite.plait_plugin_suite`.

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
            plugin = next((i.name for i in registry.installed() if i.plugin is plugin), plugin)
        self.packaged = isinstance(plugin, str)
        self.given = plugin
        self.name: str = plugin if isinstance(plugin, str) else plugin.name
        self.folder = folder
        self._options, self.settings, self.data, self.model, self.steps = options, settings, data, model, steps

    def present(self) -> AbstractContextManager[None]:
        """A class is installed inside this block; a named plugin is already."""
        return nullcontext() if isinstance(self.given, str) else known(self._entries)

    @cached_property
    def _entries(self) -> tuple[registry.Installed, ...]:
        if isinstance(self.given, str):
            return registry.installed()
        with installed(self.given, distribution="not-packaged"):
            return registry.installed()

    def others(self) -> list[str]:
        """The names of the usable plugins."""
        return sorted(registry.active_registry())

    # ---- what must hold before a rule is asked ------------------------------------------------------------------
    @cached_property
    def item(self) -> registry.Installed | None:
        """The registry's entry."""
        found = [i for i in registry.installed() if i.name == self.name]
        return found[-1] if found else None

    @property
    def plugin(self) -> type[Plugin]:
        """The class, usable or not.

        Raises:
            DoesNotApply: it could not be loaded.
        """
        if self.item is None or self.item.plugin is None:
            raise DoesNotApply("the plugin could not be loaded: see test_discovered")
        return self.item.plugin

    def require(self, rule: Rule) -> None:
        """Refuse to check what would only repeat another rule's failure.

        Raises:
            DoesNotApply: naming the rule that reports it.
        """
        if rule.stage is Stage.NAMED:
            return
        if self.plugin and rule.stage is Stage.LOADED:
            return
        assert self.item is not None
        if self.item.status == "incompatible":
            raise DoesNotApply("the plugin is of another contract version: see test_contract_version")
        if self.item.status != "ok":
            raise DoesNotApply("the plugin is not usable: see test_discovered and test_hook_signatures")
        if rule.stage is Stage.RUN and self.observed.run is None and not self.observed.watch.findings[rule.name]:
            raise DoesNotApply("the tiny run did not finish: see test_trains")

    # ---- the plugin ---------------------------------------------------------------------------------------------
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
        from plait.recipe import validated

        try:
            return self.plugin(validated(self.plugin.Options, dict(self.options), f"plugin {self.name}"))
        except BadInput as error:
            raise DoesNotApply(f"{error} Give it with plait_plugin_suite(..., options={{...}}).") from error

    def registered(self, hook: str) -> dict[str, Any]:
        """What a registry hook of the plugin declares, by name."""
        if hook not in self.hooks:
            return {}
        try:
            return dict(getattr(registry.default_instance(self.plugin), hook)())
        except Exception:  # the rule `registered` reports it
            return {}

    def beside(self, *others: type[Plugin]) -> AbstractContextManager[None]:
        """Other plugin classes are installed as well inside this block."""
        new = [registry.examine(registry.Installed(p.name, "not-packaged", "0"), p) for p in others]
        return known((*self._entries, *new))

    @property
    def every(self) -> int:
        """Steps between checkpoints in the tiny runs."""
        return max(1, self.steps // 4)

    # ---- recipes ------------------------------------------------------------------------------------------------
    def recipe(self, *, without: bool = False, **settings: Any) -> Recipe:
        """The recipe of the tiny runs, with dotted keys (written ``train__steps``) changed.

        Args:
            without: leave the plugin out.
            settings: the keys.

        Raises:
            BadInput: an option or setting cannot be used.
        """
        data, model = self.components
        chosen = {**COMMON, "checkpoint.every_steps": self.every, "train.steps": self.steps}
        chosen |= {**(TINY if data == "tiny-images" else {}), **self.settings}
        chosen |= {key.replace("__", "."): value for key, value in settings.items()}
        return assemble(plugins={} if without else {self.name: self.options}, data=data, model=model, settings=chosen)

    @cached_property
    def components(self) -> tuple[str | None, str | None]:
        """Data and model: what was given, else the core's small ones where the plugin can use them, else None."""
        for tiny_data, tiny_model in (("tiny-images", "tiny-cnn"), (None, "tiny-cnn"), ("tiny-images", None)):
            data, model = self.data or tiny_data, self.model or tiny_model
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

    def watched(self, folder: str, *others: str) -> Observed:
        """The same in a folder of its own, with other plugins active as well; such a run writes no report."""
        from plait import running
        from plait.directory import RunDirectory
        from plait.testing.watching import Watch

        watch = Watch(self.name)
        seen = Observed(watch)
        try:
            if "update_masks" in self.hooks and not self.instance.claims():
                watch.findings["claims_kept"].append("update_masks without claims()")
            plan = plait.plan(self.recipe(), plugins=others)
            plan.raise_if_refused()
            watch.attach(plan)
            with alone(), watch.excusing_imports(), no_report() if others else nullcontext():
                seen.run = running._execute(plan, RunDirectory(self.folder / folder), False, fresh=True)
        except Exception as error:
            seen.error = error
        return seen

    def run(self, folder: str, *, without: bool = False, **settings: Any) -> Ended:
        """A run in a process of its own; see `recipe`."""
        recipe, path = self.recipe(without=without, **settings), self.folder / folder
        return self.apart(path, lambda: plait.run(recipe, out=path))

    @cached_property
    def unbroken(self) -> Ended:
        """The same recipe as `observed`, from start to end in a process of its own."""
        return self.run("unbroken")

    def killed(self, folder: str, step: int) -> Ended:
        """The same, killed with SIGKILL after ``step`` steps."""
        recipe, path = self.recipe(), self.folder / folder
        return self.apart(path, lambda: plait.run(recipe, out=path), kill_after_step=step)

    def resumed(self, path: Path, checkpoint: str | None = None, *, kill_after_step: int | None = None) -> Ended:
        """Go on with a run directory in a process of its own."""
        return self.apart(path, lambda: plait.resume(path, checkpoint=checkpoint), kill_after_step=kill_after_step)

    def apart(self, path: Path, action: Callable[[], object], *, kill_after_step: int | None = None) -> Ended:
        """Run ``action`` in a forked process; where forking is not safe, in this one, with the kill as an exception."""
        from plait.testing.killing import forked

        note, began = path.with_name(f"{path.name}.error"), path.with_name(f"{path.name}.began")
        note.unlink(missing_ok=True)
        began.unlink(missing_ok=True)

        def inside() -> None:
            try:
                with alone(), stepping(began, kill_after_step):
                    action()
            except Exception as error:
                note.write_text(described(error), encoding="utf-8")
                raise

        if can_fork():
            code = forked(inside)
        else:
            try:
                inside()
                code = 0
            except Stopped:
                code = -signal.SIGKILL
            except PlaitError as error:
                code = error.exit_code
            except Exception:
                code = 1
        return Ended(path, code, note.read_text(encoding="utf-8") if note.exists() else "", began.exists())


@contextmanager
def known(entries: tuple[registry.Installed, ...]) -> Iterator[None]:
    """These plugins are the installed ones inside this block."""
    before = registry.installed
    registry.installed = lambda: entries  # type: ignore[assignment]
    try:
        yield
    finally:
        registry.installed = before


class Stopped(BaseException):
    """In the place of SIGKILL where a process cannot be forked."""


def can_fork() -> bool:
    """Forking after threads of a GPU or of macOS' own libraries were started is not safe."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


@contextmanager
def alone() -> Iterator[None]:
    """One thread, and the global generators as they were afterwards."""
    import torch

    from plait.optimizers import global_random_state, set_global_random_state

    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    before = global_random_state(cpu)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_global_random_state(before, cpu)


@contextmanager
def stepping(began: Path, kill_after: int | None) -> Iterator[None]:
    """Leave a mark when the first step begins, kill the process after a step, and write no report."""
    from plait.trainer import Trainer

    whole = Trainer.train_step

    def step(self: Trainer, batch: Any) -> Any:
        began.touch()
        result = whole(self, batch)
        if self.step == kill_after:
            if can_fork():
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped
        return result

    Trainer.train_step = step  # type: ignore[method-assign]
    try:
        with no_report():
            yield
    finally:
        Trainer.train_step = whole  # type: ignore[method-assign]


@contextmanager
def no_report() -> Iterator[None]:
    """Write no report: one of the runs has one, and that is enough."""
    from plait import ending

    report = ending.write_report
    ending.write_report = lambda directory: None
    try:
        yield
    finally:
        ending.write_report = report
