"""The plugins: their state and why, their claims, and the data and models that they register."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from plait import registry
from plait.components import DataSource
from plait.contract import remedy
from plait.doctor.check import Case, Check
from plait.doctor.requirements import how, unmet
from plait.errors import BadInput
from plait.registry import Installed


def plugins(case: Case) -> Iterator[Check]:
    """Every installed plugin: usable, with its hooks, or why not."""
    for item in registry.installed():
        dist = _distribution(item)
        details = item.as_dict()
        place = f", {how(dist)}" if dist is not None else ""
        if item.status == "ok":
            hooks = ", ".join(item.hooks) or "no hooks"
            text = f"{item.distribution} {item.version}{place}; contract {item.contract}; {hooks}"
            yield Check(item.name, "ok", text, details=details)
        else:
            text = f"{item.status} ({item.distribution} {item.version}{place}): {item.reason}"
            why = f"It is skipped: -p {item.name} cannot be used. The others work."
            yield Check(item.name, "problem", text, why, _fix(item, dist), details=details)


def _distribution(item: Installed) -> Distribution | None:
    try:
        return distribution(item.distribution)
    except PackageNotFoundError:
        return None


def _fix(item: Installed, dist: Distribution | None) -> str:
    if item.status == "incompatible":
        return remedy(item.contract, item.distribution)
    if item.status == "duplicate":
        owners = sorted({i.distribution for i in registry.installed() if i.name == item.name})
        return " or ".join(f"pip uninstall {owner}" for owner in owners)
    lacking = [one.fix for one in unmet([dist])] if dist is not None else []
    return lacking[0] if lacking else f"pip install -U {item.distribution}, or pip uninstall {item.distribution}"


def claims(case: Case) -> Iterator[Check]:
    """Whether the ``claims.toml`` of every plugin can be read, and its arms be made."""
    from plait import claims

    for name in registry.active_registry():
        try:
            book = claims.load(name)
            problems = [] if book is None else claims.check(book)
        except BadInput as error:
            book, problems = None, str(error).splitlines()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            why = f"plait verify {name} and plait info {name} stop there."
            fix = (
                f"its author: correct claims.toml; you: pip install -U {registry.active_registry()[name].distribution}"
            )
            yield Check(f"{name} claims", "problem", problems[0] + more, why, fix, details={"problems": problems})
        elif book is not None:
            yield Check(f"{name} claims", "ok", f"{len(book.claims)} claims; plait verify {name} checks them")


def components(case: Case) -> Iterator[Check]:
    """Names that two plugins register, and registries that raise."""
    for hook, word in (("data_sources", "data source"), ("models", "model")):
        entries, problems = registry.collect(hook)
        for name, problem in sorted(problems.items()):
            why = f"The {word} cannot be used."
            yield Check(name, "problem", problem, why, _whose(name))
        names = ", ".join(sorted(entries))
        yield Check(f"{word}s", "ok", names, details={n: plugin for n, (plugin, _) in entries.items()})


def _whose(name: str) -> str:
    owner = registry.active_registry().get(name)
    return f"pip install -U {owner.distribution}" if owner else "pip uninstall one of the two packages"


def data(case: Case) -> Iterator[Check]:
    """Which data can be used at once, which lies on this machine, and which needs a path."""
    ready: list[str] = []
    absent: dict[str, str] = {}
    yours: list[str] = []
    for name, (_, source) in registry.collect("data_sources")[0].items():
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
    yield Check("data", "ok", "; ".join(texts), fix=fix, details=details)


def missing(source: DataSource) -> bool:
    """Whether a data source looks for files on this machine, and none of its places is there."""
    return bool(source.places) and not any(os.path.exists(place) for place in source.places)
