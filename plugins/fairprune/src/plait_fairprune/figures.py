"""What a run reports: figures, tables and plots of a mask and of the predictions by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from plait.declare.results import Metric, Plot, Table

from .engine import BiFPEngine
from .measures import GroupFigures

__all__ = ["fairness", "plots", "sparsity", "tables"]

Results = dict[str, Metric | Table | Plot]


def fairness(now: GroupFigures, dense: Tensor | None) -> Results:
    """Accuracies and gaps; of the dense network's accuracy by group [G], where it is known, also what was lost."""
    flag = f"{now.largest_class:.1f} % of the predictions are one class" if now.constant else ""
    empty = "a group has no example that it is counted over"
    named: dict[str, tuple[float, str, Any]] = {
        "accuracy": (now.overall, "%", "higher"),
        "accuracy_balanced": (now.balanced, "%", "higher"),
        "accuracy_worst_group": (now.worst, "%", "higher"),
        "accuracy_gap": (now.accuracy_gap, "points", "lower"),
    }
    named |= {f"accuracy_group_{group}": (float(v), "%", "higher") for group, v in enumerate(now.accuracy)}
    if dense is not None:
        named["degradation_gap"] = (now.degradation_gap(dense), "points", "lower")
        lost = dense - now.accuracy
        named |= {f"lost_group_{group}": (float(v), "points", "lower") for group, v in enumerate(lost)}
    if not bool(now.positive_rate.isnan().all()):
        for name in ("dp", "eo", "fpr_gap", "eodds"):
            named[name] = (getattr(now, name), "points", "lower")
    named["largest_class"] = (now.largest_class, "%", "neither")
    return {
        name: Metric(value, unit, better, empty if value != value else flag)
        for name, (value, unit, better) in named.items()
    }


def sparsity(engine: BiFPEngine, model: nn.Module) -> Results:
    """Achieved against requested, and how much the mask moved."""
    schedule, kept = engine.schedule, int(engine.kept.sum())
    learning = [entry for entry in engine.history if entry[0] > schedule.start]
    changes = sum(entry[2] for entry in learning)
    revived = sum(entry[3] for entry in learning)
    per_update = 100 * changes / (len(learning) * schedule.size) if learning else 0.0
    parameters = sum(p.numel() for p in model.parameters())
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    return {
        "sparsity": Metric(
            100 * (1 - kept / schedule.size), "%", "neither", f"requested {100 * engine.options.sparsity:g} %"
        ),
        "kept": Metric(kept, "units", "neither", f"of {schedule.size}"),
        "parameters": Metric(parameters, "parameters", "lower"),
        "nonzero": Metric(nonzero, "parameters", "lower", "of all parameters, biases and norms too"),
        "churn": Metric(per_update, "%", "neither", "entries that change in a mask step, after the first"),
        "revived": Metric(revived, "units", "neither", "came back after they were pruned"),
    }


def tables(engine: BiFPEngine, now: GroupFigures, names: Sequence[str], dense: Tensor | None) -> Results:
    """Every group with its rates, and every layer with what stays of it."""
    columns = ["group", "examples", "accuracy %", "predicted positive %", "true positive %", "false positive %"]
    rates = (now.accuracy, now.positive_rate, now.true_positive_rate, now.false_positive_rate)
    rows: list[list[Any]] = [
        [names[group], int(now.counts[group]), *_numbers(group, *rates)] for group in range(len(now.counts))
    ]
    if dense is not None:
        columns += ["dense accuracy %", "lost points"]
        rows = [[*row, *_numbers(group, dense, dense - now.accuracy)] for group, row in enumerate(rows)]
    layers = [[name, units, kept, 100 * kept / units] for name, (kept, units) in engine.counts().items()]
    return {
        "groups": Table("Both groups, so that levelling down shows", columns, rows),
        "layers": Table("What stays of each layer", ["layer", "units", "kept", "kept %"], layers),
    }


def plots(
    engine: BiFPEngine, curve: Sequence[Sequence[float]], names: Sequence[str], now: GroupFigures, dense: Tensor | None
) -> Results:
    """Accuracy by group, layers, the mask's movement, and the validation figures on the way to the sparsity."""
    before = {} if dense is None else {"dense": (list(names), dense.tolist())}
    groups = before | {"now": (list(names), now.accuracy.tolist())}
    shares = {name: 100 * kept / units for name, (kept, units) in engine.counts().items()}
    layers = {"kept": (list(shares), list(shares.values()))}
    given: Results = {
        "group_accuracy": Plot("Accuracy of each group", "group", "accuracy %", groups, "bar"),
        "layers_kept": Plot("Kept in each layer", "layer", "kept %", layers, "bar"),
    }
    if len(engine.history) > 1:
        series = _columns(engine.history, 0, {"changed": 2, "came back": 3}, 100 / engine.schedule.size)
        given["mask_churn"] = Plot("Entries that a mask step changes", "step", "% of all", series)
    if len(curve) > 1:
        series = _columns(curve, 0, {"accuracy %": 2, "worst group %": 3, "accuracy gap, points": 4})
        given["on_the_way"] = Plot("Validation while pruning", "step", "percent", series)
        series = _columns(sorted(curve, key=lambda entry: entry[4]), 4, {"accuracy %": 2, "sparsity %": 1})
        given["trade_off"] = Plot("Fairness against accuracy and sparsity", "accuracy gap, points", "percent", series)
    return given


def _columns(
    rows: Sequence[Sequence[float]], x: int, of_series: Mapping[str, int], factor: float = 1.0
) -> dict[str, tuple[list[float], list[float]]]:
    """Series over column ``x``: name -> its column, times the factor."""
    at = [row[x] for row in rows]
    return {name: (at, [factor * row[column] for row in rows]) for name, column in of_series.items()}


def _numbers(group: int, *rates: Tensor) -> list[float | None]:
    """The group's rates; None where undefined."""
    values = [float(rate[group]) for rate in rates]
    return [None if value != value else value for value in values]
