"""The installed distributions: versions that belong together, requirements, metadata, and what is optional."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import plait
from plait.planning.discovery import GROUP
from plait_doctor.finding import Case, Finding, Status
from plait_doctor.requirements import OWN, editable, extras, family, how, unmet

PURPOSES = {
    "tensorboard": "curves in TensorBoard: --set loggers='[\"tensorboard\"]'",
    "mlflow": "runs in MLflow: --set loggers='[\"mlflow\"]'",
    "wandb": "runs in Weights & Biases: --set loggers='[\"wandb\"]'",
    "s3": "runs on S3: --out s3://bucket/run",
    "gcs": "runs on Google Cloud Storage: --out gs://bucket/run",
    "stores": "runs on any store that fsspec knows",
    "ray": "plait verify and plait sweep on a cluster: --ray",
    "search": "plait sweep --optimize, and its table as Parquet",
    "onnx": "export to ONNX: --set export.formats='[\"onnx\"]'",
    "test": "its tests",
}
"""What an extra of plait's own distributions is good for."""


def versions(case: Case) -> Iterator[Finding]:
    """Where plait's distributions are, and whether their versions belong together."""
    known = family()
    for name, dist in known.items():
        source = editable(dist)
        details = {"distribution": dist.name, "version": dist.version, "editable": source}
        changed = stale(dist, Path(source)) if source else []
        if changed:
            text = f"{dist.version}, {how(dist)}, whose pyproject.toml has another {' and '.join(changed)} by now"
            why = "pip and plait see what was there when it was installed."
            yield Finding(name, "warning", text, why, f"pip install -e {source}", details=details)
        else:
            yield Finding(name, "ok", f"{dist.version}, {how(dist)}", details=details)
    core = known.get("plait-core")
    imported = Path(plait.__file__).parent
    if core is None:
        why = "Plugins and pip cannot see which version it is."
        yield Finding("versions", "warning", f"plait is imported from {imported}, not installed", why, _reinstall(None))
    elif core.version != plait.__version__:
        why = "Another copy hides the installed one, or its installation is out of date."
        text = f"the plait in {imported} is {plait.__version__}; pip knows plait-core {core.version}"
        yield Finding("versions", "problem", text, why, _reinstall(editable(core)))
    try:
        own = {name: Version(known[name].version) for name in OWN if name in known}
    except (InvalidVersion, TypeError) as error:
        why = "Nobody can tell what fits what."
        yield Finding("versions", "problem", f"an unreadable version: {error}", why, _reinstall(None))
        return
    if len(set(own.values())) > 1:
        newest = max(own.values())
        late = [name for name, version in own.items() if version < newest]
        series = len({version.release[:2] for version in own.values()}) > 1
        text = ", ".join(f"{name} {version}" for name, version in own.items())
        why = "They are released together; " + ("two series do not fit." if series else "one is out of date.")
        fix = "pip install -U " + " ".join(f'"{name}=={newest}"' for name in late)
        yield Finding("versions", "problem" if series else "warning", text, why, fix)


def stale(dist: Distribution, source: Path) -> list[str]:
    """In what the pyproject.toml of an editable installation differs from its metadata.

    A plugin whose entry point was added later is not found, and nobody says why.
    """
    import tomllib

    try:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = {_plain(text) for text in project.get("dependencies", ())}
        known = {_plain(text) for text in dist.requires or () if "extra" not in text.partition(";")[2]}
    except (OSError, ValueError, KeyError):
        return []  # another build system, or nothing there: nothing to compare
    dynamic = project.get("dynamic", ())
    entries = {e.name: e.value for e in dist.entry_points if e.group == GROUP}
    return [
        word
        for word, changed in (
            ("version", "version" not in dynamic and project.get("version") != dist.version),
            ("list of dependencies", "dependencies" not in dynamic and asked != known),
            (
                "list of plugins",
                "entry-points" not in dynamic and project.get("entry-points", {}).get(GROUP, {}) != entries,
            ),
        )
        if changed
    ]


def _plain(text: str) -> str:
    requirement = Requirement(text)
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _reinstall(source: str | None) -> str:
    return f"pip install -e {source}" if source else "pip install -U --force-reinstall plait-core"


def requirements(case: Case) -> Iterator[Finding]:
    """Whether every plait distribution, and every installed plugin's, has what it asks for."""
    known = family()
    missing = unmet(known.values())
    for misfit in missing:
        if misfit.direct:
            why = f"{misfit.by} was not made for this, and may fail anywhere."
        else:
            why = f"plait does not use {misfit.by} directly; what does may fail."
        status: Status = "problem" if misfit.direct else "warning"
        yield Finding("requirements", status, misfit.sentence, why, misfit.fix)
    if not missing:
        names = ", ".join(dist.name for dist in known.values())
        yield Finding("requirements", "ok", f"{names} have all that they ask for")


def metadata(case: Case) -> Iterator[Finding]:
    """Distributions that are installed twice in one folder, as a broken upgrade leaves them."""
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for dist in distributions():
        if dist.name:
            places[canonicalize_name(dist.name), str(dist.locate_file(""))].add(str(dist.version))
    twice = {key: versions_there for key, versions_there in places.items() if len(versions_there) > 1}
    for (name, folder), versions_there in sorted(twice.items()):
        text = f"{name} is in {folder} in several versions: {', '.join(sorted(versions_there))}"
        why = "An upgrade was cut off; which one counts is chance."
        fix = f"pip uninstall -y {name}, twice, then pip install {name}"
        yield Finding("metadata", "warning", text, why, fix)
    if not twice:
        yield Finding("metadata", "ok", "no distribution is there twice")


def optional(case: Case) -> Iterator[Finding]:
    """The extras of each distribution: which are here, and what the others are good for."""
    for dist in family().values():
        lacking = dict(extras(dist))
        if not lacking:
            continue
        purposes = PURPOSES if canonicalize_name(dist.name) in OWN else {}
        here = [extra for extra, missing in lacking.items() if not missing]
        gone = [extra for extra, missing in lacking.items() if missing]
        texts = [f"here: {', '.join(here)}"] if here else []
        if gone:
            texts.append("not here: " + ", ".join(f"{e} ({purposes[e]})" if e in purposes else e for e in gone))
        details = {
            extra: {
                "present": not missing,
                "missing": missing,
                "for": purposes.get(extra, ""),
                "install": f'pip install "{dist.name}[{extra}]"',
            }
            for extra, missing in lacking.items()
        }
        fix = f'pip install "{dist.name}[{gone[0]}]"' if gone else ""
        yield Finding(f"{dist.name} extras", "ok", "; ".join(texts), fix=fix, details=details)
