"""Watch what a plugin does in a run, hook by hook, without changing a bit of the run.

The plan's implementations are replaced by wrappers. A stack says whose code runs: the plugin's, or the core's on the
plugin's behalf (a forward pass, a whole step). Only what happens in the plugin's own code is put down to it.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.dropout import _DropoutNd

from plait.data import Batch, Data
from plait.data.batches import Parts, in_parts
from plait.declare.rules import Implementation
from plait.hooks import HookSpecs
from plait.training.evaluation import View
from plait_authoring import problems, tiny
from plait_authoring.proxies import WatchedBatch, WatchedFields, WatchedPredictions
from plait_authoring.snapshot import Snapshot, changed

if TYPE_CHECKING:
    from plait.planning.plan import Plan
    from plait.training.trainer import Trainer

LOSS = ("objective", "example_weights", "loss_terms")
PURE = ("evaluate", "views", "export", "state_dict", "selectable", *LOSS)
"""Hooks that look at the model and must leave it as it was."""
CORE = ("gradients", "apply_gradients", "call", "objective", "train_step", "train_until", "validate")
"""Methods of the trainer in which the core works: forward passes may draw noise there, and other plugins act."""
BUILDS_MODULES = ("setup", "transform_model")
"""Where new modules are made, whose first weights PyTorch draws from its global generator."""
LOOKS = 3
"""How many calls of each loss hook are compared weight by weight."""


class Watch:
    """What one plugin did in one run.

    Attributes:
        name: the plugin.
        findings: check -> what fails it, in words.
        unclear: whether something was drawn while a library was imported, which may draw itself; a second run shows it.
        called: every hook of the plugin that was called.
        fields: the fields of the training batches.
        trainer: the run's trainer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.findings: dict[str, list[str]] = defaultdict(list)
        self.unclear = False
        self.called: dict[str, int] = defaultdict(int)
        self.fields: set[str] = set()
        self.trainer: Trainer | None = None
        self.allowed: set[str] = set()
        self.guarded: set[str] = set()
        self.sliced = False
        self._forward = False
        self._actors: list[str | None] = []
        self._where: dict[str, str] = {}
        self._mark: dict[str, bytes] = {}
        self._modules = 0

    def attach(self, plan: Plan) -> None:
        """Watch this plan's run."""
        plugin: Any = plan.plugins[self.name]
        self.ownership = plugin.ownership()
        words = plugin.needs() | plugin.provides()
        self.allowed = {"input", "index"} | {w.partition(":")[2] for w in words if w.startswith("field:")}
        for name in ("setup", "state_dict", "load_state_dict", "selectable"):
            self._where[name] = place(getattr(type(plugin), name))
            setattr(plugin, name, partial(self._lived, name, getattr(plugin, name)))
        tiny.around(plan, lambda known: self._watched(known) if known.plugin == self.name else known)

    def report(self, check: str, hook: str, lines: Iterator[str] | list[str]) -> None:
        """Keep what fails a check, with the place of the function."""
        for text in lines:
            line = f"{text}  [{self._where.get(hook, hook)}]"
            if line not in self.findings[check]:
                self.findings[check].append(line)

    # ---- whose code runs ----------------------------------------------------------------------------------------
    @contextmanager
    def acting(self, who: str | None) -> Iterator[None]:
        """The plugin's hook ``who`` runs, or (None) the core on its behalf."""
        self._pause()
        self._actors.append(who)
        self._begin()
        try:
            yield
        finally:
            self._pause()
            self._actors.pop()
            self._begin()

    @property
    def actor(self) -> str | None:
        """The plugin's hook whose own code runs, or None."""
        return self._actors[-1] if self._actors else None

    def _begin(self) -> None:
        if self.actor:
            self._mark, self._modules = generators(), len(sys.modules)

    def _pause(self) -> None:
        hook = self.actor
        if not hook:
            return
        drawn = [name for name, state in generators().items() if state != self._mark[name]]
        if hook in BUILDS_MODULES or self._noisy():
            drawn = [name for name in drawn if name != "torch"]
        if drawn and len(sys.modules) != self._modules:
            self.unclear = True
            return
        self.report("own_generators", hook, [f"{hook} draws from the global generator of {name}." for name in drawn])

    def _noisy(self) -> bool:
        """Whether the model draws noise itself, so that a plugin's own forward pass looks like a draw."""
        model = getattr(self.trainer, "model", None)
        return model is not None and any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())

    # ---- what is read -------------------------------------------------------------------------------------------
    def read(self, name: Any) -> None:
        """A field of a batch is read."""
        hook = self.actor
        if hook and isinstance(name, str) and name not in self.allowed and name not in self.guarded:
            self.report("needs_complete", hook, [f"{hook} reads the field {name!r}, which needs() does not name."])

    def asked(self, name: Any) -> None:
        """The plugin asked whether there is such a field: it can do without."""
        if self.actor and isinstance(name, str):
            self.guarded.add(name)

    # ---- wrappers -----------------------------------------------------------------------------------------------
    def _watched(self, implementation: Implementation) -> Implementation:
        spec = [a for a in inspect.signature(getattr(HookSpecs, implementation.hook)).parameters if a != "self"]
        hook, wanted = implementation.hook, implementation.arguments
        self._where[hook] = place(implementation.function)

        def call(*values: Any) -> Any:
            given = dict(zip(spec, values, strict=True))
            self._meet(given.get("trainer"))
            given = self._offered(hook, given)
            self.called[hook] += 1
            before = self._before(hook)
            with self.acting(hook):
                result = implementation.function(*[given[name] for name in wanted])
            with self.acting(None):
                self._after(hook, before, given, result)
                return self._taken(hook, given, result)

        return replace(implementation, function=call, arguments=tuple(spec))

    def _lived(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        if name == "setup":
            self._meet(arguments[0])
            owned = dict(arguments[0].masks.owner)
        before = self._before(name)
        with self.acting(name):
            result = method(*arguments)
        self._after(name, before, {}, result)
        if name == "setup":
            self._check_owners(owned)
        return result

    def _meet(self, trainer: Any) -> None:
        if trainer is None:
            return
        if self.trainer is None:
            self.trainer = trainer
            for name in CORE:
                setattr(trainer, name, partial(self._in_core, name, getattr(trainer, name)))
            trainer.slice_tensors = partial(self._slicing, trainer.slice_tensors)
        data = getattr(trainer, "data", None)
        if data is not None:
            self._watch_columns(data)
        if not self._forward and hasattr(trainer, "forward"):
            self._forward = True
            given = {name: getattr(trainer.forward, name) for name in ("prepare", "forward", "readout")}
            for_core = {name: partial(self._in_core, name, part) for name, part in given.items() if part is not None}
            trainer.forward = replace(trainer.forward, **for_core)

    def _in_core(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if name == "train_step":
            keys = getattr(in_parts(arguments[0])[0], "keys", None)
            self.fields |= set(keys()) if callable(keys) else set()
            if type(arguments[0]) is Batch or isinstance(arguments[0], Parts):
                arguments = (WatchedBatch.of(arguments[0], self), *arguments[1:])
        with self.acting(None):
            return method(*arguments, **options)

    def _slicing(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self.sliced = True
        return method(*arguments)

    def _watch_columns(self, data: Data) -> None:
        for split in (data.train, data.validation, data.test):
            fields = getattr(split, "fields", None)
            if type(fields) in (dict, WatchedFields):
                with suppress(AttributeError, TypeError):  # a split that does not change is watched by its batches only
                    split.fields = WatchedFields.of(fields, self)  # type: ignore[attr-defined, arg-type]

    def _offered(self, hook: str, given: dict[str, Any]) -> dict[str, Any]:
        if hook == "transform_data":
            self._watch_columns(given["data"])
        if hook == "optimizer_step":
            proceed = given["proceed"]

            def on() -> Any:
                with self.acting(None):
                    return proceed()

            given["proceed"] = on
        if hook == "evaluate":
            given["predictions"] = WatchedPredictions(given["predictions"], self)
        return given

    def _taken(self, hook: str, given: Mapping[str, Any], result: Any) -> Any:
        if hook == "views" and isinstance(result, Mapping):
            return {name: self._watched_view(view) for name, view in result.items()}
        if hook == "transform_data" and isinstance(result, Data):
            for name in ("augment", "prepare"):
                function = getattr(result, name)
                if function is not None and function is not getattr(given["data"], name):
                    watched: Any = {name: self._as_plugin(f"the {name} of transform_data", function)}
                    result = replace(result, **watched)
        return result

    def _watched_view(self, view: Any) -> Any:
        if not isinstance(view, View) or view.transform is None:
            return view
        return replace(view, transform=self._as_plugin("the transform of a view", view.transform))

    def _as_plugin(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self._where[what] = place(function)

        def call(*arguments: Any) -> Any:
            with self.acting(what):
                return function(*arguments)

        return call

    # ---- before and after a hook --------------------------------------------------------------------------------
    def _before(self, hook: str) -> Snapshot | None:
        looking = hook == "update_masks" or (hook in PURE and (hook not in LOSS or self.called[hook] <= LOOKS))
        if not looking or self.trainer is None or not hasattr(self.trainer, "masks"):
            return None
        self.sliced = False
        return Snapshot.of(self.trainer)

    def _after(self, hook: str, before: Snapshot | None, given: Mapping[str, Any], result: Any) -> None:
        if before is not None:
            assert self.trainer is not None
            after = Snapshot.of(self.trainer)
            if hook == "update_masks":
                self._check_masks(before, after)
            else:
                changes = before.changes(after, weights_only=hook in LOSS)
                self.report("looks_only", hook, (f"{hook} changes {what}." for what in changes))
        if hook == "state_dict":
            self.report("state_types", hook, problems.state_problems(result))
        size = problems.batch_size(given.get("batch"))
        if hook == "objective" and size is not None:
            self.report("loss_shapes", hook, problems.objective_problems(result, size))
        if hook == "example_weights" and size is not None:
            self.report(
                "loss_shapes", hook, problems.weights_problems(result, size, problems.batch_shape(given.get("batch")))
            )
        if hook == "loss_terms":
            self.report("loss_shapes", hook, problems.terms_problems(result))
        if hook == "evaluate":
            self.report("metrics_described", hook, problems.figures_problems(result))
        if hook == "views":
            self.report("metrics_described", hook, problems.views_problems(result))
        if hook == "export":
            self.report("export_alike", hook, problems.export_problems(given["trainer"], result))

    def _check_owners(self, before: Mapping[str, str]) -> None:
        assert self.trainer is not None
        patterns = [part.pattern for part in self.ownership if part.kind == "parameters"]
        for tensor, owner in self.trainer.masks.owner.items():
            if tensor in before:
                continue
            if owner != self.name:
                problem = f"takes the mask of {tensor!r} in the name of {owner!r}, not in its own ({self.name!r})."
            elif not any(fnmatchcase(tensor, pattern) for pattern in patterns):
                declared = ", ".join(map(str, self.ownership)) or "nothing"
                problem = f"takes the mask of {tensor!r}; ownership() declares {declared}."
            else:
                continue
            self.report("ownership_kept", "setup", [f"setup {problem}"])

    def _check_masks(self, before: Snapshot, after: Snapshot) -> None:
        assert self.trainer is not None
        masks = self.trainer.masks
        faults = []
        if not self.sliced:
            for tensor in changed(before.parameters, after.parameters):
                owner = masks.owner.get(tensor)
                if owner != self.name:
                    whose = f"{owner!r} owns" if owner else "nobody owns"
                    faults.append(f"update_masks changes the weights of {tensor!r}, whose mask {whose}.")
        for tensor in changed(before.masks, after.masks):
            if masks.owner[tensor] != self.name:
                faults.append(f"update_masks changes the mask of {tensor!r}, which {masks.owner[tensor]!r} owns.")
            elif not self.sliced and not masks.dirty:
                faults.append(f"update_masks changes the mask of {tensor!r} and does not call trainer.masks.changed().")
            if not bool(((after.masks[tensor] == 0) | (after.masks[tensor] == 1)).all()):
                faults.append(f"update_masks leaves values other than 0 and 1 in the mask of {tensor!r}.")
        self.report("masks_own", "update_masks", faults)


def generators() -> dict[str, bytes]:
    """The state of the global generators, as bytes."""
    numpy: Any = np.random.get_state(legacy=True)
    return {
        "python": repr(hash(random.getstate())).encode(),
        "numpy": np.asarray(numpy[1]).tobytes() + repr(numpy[2:]).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def place(function: Any) -> str:
    """``Class.method (file:line)`` of a function."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__qualname__", type(function).__name__).replace("<locals>.", "")
    return f"{name}, {code.co_filename}:{code.co_firstlineno}" if code else str(name)
