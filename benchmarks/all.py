"""Run benchmarks, each in a process of its own, and keep their figures: all of them in ``benchmarks/results.json``.

``python benchmarks/all.py cli path loop --to second-edition.json`` runs these, into that file beside this one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "cli",
    "path",
    "loop",
    "steps",
    "weave",
    "shrunk",
    "scale",
    "glt",
    "dbadfl",
    "fairprune",
    "flamefinder",
    "dydca",
)


def main() -> None:
    """Print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"default all: {', '.join(NAMES)}"
    )
    parser.add_argument("--to", default="results.json", metavar="FILE")
    given = parser.parse_args()
    results: dict[str, object] = {}
    for name in given.names or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, HERE / f"{name}.py"], check=True, stdout=subprocess.PIPE, text=True)
        results.update(json.loads(done.stdout))
    text = json.dumps(results, indent=2)
    (HERE / given.to).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
