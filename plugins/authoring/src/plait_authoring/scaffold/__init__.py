"""A complete plugin package to start from: ``plait new NAME``.

`new_plugin` writes a folder with its own ``pyproject.toml``, a method in plain PyTorch, the plugin around it, claims
and tests, for any choice of hooks. Whatever was chosen works as it stands, so that an author replaces working code.

Templates are in ``templates/``: ``package/`` has a file for every file written, ``hooks/`` one for every hook, with a
block for each place where that hook's part belongs.
"""

from __future__ import annotations

from plait_authoring.scaffold.hooks import DEFAULT_HOOKS, choose_hooks, families
from plait_authoring.scaffold.names import Names, check_name
from plait_authoring.scaffold.project import new_plugin, next_commands

__all__ = ["DEFAULT_HOOKS", "Names", "check_name", "choose_hooks", "families", "new_plugin", "next_commands"]
