"""The import statements of a generated module: those of its parts as one block, sorted as isort and ruff do."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable


def import_statements(lines: Iterable[str]) -> str:
    """Merge import statements of modules at the top level.

    Args:
        lines: ``import a`` or ``from a.b import c, d``, in any order, a name as often as one likes.

    Returns:
        The standard library's, an empty line, all others.
    """
    names: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        keyword, module, *rest = line.replace(",", "").split()
        names[keyword + " " + module].update(rest[1:])
    statements: dict[bool, list[str]] = {True: [], False: []}
    for beginning, imported in sorted(names.items(), key=lambda item: (item[0].startswith("from"), item[0])):
        top = beginning.split()[1].partition(".")[0]
        ending = f" import {', '.join(sorted(imported, key=sorting))}" if imported else ""
        statements[top in sys.stdlib_module_names].append(beginning + ending)
    return "\n\n".join("\n".join(statements[standard]) for standard in (True, False) if statements[standard])


def sorting(name: str) -> tuple[int, str]:
    """Constants, classes, the rest, each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
