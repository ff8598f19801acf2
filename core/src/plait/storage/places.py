"""Where a run lies: a folder of this machine, or a URL of an object store. No torch here."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from plait.errors import BadInput
from plait.storage.directory import RunDirectory

GROUP = "plait.places"
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
        BadInput: nothing installed opens runs at URLs, or the store's own package is missing.
    """
    url = url_of(path)
    directory: RunDirectory = RunDirectory(path) if url is None else stores(url).StoredDirectory(url)
    return directory


def stores(url: str) -> Any:
    """The installed module that opens runs at URLs: the first entry point of the group ``plait.places``.

    It has ``StoredDirectory(url)``, a `RunDirectory`, and ``published_below(url, depth)``, an iterator of them.

    Raises:
        BadInput: there is none, or it cannot be imported.
    """
    entry = next(iter(entry_points(group=GROUP)), None)
    if entry is None:
        raise BadInput(f'{url}: no installed package opens runs on object stores; see "Object stores" on the site.')
    try:
        return entry.load()
    except ImportError as error:
        raise BadInput(f"{url}: {entry.value} cannot be imported: {error}") from error


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
