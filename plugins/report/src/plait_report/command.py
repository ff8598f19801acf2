"""``plait report``."""

from __future__ import annotations

import typer

from plait_cli import output
from plait_cli.parameters import AsJson, RunPath


def report(run: RunPath, as_json: AsJson = False) -> None:
    """Write the HTML report of a run again and print where it lies.

    That of a finished run on an object store is published there, too; what is printed is the copy on this machine.

    Examples:

      plait report runs/both
      plait report s3://bucket/runs/both
    """
    from plait.storage import places

    directory = places.existing(run)
    from plait_report import page

    written = page.write(directory.path)
    if directory.result() is not None:
        directory.publish()
    if as_json:
        output.emit({"run": directory.shown, "report": str(written)})
    else:
        typer.echo(written)
