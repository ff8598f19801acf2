"""Newer releases, asked of the package index; only when the user says ``--online``."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import Distribution
from typing import Any

from packaging.version import InvalidVersion, Version

from plait.doctor.check import Case, Check
from plait.doctor.requirements import editable, family

TIMEOUT = 5.0
"""Seconds for one answer."""


def releases(case: Case) -> Iterator[Check]:
    """Whether the index has newer releases of plait's distributions and of the plugins'."""
    if not case.online:
        return
    silent = ""
    for dist in family().values():
        name = f"{dist.name} release"
        if silent:
            yield Check(name, "ok", f"not asked: {silent}")
            continue
        try:
            yield _judged(name, dist, _ask(f"{case.index}/{dist.name}/json"))
        except urllib.error.HTTPError as error:
            text = "not on PyPI" if error.code == 404 else f"the index answered {error.code} {error.reason}"
            yield Check(name, "ok" if error.code == 404 else "warning", text)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            silent = "no connection" if isinstance(error, OSError) else "the index' answer cannot be read"
            why = "Whether there is a newer release is not known."
            yield Check(
                name, "warning", f"{silent} ({case.index}): {reason}", why, "try again without a firewall or proxy"
            )


def _ask(address: str) -> dict[str, Any]:
    request = urllib.request.Request(address, headers={"Accept": "application/json", "User-Agent": "plait-doctor"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        found: dict[str, Any] = json.load(answer)
    if not isinstance(found, dict) or not isinstance(found.get("info"), dict):
        raise ValueError("not a project's document")
    return found


def _judged(name: str, dist: Distribution, found: dict[str, Any]) -> Check:
    info = found["info"]
    newest, here = str(info.get("version", "")), str(dist.version)
    details = {"installed": here, "newest": newest}
    ours = {dist.metadata[key].strip() for key in ("Author", "Author-email") if key in dist.metadata} - {""}
    theirs = {str(info.get(key) or "").strip() for key in ("author", "author_email")} - {""}
    if ours and not ours & theirs:
        # a name that is free today can be anybody's tomorrow: never advise installing a stranger's package
        text = f"the project of that name is by {', '.join(sorted(theirs)) or 'somebody unnamed'}, not by {ours.pop()}"
        return Check(name, "ok", f"not on PyPI; {text}", details=details)
    try:
        late = Version(newest) > Version(here)
    except InvalidVersion:
        return Check(name, "warning", f"the index has {newest!r}, here is {here!r}; one is no version", details=details)
    if not late:
        return Check(name, "ok", f"{here}, the newest is {newest}", details=details)
    source = editable(dist)
    fix = f"git -C {source} pull" if source else f"pip install -U {dist.name}"
    return Check(name, "warning", f"{here} is out of date: {newest} is out", "It may have fixes.", fix, details=details)
