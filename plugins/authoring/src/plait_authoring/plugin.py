"""The command that writes a new plugin."""

from __future__ import annotations

from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.plugin import Plugin


class AuthoringPlugin(Plugin):
    """For authors of plugins: `plait new` begins one, and the conformance kit checks it against the hook contract."""

    name = "authoring"
    summary = "begin a plugin with plait new, check it with pytest --plait-plugin"
    contract = CONTRACT_VERSION

    @hookimpl
    def commands(self) -> dict[str, str]:
        """The command, at the root: this is a tool."""
        return {"new": "plait_authoring.command:new"}
