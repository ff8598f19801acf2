"""The text of every file of a new plugin: the templates of the package, filled with the chosen hooks' parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from plait._version import __version__
from plait.hooks import CONTRACT_VERSION
from plait_authoring.scaffold.imports import import_statements, sorting
from plait_authoring.scaffold.names import Names

if TYPE_CHECKING:
    from jinja2 import Environment

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "test.yml",
    "src/{package}/__init__.py": "init.py",
    "src/{package}/plugin.py": "plugin.py",
    "src/{package}/options.py": "options.py",
    "src/{package}/method.py": "method.py",
    "src/{package}/claims.toml": "claims.toml",
    "src/{package}/py.typed": "py.typed",
    "tests/test_method.py": "test_method.py",
    "tests/test_plugin.py": "test_plugin.py",
    "tests/test_conformance.py": "test_conformance.py",
}
"""File of the package -> its template under ``templates/package``."""

FILES_OF_HOOKS = {
    "data_sources": {"src/{package}/data.py": "data.py"},
    "models": {"src/{package}/model.py": "model.py"},
    "artifacts": {"src/{package}/artifacts.py": "artifacts.py"},
    "commands": {"src/{package}/commands.py": "commands.py"},
}
"""Files that only some hooks need."""

TOOL = frozenset({"commands", "artifacts"})
"""Hooks of tools; the commands of a plugin that has no others stand at the root of ``plait``."""
WIDTH = 120
SHOWN = 3
"""Parts that a package's summary names."""


@dataclass(frozen=True)
class Part:
    """What one hook contributes: block name -> text, as its template has them; an absent block is empty."""

    hook: str
    blocks: Mapping[str, str]

    def __getitem__(self, block: str) -> str:
        return self.blocks.get(block, "")


def render(names: Names, hooks: Sequence[str]) -> dict[str, str]:
    """Path inside the package's folder -> text, for every file.

    Args:
        names: of the new plugin.
        hooks: in the contract's order, at least one.
    """
    environment = _environment()
    context = _context(names, hooks)
    parts = [_part(environment, hook, context) for hook in hooks]
    context |= _joined(names, hooks, parts)
    written = {}
    for path, source in _files(hooks).items():
        written[path.format(package=names.package)] = environment.get_template(f"package/{source}.j2").render(context)
    return written


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("plait_authoring.scaffold"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # the files are code, not HTML
    )
    environment.filters["words"] = _words
    return environment


def _files(hooks: Sequence[str]) -> dict[str, str]:
    files = dict(FILES)
    for hook in hooks:
        files |= FILES_OF_HOOKS.get(hook, {})
    return files


def _part(environment: Environment, hook: str, context: Mapping[str, Any]) -> Part:
    template = environment.get_template(f"hooks/{hook}.j2")
    drawn = {name: "".join(draw(template.new_context(dict(context)))) for name, draw in template.blocks.items()}
    return Part(hook, {name: text.strip("\n") for name, text in drawn.items()})


def _context(names: Names, hooks: Sequence[str]) -> dict[str, Any]:
    """What every template may ask for."""
    minor = ".".join(__version__.split(".")[:2])
    return {
        "name": names.name,
        "package": names.package,
        "distribution": names.distribution,
        "stem": names.stem,
        "hooks": hooks,
        "contract": CONTRACT_VERSION,
        "core": f">={minor},<{_next(minor)}",
        "data": f"{names.name}-gratings" if "data_sources" in hooks else "tiny-images",
        "model": f"{names.name}-net" if "models" in hooks else "tiny-cnn",
        "classifies": bool({"objective", "loss_terms", "evaluate"} & set(hooks)),
        "command": "plait weights" if TOOL.issuperset(hooks) else f"plait {names.name} weights",
    }


def _joined(names: Names, hooks: Sequence[str], parts: Sequence[Part]) -> dict[str, Any]:
    """What the package's own templates may ask for besides: the parts of all hooks, and what they are together."""

    def collected(block: str) -> list[str]:
        return [part[block] for part in parts if part[block]]

    def words(block: str) -> set[str]:
        return {word for text in collected(block) for word in text.split()}

    def imports(block: str, *always: str) -> str:
        lines = [line for text in collected(block) for line in text.splitlines()]
        return import_statements([*always, *lines])

    summary = _summary(parts)
    papers = collected("paper")
    options = [f"{names.stem}Options"]
    options += [kind for kind, hook in (("DataOptions", "data_sources"), ("ModelOptions", "models")) if hook in hooks]
    off = collected("off")
    return {
        "parts": parts,
        "imports": imports,
        "fields": bool(collected("option") or collected("options_class")),
        "summary": summary,
        "summary_sentence": summary[0].upper() + summary[1:],
        "paper": papers[0] if len(papers) == 1 else "",
        "options_imported": sorted(options),
        "needs": sorted(words("needs")),
        "provides": sorted(words("provides")),
        "public": sorted(words("public"), key=sorting),
        "off": off,
        "first_option": off[0].replace(" ", "") if off else "",
        "tiny": collected("tiny"),
        "state": collected("state"),
    }


def _next(version: str) -> str:
    major, minor = version.split(".")
    return f"{major}.{int(minor) + 1}"


def _words(words: Iterable[str], before: str, after: str) -> str:
    """``before`` + a list of quoted words + ``after``, on one line if it fits, else a word a line, as ruff has it."""
    quoted = [f'"{word}"' for word in words]
    line = f"{before}{{{', '.join(quoted)}}}{after}"
    if len(line) <= WIDTH:
        return line
    indent = " " * (len(before) - len(before.lstrip()))
    if not after:
        return "\n".join([f"{before}{{", *(f"{indent}    {word}," for word in quoted), f"{indent}}}"])
    inner = "".join(f"{indent}        {word},\n" for word in quoted)
    return f"{before}\n{indent}    {{\n{inner}{indent}    }}\n{indent}{after}"


def _summary(parts: Sequence[Part]) -> str:
    """One line about a package: its first parts."""
    *first, last = [part["summary"] for part in parts[:SHOWN]] + ["more"] * (len(parts) > SHOWN)
    return f"{', '.join(first)} and {last}" if first else last
