"""Draw the terminal of the README: real commands, their real output, as an SVG that loads nothing.

    python docs/make_terminal.py           run the commands and write docs/terminal.svg

It takes a minute or two: the second command is the demo. Its figures are of the machine that drew the picture.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

PICTURE = Path(__file__).resolve().parent / "terminal.svg"
PLAN = "plait plan -p chase -p fairsam --data toned-digits --model cnn"
RUN = "plait run examples/demo.toml --out runs/demo"
WIDTH = 96
ROWS = 14
"""How many lines of the run's metrics are shown: the picture is a taste."""


COLOURS = [
    (28, 35, 34),
    (230, 110, 95),
    (124, 196, 140),
    (226, 180, 95),
    (110, 160, 220),
    (190, 140, 200),
    (124, 196, 184),
    (222, 226, 220),
    (120, 130, 128),
    (240, 130, 110),
    (150, 215, 160),
    (240, 200, 120),
    (140, 185, 240),
    (210, 165, 220),
    (150, 215, 205),
    (245, 246, 240),
]
"""The sixteen colours of the terminal (red, green, blue), the bright ones last."""


def output(command: str, folder: Path) -> str:
    """What a command prints on a terminal of `WIDTH` columns, with its colours; progress (stderr) is left out.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    arguments = [sys.executable, "-m", "plait_cli", *shlex.split(command)[1:]]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    with subprocess.Popen(arguments, cwd=folder, env=environment, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while part := os.read(ours, 65536):
                parts.append(part)
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return b"".join(parts).decode().replace("\r\n", "\n").rstrip("\n")


def shortened(text: str) -> str:
    """The first metrics of a run's output, and its last lines."""
    lines = [line.rstrip() for line in text.splitlines()]
    first = next(number for number, line in enumerate(lines) if "task/" in line)
    last = [line for line in lines if re.match(r"(run|report|export):", line)]
    return "\n".join([*lines[first - 2 : first + ROWS], "  ...", *last])


def picture(parts: list[tuple[str, str]]) -> str:
    """The SVG of commands with their outputs."""
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    theme = TerminalTheme((28, 35, 34), (222, 226, 220), COLOURS[:8], COLOURS[8:])
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for number, (command, printed) in enumerate(parts):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "bold cyan"), (command, "bold")), soft_wrap=True)
        console.print(Text.from_ansi(printed), soft_wrap=True)
    svg = console.export_svg(title="plait", theme=theme, unique_id="plait")
    svg = re.sub(r"@font-face\s*\{[^}]*\}", "", svg)  # rich's font comes from a CDN
    return svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono, Menlo, Consolas")


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(PICTURE.parents[1] / "examples")
        parts = [(PLAN, output(PLAN, folder)), (RUN, shortened(output(RUN, folder)))]
    PICTURE.write_text(picture(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
