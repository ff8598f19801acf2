"""Rewrite the parts of the documentation that are read off the code: options, hooks, components, and plans.

    python docs/make_tables.py           rewrite what is out of date
    python docs/make_tables.py --check   only say what is (exit code 1)
    python docs/make_tables.py --matrix  try the composition matrix anew first (minutes)

A generated part stands between ``<!-- KIND:ARGUMENT -->`` and ``<!-- end -->``. The kinds:

    options:NAME     options of a plugin, a data source, a model, or ``recipe``
    hooks            every hook with its rule, arguments and meaning
    data, models     the registered data sources or models
    prints:COMMANDS  what the last of these commands (separated by `` ; ``, without ``plait``) prints, with this
                     repository's plugins and those of stand_ins.py; or the error that it ends with
    says:COMMANDS    only the message that the last of them ends with
    claims:PLUGIN    its claims with the verdicts and figures of docs/scoreboard/scoreboard.json
    names:PACKAGE MODULE ...
                     the public names of these modules, for the API reference
    methods          this repository's methods, one line each
    tools            its tools likewise
    checks           the checks of the conformance kit
    matrix:PART      pairs, sets, models, data or refusals of docs/composition-matrix.json, which --matrix makes anew
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # the tests load this file by its path
    sys.path.insert(0, str(HERE))

from making import matrix, messages, names, verdicts  # noqa: E402
from making.shared import PLUGINS, only_ours, plugin_folders, table  # noqa: E402

from plait.hooks import HookSpecs, hook_names  # noqa: E402
from plait.planning import discovery  # noqa: E402


def pages() -> list[Path]:
    """The Markdown pages that may hold generated parts."""
    here = [*sorted(HERE.glob("*.md")), *sorted(HERE.glob("reference/*.md"))]
    return [HERE.parent / "README.md", *here, *sorted(HERE.parent.glob("plugins/*/README.md"))]


def render(text: str) -> str:
    """A page with its generated parts made anew."""

    def renewed(match: re.Match[str]) -> str:
        part = PARTS[match["kind"]](match["argument"] or "")
        return f"{match[1]}{part}\n{match[4]}"

    with only_ours():
        return PART.sub(renewed, text)


# ---- the kinds ---------------------------------------------------------------------------------------------------
def options_table(name: str) -> str:
    """The options of a plugin, a data source, a model or the recipe."""
    from plait.declare.recipe import Recipe
    from plait_cli import fields

    if name == "recipe":
        model: Any = Recipe
    elif name in PLUGINS:
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        model = plugin.Options
    else:
        model = _component(name).options
    rows = [
        [
            f"`{o['name']}`",
            o["type"],
            "required" if o["required"] else _value(o["default"]),
            re.sub("([<>]=?) ", "\\1\u00a0", o["bounds"]),  # a bound is not broken over lines
            o["description"],
        ]
        for o in fields.options(model)
        if (name, o["name"]) != ("recipe", "plugins")
    ]
    return table(["option", "type", "default", "bounds", "what it is"], rows)


def hooks_table(_: str) -> str:
    """Every hook in the contract's order."""
    rows = []
    for name in hook_names():
        spec = getattr(HookSpecs, name)
        arguments = [a for a in inspect.signature(spec).parameters if a != "self"]
        meaning = inspect.getdoc(spec) or ""
        first = " ".join(meaning.split("\n\n")[0].split()).replace("``", "`")
        rows.append([spec.plait_family, f"[`{name}`](#{name})", spec.plait_rule.value, ", ".join(arguments), first])
    return table(["family", "hook", "rule", "arguments", "meaning"], rows)


def components_table(hook: str) -> Callable[[str], str]:
    """A maker of the table of data sources or models."""

    def make(_: str) -> str:
        rows = []
        for name, (plugin, source) in discovery.collect(hook)[0].items():
            words = ", ".join(f"`{word}`" for word in sorted(source.provides))
            keys = ", ".join(f"`{key}`" for key in source.options.model_fields)
            rows.append([f"`{name}`", plugin, source.summary, words, keys])
        return table(["name", "from", "what", "provides", "options"], rows)

    return make


def methods_table(_: str) -> str:
    """The methods with their papers and pages; a plugin without a paper (the zoo) is no method."""
    rows = []
    for name, folder in plugin_folders().items():
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        if plugin.paper:
            rows.append([f"[{name}](../{folder.relative_to(HERE.parent)}/README.md)", plugin.summary, plugin.paper])
    return table(["method", "what it does", "paper"], rows)


def tools_table(_: str) -> str:
    """The tools with their commands and pages."""
    from plait_cli.groups import plugin_commands

    rows = []
    for name, folder in plugin_folders().items():
        item = discovery.find_plugin(name)
        if item.plugin and set(item.hooks) <= {"commands", "artifacts"}:
            link = f"[plait-{name}](../{folder.relative_to(HERE.parent)}/README.md)"
            commands = ", ".join(f"`plait {command}`" for command in plugin_commands(name))
            rows.append([link, commands, item.plugin.summary])
    return table(["package", "commands", "what it does"], rows)


def checks_table(_: str) -> str:
    """The checks of the conformance kit, in its order."""
    from plait_authoring.conformance import checks

    return table(["check", "what it asks"], [[f"`{check.name}`", check.asks] for check in checks()])


PARTS: dict[str, Callable[[str], str]] = {
    "options": options_table,
    "hooks": hooks_table,
    "data": components_table("data_sources"),
    "models": components_table("models"),
    "prints": messages.all_words,
    "says": messages.last_words,
    "claims": verdicts.claims_part,
    "names": names.names_part,
    "methods": methods_table,
    "tools": tools_table,
    "checks": checks_table,
    "matrix": matrix.matrix_part,
}
PART = re.compile(rf"(<!-- (?P<kind>{'|'.join(PARTS)})(?::(?P<argument>.*?))? -->\n).*?(<!-- end -->)", re.S)


def _component(name: str) -> Any:
    for hook in ("data_sources", "models"):
        entries = discovery.collect(hook)[0]
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


def main() -> int:
    """Rewrite or check every page."""
    check = "--check" in sys.argv[1:]
    if "--matrix" in sys.argv[1:] and matrix.write().crashed:
        print("a set crashed; the matrix on the page was left as it is")
        return 1
    stale = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = render(before)
        if before != after:
            stale += 1
            print(f"{page.relative_to(HERE.parent)} {'is out of date' if check else 'rewritten'}")
            if not check:
                page.write_text(after, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
