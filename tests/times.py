"""A table of the last `make test`: seconds and tests of each file, the slowest first.

python tests/times.py build/tests.xml
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree


def times(report: Path) -> dict[str, list[float]]:
    """File -> the seconds of its tests, set-up and what comes after it included."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        parts = case.get("classname", "").split(".")
        modules = [n for n, part in enumerate(parts) if part.startswith("test_")]  # a class of tests may follow
        file = "/".join(parts[: modules[-1] + 1]) + ".py" if modules else case.get("name", "")
        seconds[file].append(float(case.get("time", 0)))
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """A line for every package, which has a budget (a plugin 60 s), then one for every file, then the sum."""
    packages: dict[str, list[float]] = defaultdict(list)
    for file, spent in seconds.items():
        packages[file.rpartition("/tests/")[0] or file.partition("/")[0]] += spent
    lines = []
    for counted in (packages, seconds):
        rows = sorted(counted.items(), key=lambda row: -sum(row[1]))
        lines += [f"{sum(spent):8.1f} s {len(spent):5d} tests  {name}" for name, spent in rows]
        lines.append("")
    every = [value for spent in seconds.values() for value in spent]
    return "\n".join([*lines, f"{sum(every):8.1f} s {len(every):5d} tests  all, over all workers"])


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("There is no report of a test run yet: make test writes one.")
    print(table(times(Path(sys.argv[1]))))
