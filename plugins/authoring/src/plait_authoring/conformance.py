"""The checks of the conformance kit: what each asks of a plugin, and what must have succeeded before it is asked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from plait_authoring.verdicts import Broken, DoesNotApply

if TYPE_CHECKING:
    from plait_authoring.subject import Subject


class Stage(StrEnum):
    """What must have succeeded before a check can be made."""

    NAMED = "named"
    """Nothing: only a name or a class was given."""
    LOADED = "loaded"
    """The plugin's class could be imported."""
    USABLE = "usable"
    """Its status is ok, so that it can be planned."""
    RUN = "run"
    """A tiny run finished."""


@dataclass(frozen=True)
class Check:
    """One check of the suite.

    Attributes:
        name: the test is called ``test_<name>``.
        asks: one sentence for the table and for ``pytest --collect-only``.
        stage: what it builds on.
        function: raises `Broken` or `DoesNotApply`.
    """

    name: str
    asks: str
    stage: Stage
    function: Callable[[Subject], None]

    def __call__(self, subject: Subject) -> None:
        """Check a plugin.

        Raises:
            Broken: the plugin fails it.
            DoesNotApply: it asks nothing of this plugin, or what it builds on failed (which another check reports).
        """
        with subject.present():
            self._require(subject)
            self.function(subject)

    def _require(self, subject: Subject) -> None:
        """Refuse to check what would only repeat another check's failure."""
        if self.stage is Stage.NAMED or (subject.plugin and self.stage is Stage.LOADED):
            return
        assert subject.item is not None
        if subject.item.status == "incompatible":
            raise DoesNotApply("the plugin is of another contract version: see test_contract_version")
        if subject.item.status != "ok":
            raise DoesNotApply("the plugin is not usable: see test_discovered and test_hook_signatures")
        if self.stage is Stage.RUN and subject.observed.run is None and not subject.findings(self.name):
            raise DoesNotApply("the tiny run did not finish: see test_trains")


MODULES = tuple(
    f"plait_authoring.checks.{module}" for module in ("package", "options", "hooks", "declarations", "runs", "results")
)
"""The modules that hold the checks, in the order of the suite."""

_CHECKS: dict[str, Check] = {}
Function = Callable[["Subject"], None]


def check(stage: Stage) -> Callable[[Function], Function]:
    """Make a function a check of the suite: its name is the check's, its docstring what the check asks."""

    def add(function: Function) -> Function:
        asks = " ".join((function.__doc__ or "").split())
        _CHECKS[function.__name__] = Check(function.__name__, asks, stage, function)
        return function

    return add


def checks() -> tuple[Check, ...]:
    """Every check, in the order in which they are made."""
    for module in MODULES:
        importlib.import_module(module)
    return tuple(sorted(_CHECKS.values(), key=lambda known: MODULES.index(known.function.__module__)))


def passes(subject: Subject, name: str) -> bool:
    """Whether the plugin passes a check, or the check does not apply."""
    checks()
    try:
        _CHECKS[name].function(subject)
    except Broken:
        return False
    except DoesNotApply:
        return True
    return True
