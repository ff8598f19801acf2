"""Run every benchmark, each in a process of its own, and write their figures to ``benchmarks/results.json``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("cli", "path", "loop", "steps", "shrunk", "scale", "glt", "dbadfl")


def main() -> None:
    """Print and keep all figures."""
    found: dict[str, object] = {}
    for name in NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, HERE / f"{name}.py"], check=True, stdout=subprocess.PIPE, text=True)
        found.update(json.loads(done.stdout))
    text = json.dumps(found, indent=2)
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
