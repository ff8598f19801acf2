"""The interpreter, the command ``plait`` and the terminal."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from plait_doctor.finding import Case, Finding
from plait_doctor.requirements import family

NARROW = 80
"""Columns below which tables fold."""


def python(case: Case) -> Iterator[Finding]:
    """Interpreter, platform and environment, and whether every plait distribution accepts the interpreter."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    inside = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    place = f"environment {sys.prefix}" if inside else f"no virtual environment ({sys.prefix})"
    details = {
        "version": version,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "virtual": inside,
        "platform": platform.platform(),
    }
    for dist in family().values():
        fields = dist.metadata  # it has no get before Python 3.12
        wanted = fields["Requires-Python"] if "Requires-Python" in fields else ""  # noqa: SIM401
        if wanted and not SpecifierSet(wanted).contains(version, prereleases=True):
            yield Finding(
                "python",
                "problem",
                f"Python {version} does not fit {wanted}, which {dist.name} {dist.version} asks for",
                "It was installed for another Python, and may fail anywhere.",
                f"make an environment with Python {wanted} and install plait there",
                details=details,
            )
            return
    yield Finding("python", "ok", f"Python {version}, {platform.platform()}, {place}", details=details)


def command(case: Case) -> Iterator[Finding]:
    """Whether ``plait`` on the PATH is the one of this interpreter."""
    try:
        own = _script()
    except PackageNotFoundError:
        yield Finding("command", "ok", "plait-cli is not installed; plait.run() works", fix="pip install plait-cli")
        return
    on_path = shutil.which("plait")
    details = {"own": str(own), "found": on_path}
    instead = f"{sys.executable} -m plait_cli, or first: export PATH={str(own.parent)!r}:$PATH"
    if on_path is None:
        why = "The shell does not find the command."
        yield Finding("command", "warning", "`plait` is not on the PATH", why, instead, details=details)
    elif Path(on_path).resolve() != own.resolve():
        why = f"It sees other packages than {sys.executable}, whose command is {own}."
        yield Finding("command", "warning", f"`plait` on the PATH is {on_path}", why, instead, details=details)
    else:
        yield Finding("command", "ok", f"`plait` is {on_path}", details=details)


def _script() -> Path:
    """The command that the installed plait-cli brought."""
    dist = distribution("plait-cli")
    for file in dist.files or ():
        if file.name in ("plait", "plait.exe"):
            return Path(os.path.normpath(str(dist.locate_file(file))))
    return Path(sysconfig.get_path("scripts")) / "plait"


def terminal(case: Case) -> Iterator[Finding]:
    """Colour, width and characters of what the user sees."""
    screen = sys.__stdout__
    encoding = (getattr(screen, "encoding", None) or "ascii").lower()
    shown = bool(screen is not None and screen.isatty())
    width = shutil.get_terminal_size().columns
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    details = {"terminal": shown, "width": width, "encoding": encoding, "colour": shown and not plain}
    if encoding.replace("-", "") not in ("utf8", "utf8sig"):
        why = "Names and formulas that it cannot write end a command with an error."
        fix = "export PYTHONUTF8=1, or a locale such as LANG=C.UTF-8"
        yield Finding("terminal", "warning", f"the output's encoding is {encoding}", why, fix, details=details)
    elif shown and width < NARROW:
        why = f"Tables are made for {NARROW} columns or more and fold."
        yield Finding("terminal", "warning", f"{width} columns", why, "widen the window, or --json", details=details)
    elif shown:
        colour = "no colour (NO_COLOR or TERM)" if plain else "colour"
        yield Finding("terminal", "ok", f"{width} columns, {encoding}, {colour}", details=details)
    else:
        yield Finding("terminal", "ok", f"no terminal (a pipe or a file), {encoding}", details=details)
