"""Start-up time of the command line over that of the imports no Typer program can do without.

The limit is ``python -c "import typer, rich, pydantic, pluggy"``; commands and limit are started in turns and the best
of N is compared: by the clock, and by processor time, which other work on the machine disturbs less. Byte code is
cached, as after any ``pip install``. Beside the plugins that are installed here, strangers are made until there are 10,
and 50: a package each, with a plugin of two hooks, options by `plait.later`, and metadata that hold a README.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine
from plait.planning import discovery

LIMIT = [sys.executable, "-c", "import typer, rich, pydantic, pluggy"]
PLAIT = str(Path(sys.executable).with_name("plait"))
COMMANDS = {
    "plait --help": [PLAIT, "--help"],
    "plait plugins": [PLAIT, "plugins"],
    "plait plan -p chase -p fairsam": [PLAIT, "plan", "-p", "chase", "-p", "fairsam"],
}
COUNTS = (10, 50)

PLUGIN = '''"""A plugin."""
from plait import Plugin, hookimpl, later

class Stranger(Plugin):
    """A plugin."""

    name, summary, contract, Options = "{name}", "number {name}", 1, later("{module}.options:StrangerOptions")

    @hookimpl
    def loss_terms(self, trainer, outputs, batch, per_example):
        """One term."""
        return {{"zero": 0 * per_example.mean()}}

    @hookimpl
    def evaluate(self, trainer, predictions):
        """No figure."""
        return {{}}
'''
OPTIONS = '''"""Options."""
from pydantic import Field
from plait import Options

class StrangerOptions(Options):
    """Options."""

    strength: float = Field(1.0, ge=0, description="how strong")
'''
README = "# A plugin\n\n" + "What it does, in one of forty lines of its README.\n" * 40


def make_strangers(site: Path, count: int) -> None:
    """Packages ``stranger-0``, ``stranger-1``, ... as pip would leave them in ``site``."""
    for number in range(count):
        name, module = f"stranger-{number}", f"stranger_{number}"
        package, info = site / module, site / f"{module}-0.1.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text('"""A plugin."""\n', encoding="utf-8")
        (package / "plugin.py").write_text(PLUGIN.format(name=name, module=module), encoding="utf-8")
        (package / "options.py").write_text(OPTIONS, encoding="utf-8")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n\n{README}"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[plait]\n{name} = {module}.plugin:Stranger\n", encoding="utf-8")


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Of one run of a command: by the clock, and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(plugins: int, repeats: int) -> dict[str, dict[str, float]]:
    """Best times and their ratios to the limit with so many plugins installed."""
    really = sum(item.name != discovery.BUILTIN for item in discovery.installed())
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        make_strangers(site, max(0, plugins - really))
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/cache", "PYTHONPATH": str(site)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {"limit": LIMIT, **COMMANDS}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(repeats + 1):
            for name, command in commands.items():
                taken = seconds(command, environment)
                if turn:  # the first turn fills the caches
                    times[name].append(taken)
    best = {name: [min(column) for column in zip(*taken, strict=True)] for name, taken in times.items()}
    clock, processor = best["limit"]
    return {n: {"milliseconds": 1e3 * c, "ratio": c / clock, "cpu_ratio": p / processor} for n, (c, p) in best.items()}


def main() -> None:
    """Print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    figures = {f"{count} plugins": measured(count, repeats) for count in COUNTS}
    print(json.dumps({"machine": machine(), "cli": figures}, indent=2))


if __name__ == "__main__":
    main()
