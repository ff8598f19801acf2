"""`plait_plugin_suite`: the checks as a class of pytest tests.

pytest loads this package at its every start, for the option of `plait_authoring.pytest_plugin`, so plait and the checks
are imported when a suite is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from plait.plugin import Plugin
    from plait_authoring.conformance import Check
    from plait_authoring.subject import Subject


def plait_plugin_suite(
    plugin: str | type[Plugin],
    *,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    steps: int = 12,
) -> type[Any]:
    """A class of tests, one for each check that a plugin must pass::

        from plait_authoring import plait_plugin_suite

        TestConformance = plait_plugin_suite("attic")

    The tiny runs train on the core's ``tiny-images`` with ``tiny-cnn`` where the plugin can work with them, else on
    what it suggests. They run on the CPU.

    Args:
        plugin: the name of an installed plugin, or a plugin class that is in no package yet.
        options: options of the plugin in the tiny runs; required ones at least.
        settings: dotted recipe keys -> values for the tiny runs, e.g. ``{"train.batch_size": 8}``.
        data: a data source (a registered name or an import path) that the plugin can work with.
        model: a model likewise.
        steps: steps of the tiny runs, at least 4; enough for everything on the plugin's schedule to happen once.

    Raises:
        BadInput: an argument cannot be used.
    """
    from plait.errors import BadInput
    from plait.plugin import Plugin
    from plait_authoring.conformance import checks

    if not isinstance(plugin, str) and not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        raise BadInput(
            f"plait_plugin_suite takes a plugin's name or a subclass of plait.Plugin, not {plugin!r}. "
            'For an installed plugin write plait_plugin_suite("name").'
        )
    if steps < 4:
        raise BadInput(f"plait_plugin_suite(steps={steps}): give at least 4, so that a run can be stopped and resumed.")
    for key in ("train.epochs", "train.steps"):
        if key in (settings or {}):
            raise BadInput(f"plait_plugin_suite(settings={{{key!r}: ...}}): give steps=... instead of {key}.")
    shared: list[Subject] = []

    def subject(folder: Callable[[], Path]) -> Subject:
        """The same for every test of the class, made by the first."""
        if not shared:
            from plait_authoring.subject import Subject

            shared.append(Subject(plugin, folder(), options or {}, settings or {}, data, model, steps))
        return shared[0]

    name = plugin if isinstance(plugin, str) else plugin.name or plugin.__name__
    members: dict[str, Any] = {f"test_{check.name}": _test(check, name, subject) for check in checks()}
    members["__doc__"] = f"plugin {name!r} against the hook contract"
    members["__module__"] = sys._getframe(1).f_globals.get("__name__", __name__)
    return type("TestConformance", (), members)


def _test(check: Check, plugin: str, subject: Callable[[Callable[[], Path]], Subject]) -> Callable[..., None]:
    def test(self: Any, tmp_path_factory: Any) -> None:
        import pytest

        from plait_authoring.verdicts import Broken, DoesNotApply

        # a stranger is helped by the message, not by a traceback through the kit
        problem = reason = None
        try:
            check(subject(lambda: tmp_path_factory.mktemp("plait-conformance")))
        except Broken as error:
            problem = str(error)
        except DoesNotApply as error:
            reason = str(error)
        if reason is not None:
            pytest.skip(reason)
        if problem is not None:
            pytest.fail(f"plugin {plugin!r} fails the check {check.name!r}: {check.asks}\n\n{problem}", pytrace=False)

    test.__name__ = test.__qualname__ = f"test_{check.name}"
    test.__doc__ = check.asks
    return test
