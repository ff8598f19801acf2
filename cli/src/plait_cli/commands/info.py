"""``plait info``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait_cli import completion, fields, output
from plait_cli.groups import plugin_commands
from plait_cli.parameters import AsJson

KINDS = {"data": "data_sources", "model": "models"}
DECLARED = ("needs", "provides", "breaks", "ownership")
LISTS = (*DECLARED, "data_sources", "models", "commands", "suggests", "plugin", "factory")


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
    from plait.errors import BadInput, nearest
    from plait.planning import discovery

    described = []
    if name in {item.name for item in discovery.installed()}:
        described.append(plugin_info(name))
    known = {item.name for item in discovery.installed()} | {"recipe"}
    for kind, hook in KINDS.items():
        entries, problems = discovery.collect(hook)
        known |= entries.keys()
        if name in entries:
            described.append(component_info(kind, name, *entries[name]))
        elif name in problems and not described:
            raise BadInput(problems[name])
    if not described and name == "recipe":
        described.append(recipe_info())
    if not described:
        raise BadInput(f"nothing installed is named {name!r}.{nearest(name, known)} `plait plugins` lists the plugins.")
    if as_json:
        first, *others = described
        output.emit({**first, **({"also": others} if others else {})})
        return
    for description in described:
        show(description)


def plugin_info(name: str) -> dict[str, Any]:
    """Everything a plugin declares, with its default options.

    Raises:
        BadInput: it is installed but unusable.
    """
    from plait.hooks import HookSpecs, rule_of
    from plait.planning import discovery

    item = discovery.find_plugin(name)
    plugin = item.plugin
    assert plugin is not None
    instance = discovery.default_instance(plugin)
    hooks = [
        {
            "hook": implementation.hook,
            "rule": rule_of(implementation.hook).value,
            "family": getattr(HookSpecs, implementation.hook).plait_family,
            "inner": implementation.inner,
            "before": list(implementation.before),
            "after": list(implementation.after),
        }
        for implementation in discovery.implementations(instance)
    ]
    return {
        "kind": "plugin",
        **item.as_dict(),
        "hooks": hooks,
        "options": fields.options(plugin.Options),
        **{word: _declared(instance, word) for word in DECLARED},
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
    """What `plait verify` can check of a plugin's paper; empty where plait-experiments is not installed.

    Raises:
        BadInput: its ``claims.toml`` is wrong, with file and key.
    """
    from plait.errors import BadInput

    try:
        from plait_experiments import experiment, schema
    except ImportError:
        return []
    book = schema.load(name)
    if book is None:
        return []
    if problems := experiment.check(book):
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
        "options": fields.options(source.options, f"{kind}."),
    }


def recipe_info() -> dict[str, Any]:
    """The keys of a recipe, as ``--set`` takes them."""
    from plait.declare.recipe import Recipe

    options = [option for option in fields.options(Recipe) if option["name"] != "plugins"]
    return {
        "kind": "recipe",
        "name": "recipe",
        "summary": "what to run; every key can be given with --set",
        "options": options,
    }


def show(description: dict[str, Any]) -> None:
    """Print a description."""
    summary = f": {description['summary']}" if description["summary"] else ""
    typer.echo(output.heading(f"{description['name']} ({description['kind']}){summary}"))
    for word in ("distribution", "version", "paper"):
        if description.get(word):
            typer.echo(f"{word}: {description[word]}")
    for word in LISTS:
        value = description.get(word)
        if value:
            typer.echo(f"{word.replace('_', ' ')}: {_listed(value)}")
    if description.get("hooks"):
        rows = [[h["hook"], h["rule"], h["family"], _order(h)] for h in description["hooks"]]
        output.show(output.table("hooks", ["hook", "rule", "family", "order"], rows))
    if description.get("paper_claims"):
        rows = [
            [
                claim["id"] if claim["gate"] else f"{claim['id']} (reported only)",
                claim["sentence"],
                ", ".join(f"{scale} {output.figure(minutes)} min" for scale, minutes in claim["minutes"].items()),
                f"{claim['source']}{' (thresholds ours)' if claim['ours'] else ''}",
            ]
            for claim in description["paper_claims"]
        ]
        title = f"claims of the paper (plait verify {description['name']})"
        output.show(output.table(title, ["claim", "what it says", "cost", "source"], rows))
    if description.get("options"):
        prefix = f"{description['name']}." if description["kind"] == "plugin" else ""
        rows = [
            [
                f"{prefix}{o['name']}",
                o["type"],
                "required" if o["required"] else _value(o["default"]),
                o["bounds"],
                o["description"],
            ]
            for o in description["options"]
        ]
        output.show(output.table("options (--set KEY=VALUE)", ["key", "type", "default", "bounds", "what it is"], rows))


def _declared(instance: Any, word: str) -> list[str]:
    try:
        return sorted(map(str, getattr(instance, word)()))
    except Exception as error:  # declarations may depend on options that have no default
        return [f"depends on its options ({type(error).__name__}: {error})"]


def _registered(name: str, hook: str) -> dict[str, str]:
    from plait.planning import discovery

    return {entry: source.summary for entry, (owner, source) in discovery.collect(hook)[0].items() if owner == name}


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
