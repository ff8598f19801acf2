"""The scoreboard of several verifications: written as a page, as Markdown and as JSON, read back, and joined."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plait import __version__
from plait.errors import BadInput
from plait_experiments import tables
from plait_experiments.cells import Cache
from plait_experiments.drift import place, smaller
from plait_experiments.experiment import Experiment, Tried, compared
from plait_experiments.page import as_json, rendered, write_files
from plait_experiments.power import MOST, TWO_SIDED, Power
from plait_experiments.results import ArmResult, ClaimResult, Drift, Verification
from plait_experiments.schema import Book, Claim, MetricTable, ScaleName
from plait_experiments.statistics import FEW, Interval, Summary
from plait_experiments.verdicts import Judgement, Verdict
from plait_experiments.verification import judged

SCOREBOARD = "scoreboard.json"


# ---- writing -----------------------------------------------------------------------------------------------------
def write_scoreboard(verifications: Sequence[Verification], folder: Path) -> list[Path]:
    """Write ``scoreboard.html``, ``scoreboard.md`` and ``scoreboard.json`` with exactly these verifications.

    Returns:
        The files.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    pages = {v.plugin for v in verifications if (folder / f"{v.plugin}.html").exists()}
    document = {"plait": __version__, "plugins": [verification.as_dict() for verification in verifications]}
    return write_files(
        {
            folder / "scoreboard.html": render(verifications, pages),
            folder / "scoreboard.md": markdown(verifications),
            folder / SCOREBOARD: as_json(document),
        }
    )


def render(verifications: Sequence[Verification], pages: Collection[str] = ()) -> str:
    """The scoreboard as a page.

    Args:
        verifications: in their order.
        pages: plugins whose own page lies beside it, to which it links.
    """
    columns, counts = tables.overview(verifications)
    linked = _linked(counts, Markup('<a href="#{0}">{0}</a>').format)
    return rendered("scoreboard.html.j2", verifications=verifications, pages=pages, columns=columns, counts=linked)


def markdown(verifications: Sequence[Verification]) -> str:
    """The scoreboard as Markdown, for the docs."""
    parts = [
        "# Scoreboard",
        "Written by `plait verify`; nothing here is edited by hand. *holds* and *fails*: the 95 % interval of "
        "the margin lies on that side of the threshold; *undecided*: it straddles it; *undecidable at this size*: and "
        f"a verdict would need more than {MOST} seeds; a margin below 0 is a miss. Below {FEW} seeds the interval is "
        "Student's t on the paired differences, from there on a bootstrap (BCa).",
    ]
    columns, counts = tables.overview(verifications)
    linked = _linked(counts, "[{0}](#{0})".format)
    parts += ["How many claims came out how:", tables.markdown_table(columns, linked)]
    if undecided := tables.open_rows(verifications):
        parts += ["What nobody can decide from these figures, and what it would take:"]
        parts += [tables.markdown_table(tables.OPEN_COLUMNS, undecided)]
    for verification in verifications:
        parts.append(f"## {verification.plugin}")
        if verification.paper:
            parts.append(verification.paper)
        parts.append("; ".join(f"{what}: {value}" for what, value in tables.facts(verification) if what != "cells"))
        rows = [tables.score_row(result) for result in verification.claims]
        parts.append(tables.markdown_table(tables.SCORE_COLUMNS, rows))
        claims = [result.claim for result in verification.claims]
        inferred = [f"- `{claim.id}`: {claim.reconstruction}" for claim in claims if claim.reconstruction]
        if inferred:
            parts.append("What is reconstruction:\n\n" + "\n".join(inferred))
        for result in verification.claims:
            parts += _details(result)
        parts += [f"Note: {note}." for note in verification.notes]
    return "\n\n".join(parts) + "\n"


def _linked(counts: Sequence[tables.Row], link: Callable[[str], str]) -> list[tables.Row]:
    """The overview's rows, each method's name a link to its part; the last row is of all."""
    return [*([link(name), *numbers] for name, *numbers in counts[:-1]), counts[-1]]


def _details(result: ClaimResult) -> list[str]:
    if not any(arm.values for arm in result.arms):
        return []
    columns, tried = tables.tuning_rows(result)
    parts = [
        f"### {result.claim.id}: {tables.word(result)}",
        tables.markdown_table(tables.ARM_COLUMNS, tables.arm_rows(result)),
        tables.markdown_table(tables.EXPECTATION_COLUMNS, tables.expectation_rows(result)),
        tables.markdown_table(tables.POWER_COLUMNS, tables.power_rows(result)),
    ]
    if tried:
        parts.append(tables.markdown_table(columns, tried))
        parts += tables.ties(result)
    if result.drifts:
        parts.append(tables.markdown_table(tables.DRIFT_COLUMNS, tables.drift_rows(result)))
        parts += smaller(result)
    return parts


# ---- reading -----------------------------------------------------------------------------------------------------
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


def _claim(entry: Mapping[str, Any], scale: ScaleName) -> ClaimResult:
    judgements = tuple(_judgement(j) for j in entry["expectations"])
    required = {text: float(margin) for text, margin in entry.get("required", {}).items()}
    fields = ("id", "sentence", "source", "ours", "reconstruction", "gate", "notes", "paper", "paper_setting")
    claim = Claim(
        **{name: entry[name] for name in fields},
        expect=tuple(j.text for j in judgements if not j.guard),
        guards=tuple(j.text for j in judgements if j.guard),
        minutes={scale: 0},
        required=required,
    )
    return ClaimResult(
        claim,
        Verdict(entry["verdict"]),
        judgements,
        tuple(_arm(name, arm) for name, arm in entry["arms"].items()),
        {name: MetricTable(**metric) for name, metric in entry["metrics"].items()},
        tuple(entry["seeds"]),
        entry["reason"],
        tuple(Drift(**drift) for drift in entry.get("drift", ())),
        entry.get("place", ""),
    )


def _judgement(entry: Mapping[str, Any]) -> Judgement:
    saved = entry["interval"]
    interval = Interval(**{f.name: saved[f.name] for f in dataclasses.fields(Interval)}) if saved else None
    same = ("guard", "left", "right", "margin", "exact", "n", "missing", "paper_margin", "note")
    return Judgement(
        text=entry["expectation"],
        verdict=Verdict(entry["verdict"]),
        interval=interval,
        difference=entry.get("difference"),
        power=_power(entry.get("power")),
        **{name: entry[name] for name in same},
    )


def _arm(name: str, entry: Mapping[str, Any]) -> ArmResult:
    return ArmResult(
        name,
        entry["about"],
        {metric: _by_seed(values["by_seed"]) for metric, values in entry["metrics"].items()},
        {int(seed): text for seed, text in entry["failures"].items()},
        entry["problem"],
        tuple(_tried(tried, entry["chosen"]) for tried in entry["tuning"]),
        entry["chosen_by"],
        entry.get("higher", True),
    )


def _tried(entry: Mapping[str, Any], chosen: Mapping[str, Any]) -> Tried:
    point, gain = entry["point"], entry.get("gain")
    return Tried(
        point,
        entry["score"],
        _by_seed(entry["by_seed"]),
        bool(chosen) and point == chosen,
        entry.get("default", False),
        Summary(**gain) if gain else None,
    )


def _power(entry: Mapping[str, Any] | None) -> Power | None:
    if entry is None:
        return None
    two_sided = entry["sides"] == TWO_SIDED
    return Power(entry["deviation"], entry["margin"], entry["required"], two_sided, entry["seeds"])


def _by_seed(values: Mapping[str, float | None]) -> dict[int, float | None]:
    return {int(seed): value for seed, value in values.items()}


# ---- judging again -----------------------------------------------------------------------------------------------
def judged_again(verification: Verification, book: Book | None) -> Verification:
    """The same figures under today's rules; nothing runs.

    Verdicts, intervals and power are made anew from the figures by seed. The choices among grid points stay, because
    the figures are theirs; where one is no better than the default by more than its standard error, the claim says so.

    Args:
        verification: as from `stored`.
        book: the plugin's claims, for the defaults of the grids and the margins that are required; None where it is not
            installed.
    """
    scale = next((name for name in book.scales if name == verification.scale), None) if book is not None else None
    experiment = Experiment(book, scale, [], Cache()) if book is not None and scale is not None else None
    claims = tuple(_claim_again(result, experiment) for result in verification.claims)
    return dataclasses.replace(verification, claims=claims)


def _claim_again(result: ClaimResult, experiment: Experiment | None) -> ClaimResult:
    if not result.arms:
        return result
    claim, arms = result.claim, result.arms
    if experiment is not None:
        today = next((c.required for c in experiment.book.claims if c.id == claim.id), claim.required)
        said = {judgement.text for judgement in result.judgements}
        claim = claim.model_copy(update={"required": {text: m for text, m in today.items() if text in said}})
        arms = tuple(_choice_again(arm, experiment) for arm in arms)
    again = judged(claim, arms, result.metrics, result.seeds, result.reason)
    return dataclasses.replace(again, drifts=result.drifts, place=result.place)


def _choice_again(arm: ArmResult, experiment: Experiment) -> ArmResult:
    table = experiment.book.arms.get(arm.name)
    if not arm.tuning or table is None:
        return arm
    higher = table.choose_better == "higher"
    points, scores = [t.point for t in arm.tuning], [t.scores for t in arm.tuning]
    today = compared(points, scores, dict(experiment.default(arm.name)), higher)
    kept = tuple(dataclasses.replace(t, chosen=k.chosen) for t, k in zip(today, arm.tuning, strict=True))
    return dataclasses.replace(arm, tuning=kept, higher=higher)


# ---- joining -----------------------------------------------------------------------------------------------------
def join(earlier: Sequence[Verification], now: Sequence[Verification]) -> list[Verification]:
    """The earlier scoreboard with what was verified now in its place; new plugins and new claims come last.

    A claim that was not run now keeps its earlier verdict, and a note says so: the two may come from other machines or
    versions.

    Args:
        earlier: as from `stored`.
        now: of the same scale; another scale replaces the plugin's whole entry.
    """
    by_plugin = {verification.plugin: verification for verification in earlier}
    for verification in now:
        by_plugin[verification.plugin] = _joined(by_plugin.get(verification.plugin), verification)
    return list(by_plugin.values())


def _with_drifts(result: ClaimResult, old: Mapping[str, ClaimResult]) -> ClaimResult:
    """With the earlier drifts, those that were measured on figures that stand."""
    before = old.get(result.claim.id)
    if before is None or result.drifts:
        return result
    kept = tuple(d for d in before.drifts if _moved(result, d) == _moved(before, d))
    return dataclasses.replace(result, drifts=kept)


def _moved(result: ClaimResult, drift: Drift) -> list[list[float | None]]:
    """The figures that a drift starts from."""
    arm = next((arm for arm in result.arms if arm.name == drift.arm), None)
    if arm is None:
        return []
    return [[arm.values.get(metric, {}).get(seed) for seed in result.seeds[: drift.seeds]] for metric in drift.moves]


def _joined(before: Verification | None, now: Verification) -> Verification:
    if before is None or before.scale != now.scale:
        return now
    here = place(before.environment)
    old = {
        result.claim.id: dataclasses.replace(result, place=result.place or here)
        for result in before.claims
        if result.verdict is not Verdict.NOT_RUN
    }
    new = {result.claim.id for result in now.claims}
    asked = {result.claim.id for result in now.claims if result.verdict is not Verdict.NOT_RUN}
    claims = [_with_drifts(r, old) if r.claim.id in asked else old.get(r.claim.id, r) for r in now.claims]
    claims += [old.get(result.claim.id, result) for result in before.claims if result.claim.id not in new]
    places = {result.claim.id: place for place, result in enumerate(before.claims)}
    claims.sort(key=lambda result: places.get(result.claim.id, len(places)))
    now = dataclasses.replace(now, claims=tuple(claims))
    kept: dict[str, list[str]] = {}
    for result in claims:
        if result.place:
            kept.setdefault(result.place, []).append(result.claim.id)
    if not kept:
        return now
    notes = [f"from an earlier verification ({where}): {', '.join(ids)}" for where, ids in kept.items()]
    return dataclasses.replace(now, notes=(*now.notes, *notes), work=now.work + before.work)
