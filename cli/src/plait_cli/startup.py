"""What makes short commands short, and how a long one gets the ordinary interpreter back.

``plait --help``, ``plait plugins`` and ``plait plan`` mostly import modules. Of their time a tenth went to the garbage
collector, which finds nothing then, and a twentieth each to pydantic reading the metadata of every installed package in
search of pydantic plugins and to taking the interpreter apart at the end.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

_PYDANTIC = "PYDANTIC_DISABLE_PLUGINS"
_own_setting = False


def short() -> None:
    """Begin as a short command; call it before anything else is imported."""
    global _own_setting
    gc.disable()
    _own_setting = _PYDANTIC not in os.environ
    os.environ.setdefault(_PYDANTIC, "__all__")


def long() -> None:
    """This command trains, or runs a plugin's code: everything as usual from here on."""
    global _own_setting
    gc.enable()
    if _own_setting:
        del os.environ[_PYDANTIC]
        _own_setting = False


def end(code: int) -> NoReturn:
    """End the process."""
    if not gc.isenabled():
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # the reader of a pipe went away
            code = code or 1
        os._exit(code)
    sys.exit(code)
