"""Whose code raised an error: the user's own file, a plugin, a library, or plait itself."""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NEUTRAL = frozenset({"torch", "numpy", "pydantic", "pydantic_core", "pluggy", "accelerate", "typer", "click"})
"""Libraries that raise because of whoever called them, as Python's own do."""
FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)


@dataclass(frozen=True)
class Owner:
    """Whose file it is.

    Attributes:
        kind: ``own`` (the user's), ``plugin``, ``library``, ``plait``, or ``neutral`` (Python, torch, ...).
        name: ``plugin 'x' (plait-x 0.3)``, ``scipy 1.11.1``, ``torch``; empty where there is none.
        root: the folder in which its top-level module lies.
    """

    kind: str
    name: str
    root: Path


@dataclass(frozen=True)
class Origin:
    """The frame that answers for an error.

    Attributes:
        owner: whose code it is.
        place: ``nets.py, line 3``.
        through: the library between that frame and the error: ``torch``, ``scipy 1.11.1 (in scipy/x.py, line 9)``.
    """

    owner: Owner
    place: str
    through: str = ""


def origin(error: BaseException) -> Origin | None:
    """The innermost frame that belongs neither to Python nor to a library; a library's where there is no other."""
    through, library = "", None
    for file, line in frames(error):
        owner = owner_of(file)
        source = Origin(owner, f"{shown(file, owner)}, line {line}", through)
        if owner.kind == "library":
            library = library or source
            through = through or f"{owner.name} (in {source.place})"
        elif owner.kind == "neutral":
            through = through or owner.name
        else:
            return source
    return library


def frames(error: BaseException) -> list[tuple[str, int]]:
    """(file, line) from the place of the error outwards, also of one that a loader process raised."""
    places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    for note in getattr(error, "__notes__", ()):
        if note.startswith("Traceback "):  # see plait.data.streams
            places += [(file, int(line)) for file, line in FRAME.findall(note)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 0))
    return places[::-1]


@functools.cache
def owner_of(file: str) -> Owner:
    """Whose file it is, by where it lies and by what is installed."""
    path = Path(file)
    if not path.is_absolute():  # <string>, or a compiled module
        return Owner("neutral", "", path)
    above = [Path(entry) for entry in sys.path if entry and path.is_relative_to(entry)]
    root = max(above, key=lambda folder: len(folder.parts), default=path.parent)
    module = path.relative_to(root).parts[0].removesuffix(".py")
    installed = bool({"site-packages", "dist-packages"} & set(path.parts))
    if not installed and any(path.is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")):
        return Owner("neutral", "", root)
    if module in ("plait", "plait_cli"):
        return Owner("plait", "plait", root)
    if installed and module in NEUTRAL:
        return Owner("neutral", module, root)
    names = metadata.packages_distributions().get(module, []) if installed else []
    for entry in (entry for group in ("plait", "plait.places") for entry in metadata.entry_points(group=group)):
        brought = entry.dist
        if brought is not None and (
            entry.module.partition(".")[0] == module  # also where the source is elsewhere (pip install -e)
            or brought.name in names
            or (not installed and Path(str(brought.locate_file(""))) == root)
        ):
            return Owner("plugin", f"plugin {entry.name!r} ({brought.name} {brought.version})", root)
    if installed:
        versions = [f"{name} {metadata.version(name)}" for name in names[:1]]
        return Owner("library", (versions or [module])[0], root)
    return Owner("own", "", root)


def shown(file: str, owner: Owner) -> str:
    """A file as it is named: from the user's folder, or from the folder of its package."""
    path = Path(file)
    folder = Path(os.getcwd()) if owner.kind == "own" else owner.root
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else file


def sentence(error: BaseException, reason: str) -> str:
    """Who raised it, where, and why.

    Args:
        error: one that plait did not raise on purpose.
        reason: ``ValueError: three of them``.
    """
    source = origin(error)
    if source is None:
        return reason
    kind, name = source.owner.kind, source.owner.name
    through = f"{source.through}, called from there: " if source.through.partition(" ")[2] else ""
    if kind == "own":
        return f"raised in your own file {source.place}: {through}{reason}"
    if kind == "plugin":
        return f"{name} raised {through}{reason} (in {source.place}). Please tell its author."
    if kind == "library":
        return f"{name} raised {reason} (in {source.place})."
    by = f"{source.through} raised " if source.through else ""
    return f"{by}{reason} (in {source.place}). {suspicion(source, error)}"


def suspicion(source: Origin, error: BaseException) -> str:
    """What is behind an error that rises in plait's own code: it works on what others gave it."""
    if own := own_modules():
        return f"What {' or '.join(own)} gives may not be what plait takes; if it is, this is a bug of plait."
    if source.through or type(error) is RuntimeError:
        return "The data and the model may not fit each other; if they do, this is a bug of plait."
    return "This is a bug of plait; please report it."


def own_modules() -> list[str]:
    """The user's own files among what is imported, from the folder in which the user stands."""
    files = [str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())]
    here = [file for file in files if file and Path(file).is_relative_to(os.getcwd())]
    return sorted({shown(file, owner_of(file)) for file in here if owner_of(file).kind == "own"})
