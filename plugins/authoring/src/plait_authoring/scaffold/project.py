"""Put a new plugin on disk: the whole folder or nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from plait.errors import BadInput
from plait_authoring.scaffold.contents import render
from plait_authoring.scaffold.hooks import choose_hooks
from plait_authoring.scaffold.names import check_name


def new_plugin(name: str, hooks: Iterable[str] = (), path: Path | str = ".") -> Path:
    """Write a complete plugin package that installs, runs and passes its tests as it stands.

    Args:
        name: of the plugin, as in ``plait run -p NAME``.
        hooks: hooks or families that it begins with; none gives a loss term and metrics (`choose_hooks`).
        path: the folder in which ``plait-NAME`` is made; made itself when missing.

    Returns:
        The new folder.

    Raises:
        BadInput: a bad or taken name, an unknown hook, an existing folder, or a path that cannot be written to. Then
            nothing is left behind.
    """
    names = check_name(name)
    files = render(names, choose_hooks(hooks))
    path = Path(path)
    target = path / names.distribution
    if os.path.lexists(target):
        raise BadInput(
            f"{target} exists already, and nothing is ever overwritten. Choose another --path or name, or move it away."
        )
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file; --path is the folder in which {names.distribution} is made.")
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    temporary = path / f".{names.distribution}.{os.getpid()}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            place = temporary / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise BadInput(f"{target} cannot be written: {error}. Choose another --path.") from error
        raise
    return target


def next_commands(name: str, folder: Path) -> list[tuple[str, str]]:
    """What to type after `new_plugin`: pairs of a command and what it does."""
    return [
        (f"cd {shlex.quote(str(folder))}", ""),
        ('pip install -e ".[test]"', "make it known to plait"),
        ("pytest", "its tests, and the conformance of the plugin with the contract"),
        (f"plait run -p {name}", "train with it, on small generated images"),
        (f"plait verify {name}", "its claims, on this machine"),
    ]
