"""The console command ``plait``."""

from __future__ import annotations

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process with its exit code.

    ``plait --help``, ``plugins`` and ``plan`` mostly import modules. The garbage collector, which finds nothing then,
    would take a fifth of their time: it is off, and looks at nothing at the end. `plait_cli.groups.RootGroup` turns it
    on for every other command.
    """
    gc.disable()
    from plait_cli.app import app
    from plait_cli.output import open_streams

    open_streams()
    try:
        app(prog_name="plait")
    finally:
        if not gc.isenabled():
            gc.freeze()
    raise AssertionError("the root command ends in SystemExit")
