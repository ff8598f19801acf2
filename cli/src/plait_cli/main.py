"""The console command ``plait``."""

from __future__ import annotations

from typing import NoReturn

from plait_cli.app import app


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    app(prog_name="plait")
    raise AssertionError("the root command ends in SystemExit")
