"""Which hook contract a plugin was written for, and what to do when it is not the one that this plait-core speaks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import plait
from plait.hooks import CONTRACT_VERSION

if TYPE_CHECKING:
    import ast

RELEASES = {1: "plait-core>=0.1,<0.2"}
"""Hook contract -> the releases of plait-core that speak it."""
CHANGES = "docs/hook-contract.md#changes"
"""Where the author of a plugin reads what a version of the contract changed."""


def judge(declared: Any, name: str, distribution: str) -> tuple[str, str]:
    """(status, reason) of a plugin that declares this contract; ``("ok", "")`` for the present one.

    Args:
        declared: the plugin's ``contract``, whatever its author wrote there.
        name: the plugin's.
        distribution: the distribution that brought it, as pip knows it.
    """
    if not isinstance(declared, int) or isinstance(declared, bool):
        return "broken", (
            f"its contract is {declared!r}, not a number; write `contract = {CONTRACT_VERSION}` if it was written for "
            f"the contract of this plait-core {plait.__version__}"
        )
    if declared == CONTRACT_VERSION:
        return "ok", ""
    if not declared:
        return "incompatible", f"it declares no hook contract; write `contract = {CONTRACT_VERSION}` in the plugin"
    versions = (
        f"it was written for hook contract {declared}, and this plait-core {plait.__version__} speaks contract "
        f"{CONTRACT_VERSION}"
    )
    if declared > CONTRACT_VERSION:
        return "incompatible", (
            f"{versions}: {remedy(declared, distribution)}, for a release that speaks contract {declared}. "
            f"Without one, an older release of {distribution} may be written for contract {CONTRACT_VERSION}."
        )
    older = (
        f" Without one, in an environment of its own: pip install {distribution} {RELEASES[declared]!r}."
        if declared in RELEASES
        else ""
    )
    return "incompatible", (
        f"{versions}: {remedy(declared, distribution)}, for a newer release of plugin {name!r}.{older} "
        f"Its author finds what changed in {CHANGES}."
    )


def remedy(declared: int | None, distribution: str) -> str:
    """What to type about a plugin of another contract."""
    newer = declared is not None and declared > CONTRACT_VERSION
    return "pip install -U plait-core" if newer else f"pip install -U {distribution}"


def written(entry: EntryPoint) -> int | None:
    """The contract in the source of a plugin that cannot be imported, None where it is not to be seen.

    A plugin for a newer contract often fails on a name that this plait-core does not have yet, before anybody can ask
    it. Its file is parsed, not run.
    """
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    try:
        spec = find_spec(entry.module)
        origin = spec.origin if spec is not None else None
        body = ast.parse(Path(origin or "").read_text(encoding="utf-8")).body
    except Exception:  # importing the parent package may raise anything
        return None
    found = [
        value.value
        for statement in (s for c in body if isinstance(c, ast.ClassDef) and c.name == entry.attr for s in c.body)
        for name, value in _assigned(statement)
        if name == "contract" and isinstance(value, ast.Constant) and type(value.value) is int
    ]
    return found[-1] if found else None


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement assigns, with their values: ``a = 1``, ``a: int = 1``, ``a, b = 1, 2``."""
    import ast

    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        yield statement.target.id, statement.value
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
            elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = zip(target.elts, statement.value.elts, strict=False)
                yield from ((one.id, value) for one, value in pairs if isinstance(one, ast.Name))
