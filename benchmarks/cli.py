"""Start-up time of the command line over that of the imports no Typer program can do without.

The limit is ``python -c "import typer, rich, pydantic, pluggy"``; commands and limit are started in turns and the best
of N is compared. Byte code is cached, as after any ``pip install``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

LIMIT = [sys.executable, "-c", "import typer, rich, pydantic, pluggy"]
PLAIT = str(Path(sys.executable).with_name("plait"))
COMMANDS = {
    "plait --help": [PLAIT, "--help"],
    "plait plugins": [PLAIT, "plugins"],
    "plait plan -p chase -p fairsam": [PLAIT, "plan", "-p", "chase", "-p", "fairsam"],
}


def main() -> None:
    """Print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        best = dict.fromkeys(["limit", *COMMANDS], float("inf"))
        for turn in range(repeats + 1):
            for name, command in {"limit": LIMIT, **COMMANDS}.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if turn:  # the first turn fills the caches
                    best[name] = min(best[name], time.perf_counter() - start)
    figures = {n: {"milliseconds": 1e3 * t, "ratio": t / best["limit"]} for n, t in best.items()}
    print(json.dumps({"machine": machine(), "cli": figures}, indent=2))


if __name__ == "__main__":
    main()
