"""The console command ``plait``."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    from plait_cli import startup

    startup.short()
    from plait_cli.app import app  # imported after `short`: imports are what a short command spends its time on

    try:
        app(prog_name="plait")
    except SystemExit as ended:
        startup.end(ended.code if isinstance(ended.code, int) else 0)
    raise AssertionError("the root command ends in SystemExit")
