"""A scoreboard over several verifications: what was found before, read back, with what was found now in its place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait_experiments.experiment import Tried
from plait_experiments.results import ArmResult, ClaimResult, Verification
from plait_experiments.schema import Claim, MetricTable
from plait_experiments.statistics import Interval
from plait_experiments.verdicts import Judgement, Verdict
from plait.errors import BadInput

SCOREBOARD = "scoreboard.json"


def stored(folder: Path) -> list[Verification]:
    """The verifications of the scoreboard in a folder; none where there is no scoreboard.

    Raises:
        BadInput: the file is no scoreboard.
    """
    file = folder / SCOREBOARD
    if not file.exists():
        return []
    try:
        return [from_dict(entry) for entry in json.loads(file.read_text(encoding="utf-8"))["plugins"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{file} is no scoreboard ({type(error).__name__}: {error}). Move it away, or write anew with --all."
        ) from None


def join(earlier: Sequence[Verification], now: Sequence[Verification]) -> list[Verification]:
    """The earlier scoreboard with what was verified now in its place; new plugins and new claims come last.

    A claim that was not run now keeps its earlier verdict, and a note says so: the two may come from other machines or
    versions.

    Args:
        earlier: as from `stored`.
        now: of the same scale; another scale replaces the plugin's whole entry.
    """
    found = {one.plugin: one for one in earlier}
    for one in now:
        found[one.plugin] = _joined(found.get(one.plugin), one)
    return list(found.values())


def _joined(before: Verification | None, now: Verification) -> Verification:
    if before is None or before.scale != now.scale:
        return now
    old = {result.claim.id: result for result in before.claims if result.verdict is not Verdict.NOT_RUN}
    claims = [old.pop(r.claim.id, r) if r.verdict is Verdict.NOT_RUN else r for r in now.claims]
    new = {result.claim.id for result in now.claims}
    claims += [result for result in before.claims if result.claim.id not in new]
    places = {result.claim.id: place for place, result in enumerate(before.claims)}
    claims.sort(key=lambda result: places.get(result.claim.id, len(places)))
    kept = [r.claim.id for r in claims if not any(r is one for one in now.claims)]
    if not kept:
        return now
    versions = before.environment.get("versions", {})
    device = before.environment.get("device_name") or before.environment.get("device") or "unknown device"
    note = f"from an earlier verification ({device}, torch {versions.get('torch', 'unknown')}): {', '.join(kept)}"
    return dataclasses.replace(now, claims=tuple(claims), notes=(*now.notes, note), work=now.work + before.work)


def from_dict(document: Mapping[str, Any]) -> Verification:
    """The inverse of `Verification.as_dict`."""
    scale = document["scale"]
    return Verification(
        document["plugin"],
        document["paper"],
        document["version"],
        scale,
        document["about"],
        tuple(_claim(entry, scale) for entry in document["claims"]),
        document["settings"],
        tuple(document["notes"]),
        document["cells"]["ran"],
        document["cells"]["cached"],
        document["seconds"],
        document["work_seconds"],
        document["environment"],
    )


def _claim(entry: Mapping[str, Any], scale: str) -> ClaimResult:
    judgements = tuple(_judgement(j) for j in entry["expectations"])
    fields = ("id", "sentence", "source", "ours", "reconstruction", "gate", "notes", "paper", "paper_setting")
    claim = Claim(
        **{name: entry[name] for name in fields},
        expect=tuple(j.text for j in judgements if not j.guard),
        guards=tuple(j.text for j in judgements if j.guard),
        minutes={scale: 0},
    )
    return ClaimResult(
        claim,
        Verdict(entry["verdict"]),
        judgements,
        tuple(_arm(name, arm) for name, arm in entry["arms"].items()),
        {name: MetricTable(**metric) for name, metric in entry["metrics"].items()},
        tuple(entry["seeds"]),
        entry["reason"],
    )


def _judgement(entry: Mapping[str, Any]) -> Judgement:
    saved = entry["interval"]
    interval = Interval(**{f.name: saved[f.name] for f in dataclasses.fields(Interval)}) if saved else None
    same = ("guard", "left", "right", "margin", "exact", "n", "missing", "paper_margin", "note")
    return Judgement(
        text=entry["expectation"],
        verdict=Verdict(entry["verdict"]),
        interval=interval,
        **{name: entry[name] for name in same},
    )


def _arm(name: str, entry: Mapping[str, Any]) -> ArmResult:
    chosen = entry["chosen"] or None
    return ArmResult(
        name,
        entry["about"],
        {metric: _by_seed(found["by_seed"]) for metric, found in entry["metrics"].items()},
        {int(seed): text for seed, text in entry["failures"].items()},
        entry["problem"],
        tuple(Tried(t["point"], t["score"], _by_seed(t["by_seed"]), t["point"] == chosen) for t in entry["tuning"]),
        entry["chosen_by"],
    )


def _by_seed(values: Mapping[str, float | None]) -> dict[int, float | None]:
    return {int(seed): value for seed, value in values.items()}
