"""Rewrite the parts of the documentation that are read off the code: options, hooks, components, and plans.

    python docs/make_tables.py           rewrite what is out of date
    python docs/make_tables.py --check   only say what is (exit code 1)

A generated part stands between ``<!-- KIND:ARGUMENT -->`` and ``<!-- end -->``. The kinds:

    options:NAME     options of a plugin, a data source, a model, or ``recipe``
    hooks            every hook with its rule, arguments and meaning
    data, models     the registered data sources or models
    plan:ARGUMENTS   what ``plait plan ARGUMENTS`` prints, with this repository's plugins and those of stand_ins.py
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from plait import registry
from plait.hooks import HookSpecs, hook_names

HERE = Path(__file__).resolve().parent
PLUGINS = {
    "chase": "plait_chase.plugin:ChasePlugin",
    "fairsam": "plait_fairsam.plugin:FairsamPlugin",
    "zoo": "plait_zoo.plugin:ZooPlugin",
}
"""This repository's plugins: what else is installed must not change the pages."""
PART = re.compile(
    r"(<!-- (?P<kind>options|hooks|data|models|plan)(?::(?P<argument>.*?))? -->\n).*?(<!-- end -->)", re.S
)


def pages() -> list[Path]:
    """The Markdown pages that may hold generated parts."""
    return [HERE.parent / "README.md", *sorted(HERE.glob("*.md"))]


def render(text: str) -> str:
    """A page with its generated parts made anew."""

    def made(match: re.Match[str]) -> str:
        part = PARTS[match["kind"]](match["argument"] or "")
        return f"{match[1]}{part}\n{match[4]}"

    with only_ours():
        return PART.sub(made, text)


@contextmanager
def only_ours(stand_ins: Collection[str] = ()) -> Iterator[None]:
    """The registry with this repository's plugins, and the named stand-ins, only."""
    found = [item for item in registry.discover() if item.name == registry.BUILTIN]
    for name, path in PLUGINS.items():
        module, _, attribute = path.partition(":")
        plugin = getattr(import_module(module), attribute)
        found.append(registry.examine(registry.Installed(name, f"plait-{name}", "0.1.0"), plugin))
    sys.path.insert(0, str(HERE))
    try:
        strangers = [getattr(import_module("stand_ins"), name) for name in import_module("stand_ins").__all__]
    finally:
        sys.path.remove(str(HERE))
    for plugin in strangers:
        if plugin.name in stand_ins:
            found.append(registry.examine(registry.Installed(plugin.name, f"stand-in-{plugin.name}", "0.1.0"), plugin))
    before = registry.installed
    registry.installed = lambda: tuple(found)  # type: ignore[assignment]
    try:
        yield
    finally:
        registry.installed = before


# ---- the kinds ---------------------------------------------------------------------------------------------------
def options_table(name: str) -> str:
    """The options of a plugin, a data source, a model or the recipe."""
    from plait.recipe import Recipe
    from plait_cli import describing

    if name == "recipe":
        model: Any = Recipe
    elif name in PLUGINS:
        plugin = registry.find_plugin(name).plugin
        assert plugin is not None
        model = plugin.Options
    else:
        model = _component(name).options
    rows = [
        [
            f"`{o['name']}`",
            o["type"],
            "required" if o["required"] else _value(o["default"]),
            o["bounds"],
            o["description"],
        ]
        for o in describing.options(model)
        if (name, o["name"]) != ("recipe", "plugins")
    ]
    return _table(["option", "type", "default", "bounds", "what it is"], rows)


def hooks_table(_: str) -> str:
    """Every hook in the contract's order."""
    rows = []
    for name in hook_names():
        spec = getattr(HookSpecs, name)
        arguments = [a for a in inspect.signature(spec).parameters if a != "self"]
        meaning = inspect.getdoc(spec) or ""
        first = " ".join(meaning.split("\n\n")[0].split()).replace("``", "`")
        rows.append([spec.plait_family, f"[`{name}`](#{name})", spec.plait_rule.value, ", ".join(arguments), first])
    return _table(["family", "hook", "rule", "arguments", "meaning"], rows)


def components_table(hook: str) -> Callable[[str], str]:
    """A maker of the table of data sources or models."""

    def make(_: str) -> str:
        rows = []
        for name, (plugin, source) in registry.collect(hook)[0].items():
            words = ", ".join(f"`{word}`" for word in sorted(source.provides))
            keys = ", ".join(f"`{key}`" for key in source.options.model_fields)
            rows.append([f"`{name}`", plugin, source.summary, words, keys])
        return _table(["name", "from", "what", "provides", "options"], rows)

    return make


def plan_output(arguments: str) -> str:
    """What ``plait plan`` prints, or the error it ends with."""
    import argparse

    from plait import plan
    from plait.errors import PlaitError
    from plait.recipe import parse_value
    from plait_cli.commands.plan import described

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", action="append", default=[])
    parser.add_argument("--data")
    parser.add_argument("--model")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args(shlex.split(arguments))
    pairs = [text.partition("=") for text in given.set]
    settings = {key: parse_value(value) for key, _, value in pairs}
    try:
        with only_ours(stand_ins=given.p):
            printed = described(plan(plugins=given.p, data=given.data, model=given.model, settings=settings))
    except PlaitError as error:
        printed = f"error: {error}"
    return f"```console\n$ plait plan {arguments}\n{re.sub(chr(27) + r'[^m]*m', '', printed).rstrip()}\n```"


PARTS: dict[str, Callable[[str], str]] = {
    "options": options_table,
    "hooks": hooks_table,
    "data": components_table("data_sources"),
    "models": components_table("models"),
    "plan": plan_output,
}


def _component(name: str) -> Any:
    for hook in ("data_sources", "models"):
        entries = registry.collect(hook)[0]
        if name in entries:
            return entries[name][1]
    raise SystemExit(f"make_tables: nothing is called {name!r}")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "empty"
    return str(value) or "empty"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def main() -> int:
    """Rewrite or check every page."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = render(before)
        if before != after:
            stale += 1
            print(f"{page.name} {'is out of date' if check else 'rewritten'}")
            if not check:
                page.write_text(after, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
