"""What the page of a run says, read from its directory without drawing anything. Damaged entries are left out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from plait.storage.directory import RunDirectory
from plait_report.charts import Chart, curves, from_plot
from plait_report.formatting import cell, defined, duration, is_number, number

EXPORTED = "@export"
ENDS = {"result": "finished", "failed": "failed", "interrupted": "interrupted", "plan": "running", "resumed": "running"}
ARROWS = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better")}
SHOWN_EVENTS = 200


@dataclass(frozen=True)
class Status:
    """How the run stands: ``finished``, ``failed``, ``interrupted`` or ``running``, at which step, and a sentence."""

    word: str
    step: int | None
    sentence: str
    error: str = ""


@dataclass(frozen=True)
class MetricRow:
    """A headline metric; ``value`` and ``exported`` are texts, empty where there is none."""

    name: str
    value: str
    exported: str
    unit: str
    arrow: str
    meaning: str
    note: str


@dataclass(frozen=True)
class TablePart:
    """A table: header and rows, both of (text, whether it is set like a number)."""

    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[tuple[str, bool]]]


@dataclass
class PluginPart:
    """What one plugin reported beside its metrics."""

    name: str
    tables: list[TablePart] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlanRow:
    """One hook: who acts, in order, and why."""

    hook: str
    order: list[str]
    reasons: list[str]


@dataclass(frozen=True)
class Happening:
    """One event that is not a scalar."""

    when: str
    event: str
    step: str
    text: str


@dataclass(frozen=True)
class Contents:
    """Everything that the page shows."""

    name: str
    heading: str
    status: Status
    facts: list[tuple[str, str]]
    metrics: dict[str, list[MetricRow]]
    curves: dict[str, list[Chart]]
    plugins: list[PluginPart]
    plan: list[PlanRow]
    ownership: list[tuple[str, list[str]]]
    unchecked: list[str]
    recipe: str
    environment: list[tuple[str, str]]
    notes: list[str]
    happenings: list[Happening]
    earlier: int

    @property
    def any_exported(self) -> bool:
        """Whether the metrics table has a column for the exported model."""
        return any(row.exported for rows in self.metrics.values() for row in rows)


def read(directory: RunDirectory) -> Contents:
    """Read a run directory, whatever state the run is in."""
    events = directory.events()
    recipe_text = directory.recipe_file.read_text("utf-8", "replace") if directory.recipe_file.is_file() else ""
    recipe = _parsed(recipe_text)
    environment = directory.environment()
    name = directory.path.resolve().name
    result = _last(events, "result") or {}
    plan = _last(events, "plan") or {}
    plugins = list(_table(recipe.get("plugins")))
    happenings = _happenings(events)
    return Contents(
        name=name,
        heading=" + ".join(plugins) or "Plain training",
        status=_status(events, recipe, name),
        facts=_facts(events, recipe, plan, environment),
        metrics=_metrics(_table(result.get("details"))),
        curves=_curves(events),
        plugins=_plugins(result),
        plan=_plan(plan),
        ownership=[(plugin, _texts(owned)) for plugin, owned in _table(plan.get("ownership")).items()],
        unchecked=_texts(plan.get("unchecked")),
        recipe=recipe_text,
        environment=list(_flat(environment)) if isinstance(environment, dict) else [],
        notes=[str(e.get("text", "")) for e in events if e.get("event") == "note"],
        happenings=happenings[-SHOWN_EVENTS:],
        earlier=max(0, len(happenings) - SHOWN_EVENTS),
    )


# ---- inside ------------------------------------------------------------------------------------------------------
def _status(events: list[dict[str, Any]], recipe: Mapping[str, Any], name: str) -> Status:
    ends = [e for e in events if e.get("event") in ENDS]
    last = ends[-1] if ends else {}
    word = ENDS.get(str(last.get("event")), "running")
    known = [s for e in events if (s := defined(e.get("step"))) is not None]
    ended_at = defined(last.get("step")) if word in ("finished", "interrupted") else None
    step = int(ended_at if ended_at is not None else known[-1]) if known else None
    again = f"go on with: plait resume {name}"
    sentence = {
        "finished": "The run reached its end.",
        "failed": f"The run stopped with an error; {again}",
        "interrupted": f"The run was stopped and wrote a checkpoint; {again}",
        "running": f"No end is recorded: it is still running, or it was killed. If it was killed, {again}",
    }[word]
    selected = _last(events, "selected")
    if selected:
        step_of, score = cell(selected.get("step")), cell(selected.get("score"))
        sentence += f" The weights of step {step_of} were selected (score {score})."
    total = defined(_table(recipe.get("train")).get("steps"))
    if total is not None and word != "finished":
        sentence = f"The budget is {number(total)} steps. {sentence}"
    return Status(word, step, sentence, str(last.get("error", "")) if word == "failed" else "")


def _facts(
    events: list[dict[str, Any]], recipe: Mapping[str, Any], plan: Mapping[str, Any], environment: Any
) -> list[tuple[str, str]]:
    environment = _table(environment)
    times = [t for e in events if (t := defined(e.get("time"))) is not None]
    facts: list[tuple[str, Any]] = [
        ("data", plan.get("data") or _table(recipe.get("data")).get("name")),
        ("model", plan.get("model") or _table(recipe.get("model")).get("name")),
        ("seed", str(recipe["seed"]) if "seed" in recipe else None),
        ("device", environment.get("device") or recipe.get("device")),
        ("precision", recipe.get("precision")),
    ]
    if times:
        facts += [("started", _moment(times[0])), ("took", duration(times[-1] - times[0]))]
    return [(what, cell(value)) for what, value in facts if value is not None]


def _moment(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return None


def _metrics(details: Mapping[str, Any]) -> dict[str, list[MetricRow]]:
    grouped: dict[str, list[MetricRow]] = {}
    for full in dict.fromkeys(name.removesuffix(EXPORTED) for name in details):
        trained, exported = (_table(details.get(key)) for key in (full, full + EXPORTED))
        about = trained or exported
        arrow, meaning = ARROWS.get(str(about.get("better")), ("", ""))
        plugin, _, name = full.partition("/")
        row = MetricRow(
            name or full,
            number(trained.get("value")) if trained else "",
            number(exported.get("value")) if exported else "",
            str(about.get("unit") or ""),
            arrow,
            meaning,
            str(about.get("note") or ""),
        )
        grouped.setdefault(plugin, []).append(row)
    return grouped


def _curves(events: list[dict[str, Any]]) -> dict[str, list[Chart]]:
    """Prefix -> charts, training first, then validation, then the plugins as they came."""
    groups: dict[str, dict[str, list[tuple[float, Any]]]] = {"train": {}, "validation": {}}
    for event in events:
        step = defined(event.get("step"))
        if event.get("event") != "scalars" or step is None:
            continue
        for name, value in _table(event.get("values")).items():
            prefix = name.partition("/")[0] if "/" in name else "other"
            groups.setdefault(prefix, {}).setdefault(name, []).append((step, value))
    return {prefix: curves(scalars) for prefix, scalars in groups.items() if scalars}


def _plugins(result: Mapping[str, Any]) -> list[PluginPart]:
    parts: dict[str, PluginPart] = {}

    def part(full: str) -> PluginPart:
        plugin = full.partition("/")[0]
        return parts.setdefault(plugin, PluginPart(plugin))

    for full, table in _table(result.get("tables")).items():
        part(full).tables.append(_table_part(full, _table(table)))
    for full, plot in _table(result.get("plots")).items():
        try:
            chart = from_plot({**_table(plot), "title": _titled(full, _table(plot))})
        except ValueError as error:
            part(full).problems.append(f"The plot {full} could not be drawn: {error}.")
            continue
        part(full).charts.append(chart)
    return list(parts.values())


def _table_part(full: str, table: Mapping[str, Any]) -> TablePart:
    rows = [list(r) if isinstance(r, (list, tuple)) else [r] for r in table.get("rows") or []]
    columns = [
        (c, all(is_number(r[i]) for r in rows if i < len(r))) for i, c in enumerate(_texts(table.get("columns")))
    ]
    return TablePart(_titled(full, table), columns, [[(cell(v), is_number(v)) for v in row] for row in rows])


def _titled(full: str, entry: Mapping[str, Any]) -> str:
    title = str(entry.get("title") or full.removesuffix(EXPORTED))
    return f"{title} (exported model)" if full.endswith(EXPORTED) else title


def _plan(plan: Mapping[str, Any]) -> list[PlanRow]:
    orders, reasons = _table(plan.get("order")), _table(plan.get("reasons"))
    return [PlanRow(hook, _texts(order), _texts(reasons.get(hook))) for hook, order in orders.items()]


def _happenings(events: list[dict[str, Any]]) -> list[Happening]:
    start = next((t for e in events if (t := defined(e.get("time"))) is not None), None)
    happenings = []
    for event in events:
        kind = str(event.get("event"))
        if kind == "scalars":
            continue
        time = defined(event.get("time"))
        quiet = {"event", "time", "step"} if kind not in ("plan", "result") else set(event)
        text = "; ".join(f"{k}: {cell(v)}" for k, v in event.items() if k not in quiet)
        when = f"+{duration(time - start)}" if time is not None and start is not None and time >= start else ""
        happenings.append(Happening(when, kind, cell(event["step"]) if "step" in event else "", text))
    return happenings


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} / ")
        else:
            rows.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return rows


def _last(events: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((e for e in reversed(events) if e.get("event") == kind), None)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else []
