"""``plait new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait_cli import output
from plait_cli.parameters import AsJson

WHAT = {
    "method.py": "the method, in plain PyTorch",
    "options.py": "its options, with bounds",
    "plugin.py": "what it needs, and its hooks",
    "claims.toml": "what it claims, for plait verify",
    "data.py": "a data source",
    "model.py": "a model",
    "artifacts.py": "files made of every run",
    "commands.py": "commands: plait NAME ...",
    "test_method.py": "the method against calculations by hand",
    "test_plugin.py": "tiny runs in which every option counts",
    "test_conformance.py": "the plugin against the hook contract",
    "README.md": "what to replace, and how to publish",
    "pyproject.toml": "the package, and the line by which plait finds it",
}
"""What is worth opening in a new package, in this order."""


def _complete_hooks(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Hooks and their families after the last comma, without those that are named before it."""
    from plait.hooks import HookSpecs, hook_names
    from plait_authoring.scaffold import families

    before, comma, begun = incomplete.rpartition(",")
    meanings = {hook: (getattr(HookSpecs, hook).__doc__ or "").partition("\n")[0] for hook in hook_names()}
    meanings |= {family: f"the hook {hook}" for family, hook in families().items()}
    return [
        (f"{before}{comma}{word}", meaning.replace("[", "(").replace("]", ")"))  # shells show it through rich
        for word, meaning in meanings.items()
        if word.startswith(begun) and word not in before.split(",")
    ]


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plugin's name, as in plait run -p NAME.")],
    hooks: Annotated[
        list[str] | None,
        typer.Option(
            "--hooks",
            metavar="HOOK,...",
            help="Hooks to begin with, or families (loss), or all; default a loss term and metrics.",
            autocompletion=_complete_hooks,
        ),
    ] = None,
    path: Annotated[Path, typer.Option("--path", metavar="DIR", help="Where the folder plait-NAME is made.")] = Path(
        "."
    ),
    as_json: AsJson = False,
) -> None:
    """Write the package of a new plugin: it installs, runs and passes its tests as it is.

    Nothing is ever overwritten, and a refusal leaves nothing behind.

    Examples:

      plait new attic
      plait new attic --hooks loss,optimizer_step --path ~/code
      plait new attic --hooks update_masks --hooks evaluate --json
    """
    from plait_authoring.scaffold import choose_hooks, new_plugin, next_commands

    words = [word for text in hooks for word in text.split(",")] if hooks is not None else []
    chosen = choose_hooks(words)
    folder = new_plugin(name, chosen, path)
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=_rank)
    commands = next_commands(name, folder)
    if as_json:
        output.emit(
            {
                "plugin": name,
                "path": folder.resolve(),
                "hooks": chosen,
                "files": sorted(str(file.relative_to(folder)) for file in files),
                "next": [command for command, _ in commands],
            }
        )
        return
    typer.echo(output.heading(f"{folder} with {', '.join(chosen)}"))
    rows = [(str(file.relative_to(folder)), WHAT[file.name]) for file in files if file.name in WHAT]
    output.show(output.table("", ["file", "what"], rows))
    typer.echo(output.heading("Next"))
    typer.echo(output.aligned(commands, indent="  "))


def _rank(file: Path) -> int:
    return list(WHAT).index(file.name) if file.name in WHAT else len(WHAT)
