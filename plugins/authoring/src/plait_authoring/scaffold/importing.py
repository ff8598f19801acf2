"""The import statements of a generated module, from the names that its code uses."""

from __future__ import annotations

import ast
from collections.abc import Iterable

IMPORTS = {
    "Any": ("typing", "Any"),
    "Callable": ("collections.abc", "Callable"),
    "ClassVar": ("typing", "ClassVar"),
    "Mapping": ("collections.abc", "Mapping"),
    "Path": ("pathlib", "Path"),
    "dataclasses": ("dataclasses", ""),
    "json": ("json", ""),
    "math": ("math", ""),
    "fnmatchcase": ("fnmatch", "fnmatchcase"),
    "plait": ("plait", ""),
    "registry": ("plait", "registry"),
    "Claim": ("plait", "Claim"),
    "DataSource": ("plait", "DataSource"),
    "ModelSource": ("plait", "ModelSource"),
    "Options": ("plait", "Options"),
    "Plugin": ("plait", "Plugin"),
    "hookimpl": ("plait", "hookimpl"),
    "Field": ("pydantic", "Field"),
    "pytest": ("pytest", ""),
    "torch": ("torch", ""),
    "Tensor": ("torch", "Tensor"),
    "nn": ("torch", "nn"),
    "functional": ("torch.nn", "functional"),
}
"""A name used in a generated module -> (module, what to import of it, empty for the module itself)."""

TYPING_IMPORTS = {
    "Batch": ("plait.data", "Batch"),
    "Data": ("plait.data", "Data"),
    "LossReport": ("plait.training.woven", "LossReport"),
    "Metric": ("plait.training.evaluation", "Metric"),
    "Plot": ("plait.training.evaluation", "Plot"),
    "Predictions": ("plait.training.evaluation", "Predictions"),
    "Table": ("plait.training.evaluation", "Table"),
    "Trainer": ("plait.training.trainer", "Trainer"),
    "View": ("plait.training.evaluation", "View"),
    "Tensor": ("torch", "Tensor"),
    "nn": ("torch", "nn"),
    "torch": ("torch", ""),
}
"""The same for ``plugin.py``, for type checkers only: importing any of these would import torch."""

STANDARD = frozenset({"collections.abc", "dataclasses", "fnmatch", "json", "math", "pathlib", "typing"})


def import_statements(code: str, *, light: bool) -> dict[str, str]:
    """The import statements of the names that some code uses, in the order that isort and ruff want.

    Args:
        code: a module without these imports.
        light: names of `TYPING_IMPORTS` are for type checkers only.

    Returns:
        ``runtime`` statements and, indented, those for type checkers: ``checked``.
    """
    nodes = list(ast.walk(ast.parse(code)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    bound = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    heavy = TYPING_IMPORTS if light else {}
    runtime = [IMPORTS[name] for name in used - bound - assigned if name in IMPORTS and name not in heavy]
    checked = _statements(heavy[name] for name in used if name in heavy)
    if checked:
        runtime.append(("typing", "TYPE_CHECKING"))
    standard = _statements(pair for pair in runtime if pair[0] in STANDARD)
    others = _statements(pair for pair in runtime if pair[0] not in STANDARD)
    return {
        "runtime": "\n\n".join(section for section in (standard, others) if section),
        "checked": "".join(f"    {line}\n" for line in checked.splitlines()),
    }


def _statements(pairs: Iterable[tuple[str, str]]) -> str:
    modules: dict[str, set[str]] = {}
    whole = set()
    for module, name in pairs:
        if name:
            modules.setdefault(module, set()).add(name)
        else:
            whole.add(module)
    lines = [f"import {module}" for module in sorted(whole)]
    lines += [f"from {module} import {', '.join(sorted(modules[module], key=sorting))}" for module in sorted(modules)]
    return "\n".join(lines)


def sorting(name: str) -> tuple[int, str]:
    """Constants, classes, the rest, each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
