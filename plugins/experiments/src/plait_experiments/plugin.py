"""plait's hooks of the experiments: three commands. Importing this imports neither torch nor scipy."""

from __future__ import annotations

from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.plugin import Plugin


class ExperimentsPlugin(Plugin):
    """A tool: many runs, and what can be said of them together."""

    name = "experiments"
    summary = "check a paper's claims, sweep over values and seeds, compare runs"
    contract = CONTRACT_VERSION

    @hookimpl
    def commands(self) -> dict[str, str]:
        """At the root of `plait`: this is a tool."""
        return {
            "verify": "plait_experiments.commands.verify:verify",
            "sweep": "plait_experiments.commands.sweep:sweep",
            "compare": "plait_experiments.commands.compare:compare",
        }
