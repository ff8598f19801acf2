"""A package's public names as directives of the API reference, module by module; read from the source, not imported."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path


def names_part(package: str) -> str:
    """A heading per module (its docstring's first sentence), and under it the names in its ``__all__``.

    A package that re-exports (its own ``__all__`` is not empty) shows those names instead, by where they come from.
    """
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    init = Path(spec.origin)
    home = init.parent
    tree = ast.parse(init.read_text(encoding="utf-8"))
    parts = []
    if _listed(tree):
        for module, names in _exports(tree, package).items():
            file = home.joinpath(*module.removeprefix(f"{package}.").split(".")).with_suffix(".py")
            parts += [_heading(ast.parse(file.read_text(encoding="utf-8")), module)]
            parts += [f"::: {package}.{name}" for name in names]
    else:
        for file in sorted(home.rglob("*.py")):
            module = ".".join([package, *file.relative_to(home).with_suffix("").parts]).removesuffix(".__init__")
            inside = ast.parse(file.read_text(encoding="utf-8"))
            if file.name != "__init__.py" and (listed := _listed(inside)):
                parts += [_heading(inside, module), *(f"::: {module}.{name}" for name in listed)]
    return "\n\n".join(["", *parts, ""])


def _listed(tree: ast.Module) -> list[str]:
    """What a module's ``__all__`` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            assert isinstance(node.value, ast.List), "__all__ is a list of names"
            return [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
    return []


def _exports(tree: ast.Module, package: str) -> dict[str, list[str]]:
    """Module -> names that ``__init__`` imports from it."""
    exports: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = f"{package}.{node.module}" if node.level else node.module or ""
        if module.startswith(f"{package}."):
            exports.setdefault(module, []).extend(alias.asname or alias.name for alias in node.names)
    return exports


def _heading(tree: ast.Module, module: str) -> str:
    return f"## {_first_sentence(ast.get_docstring(tree) or module)}"


def _first_sentence(text: str) -> str:
    first = re.sub(r" \([^)]*\)|``", "", " ".join(text.split("\n\n")[0].split()))
    for end in (": ", ". ", "; ", ", "):
        first = first.partition(end)[0]
    return first.rstrip(".")
