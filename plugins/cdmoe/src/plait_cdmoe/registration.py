"""transformers' Auto classes know condensed models once this package is imported, in whatever order.

Finding the plugin must not import transformers. So its table of model types is given entries that load on first use: at
once where transformers is there already, else when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PREFIX = "cdmoe_"
"""What a condensed model's ``model_type`` begins with; the family's follows."""
TYPES = frozenset(
    {"deepseek", *(PREFIX + family for family in ("qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek"))}
)
_TABLE = "transformers.models.auto.configuration_auto"


class _Entries(dict[str, Any]):
    """The table's entries of other packages; one of ours brings in the module that registers them all."""

    def __contains__(self, key: object) -> bool:
        if key in TYPES and not super().__contains__(key):
            importlib.import_module("plait_cdmoe.storage")
        return super().__contains__(key)


class _Awaiting(importlib.abc.MetaPathFinder):
    """Waits for the import of transformers' table."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_enter(module: ModuleType) -> None:
                load(module)
                _enter(module.CONFIG_MAPPING)

            spec.loader.exec_module = load_and_enter  # type: ignore[method-assign]
        return spec


def _enter(table: Any) -> None:
    others: Mapping[str, Any] = table._extra_content
    table._extra_content = _Entries(others)


def announce() -> None:
    """Make the model types known; called once, when the package is imported."""
    if _TABLE in sys.modules:
        _enter(sys.modules[_TABLE].CONFIG_MAPPING)  # type: ignore[attr-defined,unused-ignore]
    else:
        sys.meta_path.insert(0, _Awaiting())
