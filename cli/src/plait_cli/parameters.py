"""The arguments and options that several commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait_cli import completion

if TYPE_CHECKING:
    from plait.declare.recipe import Recipe

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE.toml", help="A recipe file; options on the command line win.", autocompletion=completion.recipes
    ),
]
PluginNames = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", "-p", metavar="NAME", help="Use this plugin; repeatable.", autocompletion=completion.plugins
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME", help="A data source, or package.module:function.", autocompletion=completion.data
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="A model, or package.module:function.", autocompletion=completion.models
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option: chase.density=0.1, optimizer.lr=0.01, data.size=16; repeatable.",
        autocompletion=completion.settings,
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", help="Passes over the training data.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Optimizer steps, instead of epochs.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="auto, cpu, mps, cuda or cuda:N.", autocompletion=completion.devices),
]
Processes = Annotated[
    int | None,
    typer.Option("--nproc", metavar="N", help="Share the run between N processes of this machine (torch.distributed)."),
]
Restarts = Annotated[
    int, typer.Option("--restarts", metavar="N", help="With --nproc: go on up to N times after a process was lost.")
]
RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory; also s3://...", autocompletion=completion.run_directories),
]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a mapping; the last one of a key wins.

    Raises:
        BadInput: a text without a key or without ``=``.
    """
    from plait.declare.recipe import parse_value
    from plait.errors import BadInput

    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise BadInput(f"--set {text}: write it as KEY=VALUE, for example --set optimizer.lr=0.01.")
        values[key] = parse_value(value.strip())
    return values


def assemble(
    recipe: Path | None, plugins: Sequence[str] | None, settings: Sequence[str] | None, **changes: Any
) -> Recipe:
    """The recipe that a command line asks for.

    Raises:
        BadInput: any unknown name or key, or a bad value.
    """
    from plait.declare.recipe import assemble
    from plait.errors import BadInput
    from plait.planning import discovery

    if recipe is not None and not recipe.exists() and str(recipe) in discovery.active_registry():
        raise BadInput(f"{recipe}: no such recipe file. To use the plugin of that name: -p {recipe}.")
    return assemble(recipe, plugins=plugins or (), settings=parse_settings(settings or ()), **changes)
