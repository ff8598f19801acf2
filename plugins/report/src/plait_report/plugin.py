"""plait's hooks of the report. Importing this imports neither jinja2 nor matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

import plait


class ReportPlugin(plait.Plugin):
    """A tool: after every run a page to look at, and the command that writes it again."""

    name = "report"
    summary = "HTML report of every run"
    contract = 1

    @plait.hookimpl
    def commands(self) -> Mapping[str, str]:
        """``plait report RUN``."""
        return {"report": "plait_report.command:report"}

    @plait.hookimpl
    def artifacts(self) -> Mapping[str, str]:
        """``report.html`` in the run directory."""
        return {"report": "plait_report.page:write"}
