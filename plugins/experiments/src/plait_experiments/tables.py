"""The figures of a verification as tables of text, for the terminal, the pages and the scoreboard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from plait_experiments.expressions import parse
from plait_experiments.power import LARGEST, POWER, Power
from plait_experiments.results import ArmResult, ClaimResult, Verification
from plait_experiments.statistics import Interval, Summary
from plait_experiments.verdicts import UNDECIDABLE, Judgement, Verdict
from plait_report.formatting import duration, number

Row = list[str]
NONE = "-"
ARM_COLUMNS = ("arm", "metric", "seeds", "mean ± SE", "paper", "unit")
EXPECTATION_COLUMNS = ("expectation", "value", "threshold", "margin, 95 % interval", "paper's margin", "verdict")
POWER_COLUMNS = (
    "expectation",
    "seeds",
    "paired SD",
    "margin to see",
    "test",
    f"seeds for {100 * POWER:.0f} % power",
)
DRIFT_COLUMNS = ("arm", "changed", "on", "seeds", "largest move in one seed")
SCORE_COLUMNS = (
    "claim",
    "verdict",
    f"what was expected: margin [95 % interval] (paired SD, seeds for {100 * POWER:.0f} % power)",
    "seeds",
    "source",
)
OPEN_COLUMNS = ("method", "claim", "says", "undecided", "seeds", f"seeds for {100 * POWER:.0f} % power")
VERDICTS = (
    *(Verdict.HOLDS, Verdict.FAILS, Verdict.GUARD_BROKEN),
    *(Verdict.UNDECIDED, UNDECIDABLE, Verdict.NOT_RUN, Verdict.PILOT),
)
"""Every `word`, in the order of a scoreboard's columns."""


def figure(value: float | None) -> str:
    """Four digits that matter; ``-`` where there is none."""
    return NONE if value is None else number(value)


def spread(summary: Summary) -> str:
    """``mean ± standard error``."""
    if summary.mean is None:
        return NONE
    error = summary.standard_error
    return number(summary.mean) + (f" ± {float(f'{error:.2g}'):g}" if error is not None else "")


def arm_rows(result: ClaimResult) -> list[Row]:
    """`ARM_COLUMNS` for every arm and metric of a claim."""
    used = {reference for judgement in result.judgements for reference in parse(judgement.text).references}
    rows = []
    for arm in result.arms:
        shown = [name for name in result.metrics if (arm.name, name) in used or _measured(arm, name)]
        for name in shown:
            summary = arm.summary(name)
            seeds = str(summary.n) if summary.n == len(result.seeds) else f"{summary.n} of {len(result.seeds)}"
            label = arm.name if name == shown[0] else ""
            paper, unit = figure(result.paper(arm.name, name)), result.metrics[name].unit
            rows.append([label, name, seeds, spread(summary), paper, unit])
    return rows


def _measured(arm: ArmResult, metric: str) -> bool:
    return any(value is not None for value in arm.values.get(metric, {}).values())


def expectation_rows(result: ClaimResult) -> list[Row]:
    """`EXPECTATION_COLUMNS` for every expectation and guard."""
    rows = []
    for j in result.judgements:
        text = f"guard: {j.text}" if j.guard else j.text
        verdict = f"{j.verdict.value} ({j.note})" if j.note else j.verdict.value
        rows.append([text, figure(j.left), figure(j.right), margin(j), figure(j.paper_margin), verdict])
    return rows


def word(judged: Judgement | ClaimResult) -> str:
    """The verdict; ``undecidable at this size`` where no number of seeds that anybody runs would give one."""
    return UNDECIDABLE if judged.undecidable else judged.verdict.value


def power_rows(result: ClaimResult) -> list[Row]:
    """`POWER_COLUMNS` for every expectation and guard: what a verdict takes."""
    rows = []
    for j in result.judgements:
        text = f"guard: {j.text}" if j.guard else j.text
        if (takes := j.power) is None:
            rows.append([text, str(j.n), NONE, NONE, NONE, _would_take(j)])
            continue
        seen = figure(takes.margin) + (" (required)" if takes.required else "")
        rows.append([text, str(j.n), figure(takes.deviation), seen, takes.sides, _would_take(j)])
    return rows


def _would_take(judgement: Judgement) -> str:
    """How many seeds decide it, or why that cannot be said."""
    if (takes := judgement.power) is not None:
        return _needed(takes) + (f": {UNDECIDABLE}" if takes.undecidable else "")
    return "judged in every seed" if judgement.exact else "one seed has no spread" if judgement.n == 1 else NONE


def _needed(takes: Power) -> str:
    return f"{takes.seeds:,}" if takes.seeds is not None else f"over {LARGEST:,}"


def _takes(takes: Power | None) -> str:
    """`` (SD 0.4, 27 seeds)``."""
    if takes is None:
        return ""
    sides = f", {takes.sides}" if takes.two_sided else ""
    said = f": {UNDECIDABLE}" if takes.undecidable else ""
    return f" (SD {figure(takes.deviation)}, {_needed(takes)} seeds{sides}{said})"


def drift_rows(result: ClaimResult) -> list[Row]:
    """`DRIFT_COLUMNS`: how far one arm moves with what should not matter."""
    return [
        [d.arm, d.change, d.where, str(d.seeds), ", ".join(f"{m} {number(v)}" for m, v in d.moves.items()) or NONE]
        for d in result.drifts
    ]


def margin(judgement: Judgement) -> str:
    """``+0.35 [-0.1, 0.8]``; ``(no interval)`` where none is needed; of counted wins the interval of the difference."""
    if judgement.margin is None:
        return NONE
    sign = "+" if judgement.margin > 0 else ""
    if judgement.exact:
        return f"{sign}{number(judgement.margin)} (no interval)"
    if judgement.difference is not None:
        plus = "+" if judgement.difference > 0 else ""
        counted = f"{plus}{number(judgement.difference)} {bracket(judgement.interval)}".strip()
        return f"{sign}{number(judgement.margin)} wins; difference {counted}"
    return f"{sign}{number(judgement.margin)} {bracket(judgement.interval)}".strip()


def bracket(interval: Interval | None) -> str:
    """``[low, high]``, or nothing."""
    return "" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"


def tuning_rows(result: ClaimResult) -> tuple[list[str], list[Row]]:
    """Every grid point that was tried, with its validation score."""
    rows = [
        [
            arm.name,
            _point(t.point),
            figure(t.score),
            str(len(t.scores)),
            spread(t.gain) if t.gain is not None else NONE,
            ", ".join(said for said, on in (("default", t.default), ("chosen", t.chosen), ("tie", t is arm.tie)) if on),
        ]
        for arm in result.arms
        for t in arm.tuning
    ]
    return ["arm", "tried", "validation score (mean)", "tuning seeds", "minus the default (mean ± SE)", ""], rows


def ties(result: ClaimResult) -> list[str]:
    """A sentence for every arm whose best grid point is no better than its default beyond the standard error."""
    texts = []
    for arm in result.arms:
        best = arm.tie
        if best is None or best.gain is None:
            continue
        taken = "the default is taken" if not best.chosen else "its figures are shown, as chosen by an earlier rule"
        error = "one tuning seed has no standard error" if best.gain.n < 2 else "no more than its standard error"
        default = next(_point(t.point) for t in arm.tuning if t.default)
        texts.append(
            f"Arm {arm.name}, a tie on validation: {_point(best.point)} minus the default {default} is "
            f"{spread(best.gain)} ({error}); {taken}."
        )
    return texts


def _point(point: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())


def remarks(result: ClaimResult) -> list[str]:
    """What must be said with a claim: reconstruction, whose thresholds, failures, few seeds."""
    claim = result.claim
    texts = []
    if result.reason:
        texts.append(f"Not run: {result.reason}")
    for arm in result.arms:
        for seed, text in arm.failures.items():
            texts.append(f"Arm {arm.name}, seed {seed}, failed: {text}")
        if arm.tuning and arm.point:
            texts.append(f"Arm {arm.name}: {_point(arm.point)}, chosen among {len(arm.tuning)} by {arm.chosen_by}.")
    texts += ties(result)
    if claim.ours:
        texts.append("The thresholds are ours, not the paper's.")
    if claim.reconstruction:
        texts.append(f"Reconstruction: {claim.reconstruction}")
    if claim.paper:
        texts.append(f"The paper's figures: {claim.paper_setting or 'setting not given'}.")
    if not claim.gate:
        texts.append("Reported only; it does not decide the exit code.")
    if claim.notes:
        texts.append(claim.notes)
    return texts


def score_row(result: ClaimResult) -> Row:
    """`SCORE_COLUMNS` of a claim."""
    seen = "; ".join(f"{j.text}: {margin(j)}{_takes(j.power)}" for j in result.judgements if j.margin is not None)
    verdict = word(result) + open_for(result) + ("" if result.claim.gate else " (reported only)")
    return [result.claim.sentence, verdict, seen or result.reason or NONE, str(len(result.seeds)), _source(result)]


def open_for(result: ClaimResult) -> str:
    """How many seeds would decide an undecided claim, where that can be said; else nothing."""
    if result.verdict is not Verdict.UNDECIDED or result.undecidable:
        return ""
    most = max(map(_seeds, _undecided(result)))
    return f", {most} seeds for {100 * POWER:.0f} % power" if most < math.inf else ""


def _undecided(result: ClaimResult) -> list[Judgement]:
    return [judgement for judgement in result.judgements if judgement.verdict is Verdict.UNDECIDED]


def _seeds(judgement: Judgement) -> float:
    """That decide it; of what cannot be said most."""
    takes = None if judgement.missing else judgement.power
    return math.inf if takes is None or takes.seeds is None else takes.seeds


def overview(verifications: Sequence[Verification]) -> tuple[list[str], list[Row]]:
    """How many claims of each method came out how, and of all together; a verdict that none has gets no column."""
    counts = {v.plugin: Counter(word(result) for result in v.claims) for v in verifications}
    counts["all"] = sum(counts.values(), Counter())
    shown = [verdict for verdict in VERDICTS if counts["all"][verdict]]
    rows = [[name, str(of.total()), *(str(of[verdict]) for verdict in shown)] for name, of in counts.items()]
    return ["method", "claims", *shown], rows


def open_rows(verifications: Sequence[Verification]) -> list[Row]:
    """`OPEN_COLUMNS` for every undecided claim: how many of its expectations are, and what a verdict would take."""
    rows = []
    for verification in verifications:
        for result in verification.claims:
            if result.verdict is not Verdict.UNDECIDED:
                continue
            undecided = _undecided(result)
            missing = any(judgement.missing for judgement in undecided)
            takes = "runs are missing" if missing else _would_take(max(undecided, key=_seeds))
            count = f"{len(undecided)} of {len(result.judgements)}"
            claim = result.claim
            rows.append([verification.plugin, claim.id, claim.sentence, count, str(len(result.seeds)), takes])
    return rows


def _source(result: ClaimResult) -> str:
    marks = [word for word, on in (("thresholds ours", result.claim.ours), ("[inferred]", _inferred(result))) if on]
    return result.claim.source + (f" ({', '.join(marks)})" if marks else "")


def _inferred(result: ClaimResult) -> bool:
    return "[inferred]" in result.claim.reconstruction


def heading(verification: Verification) -> str:
    """``chase 0.1.0 at laptop scale``."""
    version = f" {verification.version}" if verification.version else ""
    return f"{verification.plugin}{version} at {verification.scale} scale"


def facts(verification: Verification) -> list[tuple[str, str]]:
    """What it ran on and how much."""
    environment = verification.environment
    versions = environment.get("versions", {})
    known = [
        ("scale", f"{verification.scale}: {verification.about}" if verification.about else verification.scale),
        ("device", str(environment.get("device_name") or environment.get("device") or "")),
        ("torch", str(versions.get("torch", ""))),
        ("commit", str(environment.get("commit") or "")),
        ("cells", f"{verification.ran} run now, {verification.cached} from the cache"),
        ("work", f"{duration(verification.work)} of runs in all"),
    ]
    if verification.settings:
        known.append(("changed", ", ".join(f"{k}={v}" for k, v in verification.settings.items())))
    return [(what, value) for what, value in known if value]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; text in cells cannot break it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(columns), "| " + " | ".join("---" for _ in columns) + " |", *map(line, rows)])
