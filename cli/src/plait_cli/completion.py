"""Shell completion: names, run directories and ``--set`` keys, from declarations (no torch), and never an error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

Items = list[tuple[str, str]]


def _safe(complete: Callable[[typer.Context, str], Iterable[tuple[str, str]]]) -> Callable[[typer.Context, str], Items]:
    """Keep what starts with the incomplete word; an error completes nothing instead of spoiling the prompt."""

    @functools.wraps(complete)
    def completed(ctx: typer.Context, incomplete: str) -> Items:
        try:
            # the shells show the help through rich, which would read brackets as markup
            offered = [(name, help.replace("[", "(").replace("]", ")")) for name, help in complete(ctx, incomplete)]
        except Exception:
            return []
        return [(name, help) for name, help in offered if name.startswith(incomplete)]

    # Typer matches parameters by their annotations, which `wraps` would leave as text of this module
    completed.__annotations__ = {"ctx": typer.Context, "incomplete": str}
    return completed


@_safe
def plugins(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Usable plugins that are not on the command line yet."""
    from plait.planning import discovery

    given = _given(ctx, "plugins")
    for name, item in discovery.active_registry().items():
        if name != discovery.BUILTIN and name not in given:
            yield name, item.plugin.summary if item.plugin else ""


@_safe
def data(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Data sources of every usable plugin."""
    return _components("data_sources")


@_safe
def models(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Models of every usable plugin."""
    return _components("models")


@_safe
def names(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Whatever ``plait info`` can describe."""
    from plait.planning import discovery

    yield from (
        (name, item.plugin.summary if item.plugin else "") for name, item in discovery.active_registry().items()
    )
    yield from _components("data_sources")
    yield from _components("models")
    yield "recipe", "every key of a recipe"


@_safe
def devices(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """The forms of a device."""
    return iter([("auto", ""), ("cpu", ""), ("cuda", ""), ("cuda:0", ""), ("mps", "")])


@_safe
def recipes(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """TOML files and folders."""
    for path in _entries(incomplete):
        if path.is_dir():
            yield f"{path}/", ""
        elif path.suffix == ".toml":
            yield str(path), ""


@_safe
def run_directories(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Runs under ``runs/``, or under what is typed."""
    from plait_cli.catalog import find

    shown = set()
    roots = (
        [Path("runs"), *(path for path in _entries(incomplete) if path.is_dir())]
        if not incomplete
        else _entries(incomplete)
    )
    for root in roots:
        for run in find(root):
            shown.add(str(run.path))
    yield from ((name, "") for name in sorted(shown))
    if incomplete:
        yield from ((f"{path}/", "") for path in _entries(incomplete) if path.is_dir() and str(path) not in shown)


@_safe
def checkpoints(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Checkpoints of the run on the command line."""
    from plait.storage import places

    return ((path.stem, "") for path in places.existing(ctx.params["run"]).saved_checkpoints())


@_safe
def settings(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """``--set`` keys; after ``=`` the values of options that have a few fixed ones."""
    typed, equals, _ = incomplete.partition("=")
    for key, field in setting_fields(ctx):
        if not equals:
            yield f"{key}=", field.description or ""
        elif key == typed:
            yield from ((f"{key}={value}", "") for value in _fixed_values(field.annotation))


def setting_fields(ctx: typer.Context) -> Iterator[tuple[str, Any]]:
    """Every key that ``--set`` takes, with its pydantic field, for the plugins, data and model on the command line.

    Without any plugin on the command line the options of all of them are offered.
    """
    from plait.declare.recipe import Component, Recipe
    from plait.planning import discovery

    base = Recipe.parse({})
    if (path := ctx.params.get("recipe")) is not None:
        base = Recipe.load(path)
    for name, field in Recipe.model_fields.items():
        inner = field.annotation
        if name == "plugins" or inner is Component:
            continue
        nested = getattr(inner, "model_fields", None)
        yield from ((f"{name}.{key}", sub) for key, sub in nested.items()) if nested else [(name, field)]
    for kind, hook in (("data", "data_sources"), ("model", "models")):
        chosen = ctx.params.get(kind) or getattr(base, kind).name or discovery.FALLBACK[hook]
        yield f"{kind}.name", Component.model_fields["name"]
        source = discovery.collect(hook)[0].get(chosen, ("", None))[1]
        if source is not None:
            yield from ((f"{kind}.{key}", sub) for key, sub in source.options.model_fields.items())
    usable = discovery.active_registry()
    wanted = {*_given(ctx, "plugins"), *base.plugins} & usable.keys() or usable.keys()
    for name in sorted(wanted):
        plugin = usable[name].plugin
        if plugin is not None:
            yield from ((f"{name}.{key}", sub) for key, sub in _fields(plugin.Options))


def plugins_with_commands() -> dict[str, str]:
    """Usable plugins that add commands, with their summaries."""
    from plait.planning import discovery

    usable = discovery.active_registry().items()
    return {name: item.plugin.summary for name, item in usable if item.plugin and "commands" in item.hooks}


def _fields(model: type[BaseModel]) -> Iterable[tuple[str, Any]]:
    return model.model_fields.items()


def _components(hook: str) -> Iterator[tuple[str, str]]:
    from plait.planning import discovery

    return ((name, source.summary) for name, (_, source) in discovery.collect(hook)[0].items())


def _given(ctx: typer.Context, name: str) -> list[str]:
    return list(ctx.params.get(name) or ())


def _entries(incomplete: str) -> list[Path]:
    """What lies in the folder of a half-typed path."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _fixed_values(annotation: Any) -> list[str]:
    from typing import Literal, get_args, get_origin

    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return []
