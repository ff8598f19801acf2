"""``plait info``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait_cli import completion, describing, output
from plait_cli.groups import plugin_commands
from plait_cli.parameters import AsJson

KINDS = {"data": "data_sources", "model": "models"}
LISTS = ("needs", "provides", "breaks", "claims", "data_sources", "models", "commands", "suggests", "plugin", "factory")


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A plugin, a data source, a model, or 'recipe' for the recipe's own keys.",
            autocompletion=completion.names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Describe a plugin, a data source or a model: its options, what it does, needs and provides.

    Examples:

      plait info chase
      plait info tiny-images
      plait info recipe --json
    """
    from plait import registry
    from plait.errors import BadInput, nearest

    found = []
    if name in {item.name for item in registry.installed()}:
        found.append(plugin_info(name))
    known = {item.name for item in registry.installed()} | {"recipe"}
    for kind, hook in KINDS.items():
        entries, problems = registry.collect(hook)
        known |= entries.keys()
        if name in entries:
            found.append(component_info(kind, name, *entries[name]))
        elif name in problems and not found:
            raise BadInput(problems[name])
    if not found and name == "recipe":
        found.append(recipe_info())
    if not found:
        raise BadInput(f"nothing installed is named {name!r}.{nearest(name, known)} `plait plugins` lists the plugins.")
    if as_json:
        first, *others = found
        output.emit({**first, **({"also": others} if others else {})})
        return
    for one in found:
        show(one)


def plugin_info(name: str) -> dict[str, Any]:
    """Everything a plugin declares, with its default options.

    Raises:
        BadInput: it is installed but unusable.
    """
    from plait import registry
    from plait.hooks import HookSpecs, rule_of

    item = registry.find_plugin(name)
    plugin = item.plugin
    assert plugin is not None
    instance = registry.default_instance(plugin)
    hooks = [
        {
            "hook": one.hook,
            "rule": rule_of(one.hook).value,
            "family": getattr(HookSpecs, one.hook).plait_family,
            "inner": one.inner,
            "before": list(one.before),
            "after": list(one.after),
        }
        for one in registry.implementations(instance)
    ]
    return {
        "kind": "plugin",
        **item.as_dict(),
        "hooks": hooks,
        "options": describing.options(plugin.Options),
        **{word: _declared(instance, word) for word in ("needs", "provides", "breaks", "claims")},
        **{hook: _registered(name, hook) for hook in KINDS.values()},
        "commands": plugin_commands(name),
        "paper_claims": paper_claims(name),
        "suggests": {
            **({"data": list(plugin.suggests_data)} if plugin.suggests_data else {}),
            **({"model": list(plugin.suggests_model)} if plugin.suggests_model else {}),
            **plugin.suggests,
        },
    }


def paper_claims(name: str) -> list[dict[str, Any]]:
    """What `plait verify` can check of a plugin's paper.

    Raises:
        BadInput: its ``claims.toml`` is wrong, with file and key.
    """
    from plait import claims
    from plait.errors import BadInput

    book = claims.load(name)
    if book is None:
        return []
    if problems := claims.check(book):
        raise BadInput("\n".join(problems))
    return [
        {
            "id": claim.id,
            "sentence": claim.sentence,
            "source": claim.source,
            "ours": claim.ours,
            "gate": claim.gate,
            "expect": list(claim.expect),
            "guards": list(claim.guards),
            "minutes": dict(claim.minutes),
        }
        for claim in book.claims
    ]


def component_info(kind: str, name: str, plugin: str, source: Any) -> dict[str, Any]:
    """What a data source or a model declares."""
    return {
        "kind": kind,
        "name": name,
        "summary": source.summary,
        "plugin": plugin,
        "factory": source.factory,
        "needs": sorted(getattr(source, "needs", ())),
        "provides": sorted(source.provides),
        "options": describing.options(source.options, f"{kind}."),
    }


def recipe_info() -> dict[str, Any]:
    """The keys of a recipe, as ``--set`` takes them."""
    from plait.recipe import Recipe

    options = [option for option in describing.options(Recipe) if option["name"] != "plugins"]
    return {
        "kind": "recipe",
        "name": "recipe",
        "summary": "what to run; every key can be given with --set",
        "options": options,
    }


def show(one: dict[str, Any]) -> None:
    """Print a description."""
    summary = f": {one['summary']}" if one["summary"] else ""
    typer.echo(output.heading(f"{one['name']} ({one['kind']}){summary}"))
    for word in ("distribution", "version", "paper"):
        if one.get(word):
            typer.echo(f"{word}: {one[word]}")
    for word in LISTS:
        value = one.get(word)
        if value:
            typer.echo(f"{word.replace('_', ' ')}: {_listed(value)}")
    if one.get("hooks"):
        rows = [[h["hook"], h["rule"], h["family"], _order(h)] for h in one["hooks"]]
        output.show(output.table("hooks", ["hook", "rule", "family", "order"], rows))
    if one.get("paper_claims"):
        rows = [
            [
                claim["id"] if claim["gate"] else f"{claim['id']} (reported only)",
                claim["sentence"],
                ", ".join(f"{scale} {output.figure(minutes)} min" for scale, minutes in claim["minutes"].items()),
                f"{claim['source']}{' (thresholds ours)' if claim['ours'] else ''}",
            ]
            for claim in one["paper_claims"]
        ]
        title = f"claims of the paper (plait verify {one['name']})"
        output.show(output.table(title, ["claim", "what it says", "cost", "source"], rows))
    if one.get("options"):
        prefix = f"{one['name']}." if one["kind"] == "plugin" else ""
        rows = [
            [
                f"{prefix}{o['name']}",
                o["type"],
                "required" if o["required"] else _value(o["default"]),
                o["bounds"],
                o["description"],
            ]
            for o in one["options"]
        ]
        output.show(output.table("options (--set KEY=VALUE)", ["key", "type", "default", "bounds", "what it is"], rows))


def _declared(instance: Any, word: str) -> list[str]:
    try:
        return sorted(map(str, getattr(instance, word)()))
    except Exception as error:  # declarations may depend on options that have no default
        return [f"depends on its options ({type(error).__name__}: {error})"]


def _registered(name: str, hook: str) -> dict[str, str]:
    from plait import registry

    return {entry: source.summary for entry, (owner, source) in registry.collect(hook)[0].items() if owner == name}


def _order(hook: dict[str, Any]) -> str:
    parts = ["owns the innermost step"] if hook["inner"] else []
    parts += [f"{word} {', '.join(hook[word])}" for word in ("before", "after") if hook[word]]
    return "; ".join(parts)


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} ({v})" if isinstance(v, str) else f"{k}={_value(v)}" for k, v in value.items())
    return value if isinstance(value, str) else ", ".join(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return "none" if value is None else str(value)
