"""Claims: what a paper says, as experiments that a machine can repeat, and verdicts on them.

``load`` reads a plugin's ``claims.toml``, ``check`` tries its arms against recipes and options without running them,
``verify`` runs what it asks for. Importing this imports neither torch nor
scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Book": "plait.claims.schema",
    "check": "plait.claims.experiment",
    "load": "plait.claims.schema",
    "load_file": "plait.claims.schema",
    "verify": "plait.claims.verifying",
    "Verification": "plait.claims.verifying",
}
__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from plait.claims.experiment import check as check
    from plait.claims.schema import Book as Book
    from plait.claims.schema import load as load
    from plait.claims.schema import load_file as load_file
    from plait.claims.verifying import Verification as Verification
    from plait.claims.verifying import verify as verify


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'plait.claims' has no attribute {name!r}")
