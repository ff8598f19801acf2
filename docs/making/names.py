"""A package's public names as directives of the API reference, module by module; read from the source, not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def names_part(argument: str) -> str:
    """A heading per module (its docstring's first sentence), and under it its public names.

    Args:
        argument: a package: what its ``__init__`` lists in ``__all__``, under the modules that it comes from; else
            every module that has an ``__all__``. Or a package and some of its modules: their ``__all__``, or what they
            define without a leading underscore.
    """
    package, *modules = argument.split()
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    home = Path(spec.origin).parent
    init = _parsed(home / "__init__.py")
    parts = []
    if modules:
        for module in modules:
            tree = _parsed(_file(home, module))
            parts += _section(tree, f"{package}.{module}", _listed(tree) or list(_defined(tree)))
    elif _listed(init):
        for module, names in _exports(init, package).items():
            parts += _section(_parsed(_file(home, module)), package, names)
    else:
        for file in sorted(home.rglob("*.py")):
            tree = _parsed(file)
            module = ".".join(file.relative_to(home).with_suffix("").parts)
            if file.name != "__init__.py" and _listed(tree):
                parts += _section(tree, f"{package}.{module}", _listed(tree))
    return "\n\n".join(["", *parts, ""])


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _file(home: Path, module: str) -> Path:
    place = home.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _section(tree: ast.Module, where: str, names: list[str]) -> list[str]:
    heading = _first_sentence(ast.get_docstring(tree) or where)
    return [f"## {heading}", *(f"::: {where}.{name}" for name in names)]


def _listed(tree: ast.Module) -> list[str]:
    """What a module's ``__all__`` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            assert isinstance(node.value, ast.List), "__all__ is a list of names"
            return [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
    return []


def _defined(tree: ast.Module) -> Iterator[str]:
    """Classes and functions without a leading underscore, and constants that have a docstring."""
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node.name
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(below, ast.Expr):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id.isupper():
                yield target.id


def _exports(init: ast.Module, package: str) -> dict[str, list[str]]:
    """Module, without the package -> names that ``__init__`` imports from it."""
    exports: dict[str, list[str]] = {}
    for node in ast.walk(init):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level or module.startswith(f"{package}."):
                names = exports.setdefault(module.removeprefix(f"{package}."), [])
                names.extend(alias.asname or alias.name for alias in node.names)
    return exports


def _first_sentence(text: str) -> str:
    first = re.sub(r" \([^)]*\)|``", "", " ".join(text.split("\n\n")[0].split()))
    for end in (": ", ". ", "; ", ", "):
        first = first.partition(end)[0]
    return first.rstrip(".")
