"""The options that `plait verify` and `plait sweep` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Processes of one thread each; default one a core.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, host:port, or local.")
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Where finished runs are kept; default ~/.cache/plait/verify."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run everything again, whatever is kept.")]
