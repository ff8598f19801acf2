"""A plugin's claims with their verdicts: sentences from ``claims.toml``, figures from the scoreboard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from making.shared import DOCS, table
from plait_experiments.schema import Claim, load
from plait_report.formatting import number

SCOREBOARD = DOCS / "scoreboard" / "scoreboard.json"


def claims_part(plugin: str) -> str:
    """The table of a plugin's claims, then the figures of every claim that was run."""
    book = load(plugin)
    if book is None:
        return "This plugin has no claims of its own."
    entry = _scoreboard().get(plugin, {})
    results: dict[str, Mapping[str, Any]] = {result["id"]: result for result in entry.get("claims", ())}
    rows = [_row(claim, results.get(claim.id)) for claim in book.claims]
    parts = [table(["id", "verdict", "claim", "source"], rows)]
    ran = [claim for claim in book.claims if _arms(results.get(claim.id))]
    if ran:
        parts.append(_setting(entry))
    for claim in ran:
        parts += _figures(claim, results[claim.id])
    return "\n\n".join(parts)


@cache
def _scoreboard() -> dict[str, Any]:
    if not SCOREBOARD.exists():
        return {}
    return {entry["plugin"]: entry for entry in json.loads(SCOREBOARD.read_text(encoding="utf-8"))["plugins"]}


def _row(claim: Claim, result: Mapping[str, Any] | None) -> list[str]:
    source = claim.source + (" (thresholds ours)" if claim.ours else "")
    if "[inferred]" in claim.reconstruction:
        source += " [inferred]"
    verdict = _word(result) if result else "not run"
    said = f"**{verdict}**" if verdict != "not run" else verdict
    said += f": {_line(result['reason'])}" if result and result["reason"] else ""
    gate = "" if claim.gate else " (reported only)"
    return [f"`{claim.id}`", f"{said}{gate}", _line(claim.sentence), _line(source)]


def _arms(result: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The arms that have a figure."""
    arms = (result or {}).get("arms", {}).items()
    return [(name, arm) for name, arm in arms if any(m.get("mean") is not None for m in arm["metrics"].values())]


def _setting(entry: Mapping[str, Any]) -> str:
    environment = entry.get("environment", {})
    torch = environment.get("versions", {}).get("torch", "")
    machine = ", ".join(filter(None, [str(environment.get("device_name") or ""), f"torch {torch}" if torch else ""]))
    changed = "".join(f", {key}={value}" for key, value in entry.get("settings", {}).items())
    return f"Run at {entry['scale']} scale{changed}: {entry['about']}. {machine}."


def _figures(claim: Claim, result: Mapping[str, Any]) -> list[str]:
    """Arms against metrics, mean ± standard error; then what was expected, with its margin."""
    arms = _arms(result)
    metrics = [m for m in result["metrics"] if any(_value(arm, m) != "-" for _, arm in arms)]
    units = {m: result["metrics"][m]["unit"] for m in metrics}
    columns = ["arm", *(f"{m} ({units[m]})" if units[m] else m for m in metrics)]
    rows = []
    for name, arm in arms:
        point = ", ".join(f"{key}={value}" for key, value in arm.get("chosen", {}).items())
        how = "a tie on validation" if arm.get("tie") else "chosen"
        label = f"`{name}`" + (f" ({point}, {how})" if point else "")
        rows.append([label, *(_value(arm, m) for m in metrics)])
        paper = [result["paper"].get(f"{name}.{m}") for m in metrics]
        if any(value is not None for value in paper):
            rows.append(["the paper", *("-" if value is None else number(value) for value in paper)])
    seeds = len(result["seeds"])
    setting = f" The paper's figures: {claim.paper_setting}." if claim.paper and claim.paper_setting else ""
    lead = f"**{claim.id}: {_word(result)}.** Mean ± standard error over {seeds} seeds.{setting}"
    expected = [_expectation(e) for e in result["expectations"] if e["margin"] is not None]
    heads = ["expected", "margin [95 % interval]", "verdict", "paired SD", "seeds for 80 % power"]
    return [lead, table(columns, rows), table(heads, expected)]


def _expectation(judged: Mapping[str, Any]) -> list[str]:
    text = f"guard: `{judged['expectation']}`" if judged["guard"] else f"`{judged['expectation']}`"
    margin = _signed(judged["margin"])
    if judged.get("difference") is not None:
        margin += f" wins; difference {_signed(judged['difference'])}"
    if judged["interval"]:
        margin += f" [{number(judged['interval']['low'])}, {number(judged['interval']['high'])}]"
    takes = judged.get("power")
    if not takes:
        return [text, margin, _word(judged), "-", "-"]
    seeds = f"{takes['seeds']:,}" if takes["seeds"] is not None else "over 1,000,000"
    return [text, margin, _word(judged), number(takes["deviation"]), seeds]


def _word(judged: Mapping[str, Any]) -> str:
    return "undecidable at this size" if judged.get("undecidable") else str(judged["verdict"])


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _value(arm: Mapping[str, Any], metric: str) -> str:
    summary = arm["metrics"].get(metric, {})
    if summary.get("mean") is None:
        return "-"
    error = summary.get("standard_error")
    return number(summary["mean"]) + (f" ± {float(f'{error:.2g}'):g}" if error is not None else "")


def _line(text: str) -> str:
    return " ".join(text.split())
