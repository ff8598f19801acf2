"""Testing kit: what plait's own tests and plugin authors use to check a plugin the hard way.

``plait_plugin_suite`` makes a class of tests from a plugin's name, one test per rule of the contract. Importing this
imports neither pytest nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {"plait_plugin_suite": "plait.testing.suite"}
__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from plait.testing.suite import plait_plugin_suite as plait_plugin_suite


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'plait.testing' has no attribute {name!r}")
