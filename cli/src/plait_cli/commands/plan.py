"""``plait plan``."""

from __future__ import annotations

import typer

from plait_cli import output
from plait_cli.parameters import AsJson, DataName, ModelName, PluginNames, RecipeFile, Settings, assemble

REFUSED = 3


def plan(
    recipe: RecipeFile = None,
    plugins: PluginNames = None,
    data: DataName = None,
    model: ModelName = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say whether plugins can work together, in which order they act and why; nothing is started.

    Exit code 3 when they cannot, with what to change.

    Examples:

      plait plan -p chase -p fairsam
      plait plan recipe.toml --set chase.density=0.05
      plait plan -p fairsam --data tiny-images --json
    """
    from plait.planning.plan import make_plan

    judged = make_plan(assemble(recipe, plugins, settings, data=data, model=model))
    if as_json:
        output.emit(judged.as_dict())
    else:
        typer.echo(coloured(str(judged)))
    if not judged.ok:
        raise typer.Exit(REFUSED)


def coloured(text: str) -> str:
    """The plan's text with its headings bold and its judgement green or red, where the terminal can."""
    title, *lines = text.splitlines()
    styled = [output.heading(title)]
    for line in lines:
        refused, closing, message = line.partition("): ")
        if line.startswith("refused (") and closing:
            line = typer.style(refused + closing, fg="red", bold=True) + message
        elif line.startswith("ok: "):
            line = typer.style(line, fg="green")
        elif line.startswith(("HOOK ", "OWNERSHIP", "NOT CHECKED YET")):
            line = output.heading(line)
        styled.append(line)
    return "\n".join(styled)
