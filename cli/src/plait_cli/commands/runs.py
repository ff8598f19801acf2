"""``plait runs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plait_cli import completion, output
from plait_cli.parameters import AsJson

if TYPE_CHECKING:
    from plait_cli.catalog import Seen

SHOWN = 3
"""How many metrics of a run the table shows."""


def runs(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Where to look; also s3://...", autocompletion=completion.run_directories),
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List run directories: what ran, how it ended, the main metrics.

    Examples:

      plait runs
      plait runs experiments/tuesday --json
      plait runs s3://bucket/runs
    """
    from plait.errors import BadInput
    from plait.storage.places import url_of
    from plait_cli.catalog import find, look

    url = url_of(folder)
    if url is None and not folder.is_dir() and folder != Path("runs"):
        raise BadInput(f"{folder}: no such folder.")
    listed = [look(directory) for directory in find(folder)]
    if as_json:
        output.emit([seen.as_dict() for seen in listed])
        return
    if not listed:
        typer.echo(f"no runs in {url or folder}. `plait run --epochs 1` makes one.")
        return
    rows = []
    for seen in listed:
        recipe = seen.recipe
        what = (
            ("+".join(recipe.plugins) or "-", recipe.data.name, recipe.model.name, recipe.seed)
            if recipe
            else ("-",) * 4
        )
        rows.append([seen.shown, *what, seen.status, main_figures(seen) or seen.reason])
    output.show(output.table("", ["run", "plugins", "data", "model", "seed", "status", "result"], rows))


def main_figures(seen: Seen) -> str:
    """The first metric of each plugin, of the exported model where it was measured."""
    chosen: dict[str, str] = {}
    order = sorted(seen.details, key=lambda name: name == "task/loss")
    for name in order:
        plugin = name.partition("/")[0]
        if not name.endswith("@export"):
            chosen.setdefault(plugin, name)
    texts = []
    for name in list(chosen.values())[:SHOWN]:
        detail = seen.details.get(f"{name}@export") or seen.details[name]
        texts.append(f"{name} {output.figure(detail.get('value'))}{detail.get('unit', '')}")
    return ", ".join(texts)
