"""`plait.plan`: judge a set of plugins from declarations, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.composition import Plan, make_plan
from plait.recipe import Recipe, assemble


def plan(recipe: Recipe | Path | str | Mapping[str, Any] | None = None, **changes: Any) -> Plan:
    """The ordered, checked plan of a recipe; its ``refusals`` say why it cannot run.

    Args:
        recipe: a recipe, a TOML file, a nested mapping, or nothing.
        changes: as in `plait.recipe.assemble`: plugins, data, model, settings, ...

    Raises:
        BadInput: an unknown plugin, component, key or a bad value.
    """
    return make_plan(assemble(recipe, **changes))
