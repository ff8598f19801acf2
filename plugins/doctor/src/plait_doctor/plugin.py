"""plait's hooks of the doctor."""

from __future__ import annotations

from collections.abc import Mapping

import plait


class DoctorPlugin(plait.Plugin):
    """A tool: the command that looks at the installation."""

    name = "doctor"
    summary = "what is installed, out of date or broken, and what to type"
    contract = 1

    @plait.hookimpl
    def commands(self) -> Mapping[str, str]:
        """``plait doctor [PART]...``."""
        return {"doctor": "plait_doctor.command:doctor"}
