"""The package index: newer releases; it is asked only when the user says ``--online``."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import Distribution
from typing import Any

from packaging.version import InvalidVersion, Version

from plait_doctor.finding import Case, Finding
from plait_doctor.requirements import editable, family

TIMEOUT = 5.0
"""Seconds for one answer."""


def releases(case: Case) -> Iterator[Finding]:
    """Whether the index has newer releases of plait's distributions and of the plugins'."""
    if not case.online:
        return
    silent = ""
    for dist in family().values():
        name = f"{dist.name} release"
        if silent:
            yield Finding(name, "ok", f"not asked: {silent}")
            continue
        try:
            yield _judged(name, dist, _ask(f"{case.index}/{dist.name}/json"))
        except urllib.error.HTTPError as error:
            text = "not on PyPI" if error.code == 404 else f"the index answered {error.code} {error.reason}"
            yield Finding(name, "ok" if error.code == 404 else "warning", text)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            silent = "no connection" if isinstance(error, OSError) else "the index' answer cannot be read"
            why = "Whether there is a newer release is not known."
            yield Finding(
                name, "warning", f"{silent} ({case.index}): {reason}", why, "try again without a firewall or proxy"
            )


def _ask(address: str) -> dict[str, Any]:
    request = urllib.request.Request(address, headers={"Accept": "application/json", "User-Agent": "plait-doctor"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        document: dict[str, Any] = json.load(answer)
    if not isinstance(document, dict) or not isinstance(document.get("info"), dict):
        raise ValueError("not a project's document")
    return document


def _judged(name: str, dist: Distribution, document: dict[str, Any]) -> Finding:
    info = document["info"]
    newest, installed = str(info.get("version", "")), str(dist.version)
    details = {"installed": installed, "newest": newest}
    ours = {dist.metadata[key].strip() for key in ("Author", "Author-email") if key in dist.metadata} - {""}
    theirs = {str(info.get(key) or "").strip() for key in ("author", "author_email")} - {""}
    if ours and not ours & theirs:
        # a name that is free today can be anybody's tomorrow: never advise installing a stranger's package
        text = f"the project of that name is by {', '.join(sorted(theirs)) or 'somebody unnamed'}, not by {ours.pop()}"
        return Finding(name, "ok", f"not on PyPI; {text}", details=details)
    try:
        late = Version(newest) > Version(installed)
    except InvalidVersion:
        text = f"the index has {newest!r}, here is {installed!r}; one is no version"
        return Finding(name, "warning", text, details=details)
    if not late:
        return Finding(name, "ok", f"{installed}, the newest is {newest}", details=details)
    source = editable(dist)
    fix = f"git -C {source} pull" if source else f"pip install -U {dist.name}"
    text = f"{installed} is out of date: {newest} is out"
    return Finding(name, "warning", text, "It may have fixes.", fix, details=details)
