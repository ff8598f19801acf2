"""Where a run lies: a folder of this machine, or a URL of an object store. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from plait.errors import BadInput
from plait.storage.directory import RunDirectory

URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.+)")


def url_of(path: Path | str) -> str | None:
    """The URL that a path means, None for a path of this machine; ``Path("s3://b/r")`` has lost a slash."""
    match = URL.fullmatch(str(path).rstrip("/"))
    if match is None:
        return None
    return f"{match[1]}:///{match[2]}" if match[1] == "file" else f"{match[1]}://{match[2]}"


def at(path: Path | str) -> RunDirectory:
    """The run directory of a path, or of a URL (``s3://bucket/run``).

    Raises:
        BadInput: the store's package is not installed.
    """
    url = url_of(path)
    if url is None:
        return RunDirectory(path)
    from plait.storage.stores import StoredDirectory

    return StoredDirectory(url)


def existing(path: Path | str) -> RunDirectory:
    """The directory of a run that is there.

    Raises:
        BadInput: there is no run at ``path``.
    """
    directory = at(path)
    directory.fetch()
    if not directory.recipe_file.is_file():
        raise BadInput(f"{path} is not a run directory: it has no recipe.toml. `plait runs` lists what there is.")
    return directory
