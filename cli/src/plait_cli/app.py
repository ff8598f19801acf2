"""The root command, what ends it, and with which exit code.

What is imported here is paid for by every call, so the commands live in modules that are imported when they are called,
and plait-core is imported inside the commands.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from plait_cli import errors, output
from plait_cli.groups import COMMANDS, TOOLS, RootGroup


class PlaitGroup(RootGroup):
    """The root command. Every error becomes a few lines on stderr (with ``--json`` also a document on stdout)."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; always ends in `SystemExit`, as a program does."""
        given = list(sys.argv[1:] if args is None else args)
        own = next((a for a in given if not a.startswith("-")), None) in {*COMMANDS, *TOOLS}
        as_json = "--json" in given and "--help" not in given
        name = prog_name or "plait"
        with contextlib.ExitStack() as stack:
            if as_json and own:
                # whatever a plugin or a library prints must not get between the caller and the one document
                stack.enter_context(output.document_only())
            try:
                code = super().main(given, name, complete_var, False, windows_expand_args, **extra)
            except (Exception, KeyboardInterrupt) as error:
                code = errors.report(error, as_json=as_json)
            code = code if isinstance(code, int) else 0
            failure = output.undelivered()
            if failure is not None and code == 0:
                code = 1
                if not isinstance(failure, BrokenPipeError):  # a reader may leave when it has seen enough
                    output.complain("error", f"stdout could not be written: {failure.strerror or failure}.")
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # Typer would end without a word
            from plait.errors import Interrupted

            raise Interrupted("stopped.") from None


app = typer.Typer(
    cls=PlaitGroup,
    name="plait",
    no_args_is_help=True,
    rich_markup_mode=None,  # the import behind Typer's boxes costs as much as all the rest of `plait --help`
    pretty_exceptions_enable=False,
    epilog="Plugins bring commands of their own: plait NAME COMMAND. `plait info NAME` lists them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        import plait
        from plait_cli import __version__

        typer.echo(f"plait {__version__} (plait-core {plait.__version__})")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Published machine-learning methods, woven into one training run.

    \b
    Examples:
      plait plugins                       what is installed
      plait plan -p chase -p fairsam      can they work together, and in which order
      plait run --epochs 1                train the built-in model on the built-in data
      plait run -p chase -p fairsam       train one network with both methods
    """
