"""The plugins: their state and why, their claims, and the data and models that they register."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

from plait.declare.sources import DataSource
from plait.errors import BadInput
from plait.planning.discovery import Installed, active_registry, collect, installed, remedy
from plait_doctor.finding import Case, Finding
from plait_doctor.requirements import how, unmet


def plugins(case: Case) -> Iterator[Finding]:
    """Every installed plugin: usable, with its hooks, or why not."""
    for item in installed():
        dist = _distribution(item)
        details = item.as_dict()
        place = f", {how(dist)}" if dist is not None else ""
        if item.status == "ok":
            hooks = ", ".join(item.hooks) or "no hooks"
            text = f"{item.distribution} {item.version}{place}; contract {item.contract}; {hooks}"
            yield Finding(item.name, "ok", text, details=details)
        else:
            text = f"{item.status} ({item.distribution} {item.version}{place}): {item.reason}"
            why = f"It is skipped: -p {item.name} cannot be used. The others work."
            yield Finding(item.name, "problem", text, why, _fix(item, dist), details=details)


def _distribution(item: Installed) -> Distribution | None:
    try:
        return distribution(item.distribution)
    except PackageNotFoundError:
        return None


def _fix(item: Installed, dist: Distribution | None) -> str:
    if item.status == "incompatible":
        return remedy(item.contract, item.distribution)
    if item.status == "duplicate":
        owners = sorted({i.distribution for i in installed() if i.name == item.name})
        return " or ".join(f"pip uninstall {owner}" for owner in owners)
    lacking = [misfit.fix for misfit in unmet([dist])] if dist is not None else []
    return lacking[0] if lacking else f"pip install -U {item.distribution}, or pip uninstall {item.distribution}"


def claims(case: Case) -> Iterator[Finding]:
    """Whether the ``claims.toml`` of every plugin can be read, and its arms be made; plait-experiments reads them."""
    if find_spec("plait_experiments") is None:
        text = "claims.toml of the plugins: not looked at, plait-experiments is not installed"
        yield Finding("claims", "ok", text, fix="pip install plait-experiments, for plait verify")
        return
    from plait_experiments import experiment, schema

    for name, item in active_registry().items():
        try:
            book = schema.load(name)
            problems = [] if book is None else experiment.check(book)
        except BadInput as error:
            book, problems = None, str(error).splitlines()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            why = f"plait verify {name} and plait info {name} stop there."
            fix = f"its author: correct claims.toml; you: pip install -U {item.distribution}"
            yield Finding(f"{name} claims", "problem", problems[0] + more, why, fix, details={"problems": problems})
        elif book is not None:
            yield Finding(f"{name} claims", "ok", f"{len(book.claims)} claims; plait verify {name} checks them")


def components(case: Case) -> Iterator[Finding]:
    """Names that two plugins register, and registries that raise."""
    for hook, word in (("data_sources", "data source"), ("models", "model"), ("artifacts", "artifact")):
        entries, problems = collect(hook)
        for name, problem in sorted(problems.items()):
            why = f"The {word} cannot be used."
            yield Finding(name, "problem", problem, why, _whose(name))
        names = ", ".join(sorted(entries)) or "none"
        yield Finding(f"{word}s", "ok", names, details={n: plugin for n, (plugin, _) in entries.items()})


def _whose(name: str) -> str:
    owner = active_registry().get(name)
    return f"pip install -U {owner.distribution}" if owner else "pip uninstall one of the two packages"


def data(case: Case) -> Iterator[Finding]:
    """Which data can be used at once, which lies on this machine, and which needs a path."""
    ready: list[str] = []
    absent: dict[str, str] = {}
    yours: list[str] = []
    for name, (_, source) in collect("data_sources")[0].items():
        if any(field.is_required() for field in source.options.model_fields.values()):
            yours.append(name)
        elif missing(source):
            absent[name] = source.obtain
        else:
            ready.append(name)
    texts = [f"ready: {', '.join(ready)}"] if ready else []
    texts += [f"not on this machine: {', '.join(absent)}"] if absent else []
    texts += [f"from a path of yours: {', '.join(yours)}"] if yours else []
    details: dict[str, Any] = {"ready": ready, "absent": absent, "path": yours}
    fix = "; ".join(f"{name}: {obtain}" for name, obtain in absent.items() if obtain)
    yield Finding("data", "ok", "; ".join(texts), fix=fix, details=details)


def missing(source: DataSource) -> bool:
    """Whether a data source looks for files on this machine, and none of its places is there."""
    return bool(source.places) and not any(os.path.exists(place) for place in source.places)
