"""A package's public names as directives of the API reference, module by module; read from the source, not imported."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path


def names_part(package: str) -> str:
    """A heading per module (its docstring's first sentence), and under it its names that the package exports."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    init = Path(spec.origin)
    parts = []
    for module, names in _exports(ast.parse(init.read_text(encoding="utf-8")), package).items():
        file = init.parent.joinpath(*module.removeprefix(f"{package}.").split(".")).with_suffix(".py")
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or module
        parts.append(f"## {_first_sentence(said)}")
        parts += [f"::: {package}.{name}" for name in names]
    return "\n\n".join(["", *parts, ""])


def _exports(tree: ast.Module, package: str) -> dict[str, list[str]]:
    """Module -> names that ``__init__`` imports from it under ``TYPE_CHECKING`` (the lazy ones) or at once."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = f"{package}.{node.module}" if node.level else node.module or ""
        if module.startswith(f"{package}."):
            found.setdefault(module, []).extend(alias.asname or alias.name for alias in node.names)
    return found


def _first_sentence(text: str) -> str:
    first = re.sub(r" \([^)]*\)|``", "", " ".join(text.split("\n\n")[0].split()))
    for end in (": ", ". ", "; ", ", "):
        first = first.partition(end)[0]
    return first.rstrip(".")
