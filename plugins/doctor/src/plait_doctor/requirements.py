"""What installed distributions ask of each other, judged from their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from plait.planning.discovery import GROUP

OWN = (
    "plait-core",
    "plait-cli",
    "plait-experiments",
    "plait-report",
    "plait-authoring",
    "plait-doctor",
    "plait",
)
"""The distributions that are released together."""


def family() -> dict[str, Distribution]:
    """plait's own distributions and those of every installed plugin, as far as they are here, by canonical name."""
    known: dict[str, Distribution] = {}
    for name in OWN:
        try:
            known[name] = distribution(name)
        except PackageNotFoundError:
            continue
    for entry in entry_points(group=GROUP):
        if entry.dist is not None and entry.dist.name:
            known.setdefault(canonicalize_name(entry.dist.name), entry.dist)
    return known


def editable(dist: Distribution) -> str | None:
    """The folder that an editable installation points to, None for an ordinary one."""
    try:
        record = json.loads(dist.read_text("direct_url.json") or "{}")
        if record.get("dir_info", {}).get("editable"):
            return unquote(urlparse(record["url"]).path)
    except (ValueError, AttributeError, KeyError, OSError):
        return None
    return None


def how(dist: Distribution) -> str:
    """``editable in FOLDER`` or ``installed in FOLDER``."""
    source = editable(dist)
    return f"editable in {source}" if source else f"installed in {Path(str(dist.locate_file('')))}"


@dataclass(frozen=True)
class Unmet:
    """A requirement that the installed distributions do not meet.

    Attributes:
        by: who asks.
        text: what is asked, e.g. ``torch>=2.6``.
        found: the installed version, None when it is not installed, empty when it cannot be read.
        how: ``older``, ``newer``, ``missing`` or ``other``.
        direct: whether one of the distributions that were looked at asks itself.
    """

    by: str
    text: str
    found: str | None
    how: str
    direct: bool

    @property
    def sentence(self) -> str:
        """In words."""
        name = Requirement(self.text).name if self.how != "unreadable" else self.text
        if self.how == "missing":
            return f"{name} is not installed; {self.by} asks for {self.text}"
        if self.how == "unreadable":
            return f"{self.by} asks for {self.text!r}, which is no requirement"
        words = {"older": "is older than", "newer": "is newer than"}.get(self.how, "does not fit")
        return f"{name} {self.found or 'of an unreadable version'} {words} {self.text} that {self.by} asks for"

    @property
    def fix(self) -> str:
        """What to type."""
        if self.how == "unreadable":
            return f"pip install --force-reinstall {self.by}"
        return f'pip install -U "{self.text}"' if self.how != "missing" else f'pip install "{self.text}"'


def unmet(roots: Iterable[Distribution]) -> list[Unmet]:
    """Every requirement of these distributions, and of what they need in turn, that is not met; direct ones first."""
    misfits: dict[tuple[str, str], Unmet] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(dist, "", True) for dist in roots]
    while waiting:
        dist, extra, direct = waiting.pop(0)
        key = (canonicalize_name(dist.name or ""), extra)
        if key in seen:
            continue
        seen.add(key)
        for text in dist.requires or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                misfits[dist.name, text] = Unmet(dist.name, text, None, "unreadable", direct)
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            shown = requirement.name + (f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else "")
            shown += str(requirement.specifier)
            try:
                other = distribution(requirement.name)
            except PackageNotFoundError:
                misfits[dist.name, shown] = Unmet(dist.name, shown, None, "missing", direct)
                continue
            if (wrong := _misfit(requirement, other.version)) is not None:
                misfits[dist.name, shown] = Unmet(dist.name, shown, other.version, wrong, direct)
            waiting += [(other, wanted, False) for wanted in ("", *sorted(requirement.extras))]
    return sorted(misfits.values(), key=lambda misfit: not misfit.direct)


def _misfit(requirement: Requirement, version: str | None) -> str | None:
    """How a version misses a requirement: ``older``, ``newer`` or ``other``; None when it fits."""
    try:
        have = Version(version or "")
    except InvalidVersion:
        return "other" if requirement.specifier else None
    if requirement.specifier.contains(have, prereleases=True):
        return None
    for bound in requirement.specifier:
        if bound.contains(have, prereleases=True):
            continue
        try:
            limit = Version(bound.version.removesuffix(".*"))
        except InvalidVersion:
            return "other"
        if bound.operator in (">=", ">", "~=", "==") and have < limit:
            return "older"
        if bound.operator in ("<=", "<", "==") or (bound.operator == "~=" and have > limit):
            return "newer"
    return "other"


def extras(dist: Distribution) -> Iterator[tuple[str, list[str]]]:
    """(extra, the distributions that it needs and that are not here) of each extra."""
    for extra in dist.metadata.get_all("Provides-Extra") or ():
        missing = []
        for text in dist.requires or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
                continue
            try:
                version = distribution(requirement.name).version
            except PackageNotFoundError:
                missing.append(requirement.name)
                continue
            if _misfit(requirement, version) is not None:
                missing.append(f"{requirement.name}{requirement.specifier}")
        yield extra, missing
