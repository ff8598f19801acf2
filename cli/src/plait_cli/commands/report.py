"""``plait report``."""

from __future__ import annotations

import typer

from plait_cli import output, startup
from plait_cli.parameters import AsJson, RunPath


def report(run: RunPath, as_json: AsJson = False) -> None:
    """Write the HTML report of a run again and print where it lies.

    That of a finished run on an object store is published there, too; what is printed is the copy on this machine.

    Examples:

      plait report runs/both
      plait report s3://bucket/runs/both
    """
    from plait.directory import RunDirectory

    directory = RunDirectory.existing(run)
    startup.long()
    from plait.report import write_report

    write_report(directory)
    if directory.result() is not None:
        directory.publish()
    if as_json:
        output.emit({"run": directory.shown, "report": str(directory.report)})
    else:
        typer.echo(directory.report)
