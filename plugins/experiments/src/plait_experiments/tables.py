"""The figures of a verification as tables of text, for the terminal, the pages and the scoreboard."""

from __future__ import annotations

from collections.abc import Sequence

from plait_experiments.expressions import parse
from plait_experiments.results import ArmResult, ClaimResult, Verification
from plait_experiments.statistics import Interval, Summary
from plait_experiments.verdicts import Judgement
from plait_report.formatting import duration, number

Row = list[str]
NONE = "-"
ARM_COLUMNS = ("arm", "metric", "seeds", "mean ± SE", "paper", "unit")
EXPECTATION_COLUMNS = ("expectation", "value", "threshold", "margin, 95 % interval", "paper's margin", "verdict")
SCORE_COLUMNS = ("claim", "verdict", "what was expected: margin [95 % interval]", "seeds", "source")


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


def margin(judgement: Judgement) -> str:
    """``+0.35 [-0.1, 0.8]``; ``exact`` where no interval is needed."""
    if judgement.margin is None:
        return NONE
    sign = "+" if judgement.margin > 0 else ""
    if judgement.exact:
        return f"{sign}{number(judgement.margin)} (no interval)"
    return f"{sign}{number(judgement.margin)} {bracket(judgement.interval)}".strip()


def bracket(interval: Interval | None) -> str:
    """``[low, high]``, or nothing."""
    return "" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"


def tuning_rows(result: ClaimResult) -> tuple[list[str], list[Row]]:
    """Every grid point that was tried, with its validation score."""
    rows = [
        [
            arm.name,
            ", ".join(f"{key}={value}" for key, value in t.point.items()),
            figure(t.score),
            str(len(t.scores)),
            "chosen" if t.chosen else "",
        ]
        for arm in result.arms
        for t in arm.tuning
    ]
    return ["arm", "tried", "validation score (mean)", "tuning seeds", ""], rows


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
            chosen = ", ".join(f"{key}={value}" for key, value in arm.point.items())
            texts.append(f"Arm {arm.name}: {chosen}, chosen among {len(arm.tuning)} by {arm.chosen_by}.")
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
    seen = "; ".join(f"{j.text}: {margin(j)}" for j in result.judgements if j.margin is not None)
    verdict = result.verdict.value + ("" if result.claim.gate else " (reported only)")
    return [result.claim.sentence, verdict, seen or result.reason or NONE, str(len(result.seeds)), _source(result)]


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
