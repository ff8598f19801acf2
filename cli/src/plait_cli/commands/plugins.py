"""``plait plugins``."""

from __future__ import annotations

import typer

from plait_cli import output
from plait_cli.parameters import AsJson


def plugins(as_json: AsJson = False) -> None:
    """List the installed plugins; broken ones are named with the reason.

    Examples:

      plait plugins
      plait plugins --json
    """
    from plait.planning import discovery

    items = discovery.installed()
    if as_json:
        output.emit([item.as_dict() for item in items])
        return
    usable = [item for item in items if item.status == "ok"]
    rows = [("NAME", "VERSION", "SUMMARY")]
    rows += [(item.name, item.version, item.plugin.summary if item.plugin else "") for item in usable]
    head, *lines = output.aligned(rows).splitlines()
    typer.echo("\n".join([output.heading(head), *lines]))
    for item in items:
        if item.status != "ok":
            typer.secho(f"{item.name} ({item.distribution} {item.version}) is {item.status}: {item.reason}", fg="red")
    if len(items) == 1:
        typer.echo("\nMethods are plugins of their own: pip install plait-chase, for example.")
    typer.echo("\n`plait info NAME` describes one; `plait run -p NAME` uses it.")
