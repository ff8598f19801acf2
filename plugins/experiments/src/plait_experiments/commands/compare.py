"""``plait compare``."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait_cli import completion, output
from plait_cli.parameters import AsJson
from plait_experiments import statistics

# `plait --help` imports this module: what else a call needs is imported in it
if TYPE_CHECKING:
    from plait_cli.catalog import Seen

BESIDE = {"seed", "device", "loggers", "checkpoint", "distributed"}
"""Keys of a recipe that may differ between runs of one group."""


@dataclass
class Group:
    """Runs that differ only in the seed.

    Attributes:
        name: a short name for columns.
        runs: in the order of their seeds.
        differs: the recipe's keys in which the groups differ, with this group's values.
    """

    name: str
    runs: list[Seen]
    differs: dict[str, Any]

    def values(self, metric: str) -> dict[int, float | None]:
        """seed -> value; the mean where a seed was run more than once."""
        by_seed: dict[int, list[float | None]] = {}
        for run in self.runs:
            if metric in run.details and run.recipe is not None:
                by_seed.setdefault(run.recipe.seed, []).append(run.details[metric].get("value"))
        return {seed: statistics.summary(values).mean for seed, values in by_seed.items()}

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        seeds = [run.recipe.seed for run in self.runs if run.recipe is not None]
        return {"name": self.name, "runs": [r.shown for r in self.runs], "seeds": seeds, "differs": self.differs}


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or folders of them; also s3://...",
            autocompletion=completion.run_directories,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Put runs side by side; runs that differ only in the seed are averaged (mean ± standard error).

    Two groups also get their difference, second minus first, paired by seed, with a 95 % interval from two seeds on
    (Student's t, beyond ten seeds a bootstrap): the statistics of `plait verify`.

    Examples:

      plait compare runs/dense runs/sparse
      plait compare runs/dense-seeds3 runs/sparse-seeds3 --json
    """
    from plait.errors import BadInput
    from plait_cli.catalog import finished

    seen = finished(runs)
    if len(seen) < 2:
        raise BadInput("compare needs two or more finished runs.")
    groups = grouped(seen)
    comparisons = {name: compared(name, groups) for name in dict.fromkeys(name for run in seen for name in run.details)}
    if as_json:
        output.emit({"groups": [g.as_dict() for g in groups], "metrics": comparisons})
        return
    differences = [c["difference"] for c in comparisons.values() if "difference" in c]
    columns = ["metric", *(g.name for g in groups), *(["difference"] if len(groups) == 2 else []), "unit", "better"]
    rows = []
    for name, comparison in comparisons.items():
        row = [name, *(spread(comparison["groups"][g.name]) for g in groups)]
        if len(groups) == 2:
            row.append(spread(comparison["difference"], sign="+") + bracket(comparison["difference"]["interval"]))
        rows.append([*row, comparison["unit"], "" if comparison["better"] == "neither" else comparison["better"]])
    output.show(output.table("", columns, rows, right=range(1, len(columns) - 2)))
    for group in groups:
        what = ", ".join(f"{key}={value}" for key, value in group.differs.items())
        seeds = ", ".join(str(run.recipe.seed) for run in group.runs if run.recipe is not None)
        typer.echo(f"{group.name}: {len(group.runs)} run(s), seed(s) {seeds}{'; ' + what if what else ''}")
    if len(groups) == 2:
        pairs = max((difference["n"] for difference in differences if difference["paired"]), default=0)
        how = f"paired by seed ({pairs} pair(s))" if pairs else "of the means (no common seed)"
        methods = {difference["interval"]["method"] for difference in differences if difference["interval"]}
        few = "Student's t" if "t" in methods else "bootstrap" if methods - {"constant"} else "every seed agrees"
        more = f"; in brackets the 95 % interval ({few})" if methods else ""
        typer.echo(f"difference: {groups[1].name} minus {groups[0].name}, {how}{more}")


def grouped(runs: list[Seen]) -> list[Group]:
    """Runs of one recipe but for the seed, in the order of first appearance."""
    together: dict[str, list[Seen]] = {}
    flats: dict[str, dict[str, Any]] = {}
    for run in runs:
        assert run.recipe is not None
        flat = flattened(run.recipe.model_dump(mode="json", exclude=BESIDE))
        flat["plugins"] = "+".join(run.recipe.plugins) or "none"
        key = json.dumps(flat, sort_keys=True, default=str)
        together.setdefault(key, []).append(run)
        flats[key] = flat
    keys = {name for flat in flats.values() for name in flat}
    differing = sorted(k for k in keys if len({json.dumps(f.get(k), default=str) for f in flats.values()}) > 1)
    groups: list[Group] = []
    for key, members in together.items():
        members.sort(key=lambda run: run.recipe.seed if run.recipe else 0)
        name = PurePath(members[0].shown).name
        if len(members) > 1:
            parents = {PurePath(member.shown).parent for member in members}
            name = parents.pop().name if len(parents) == 1 else f"{name} and {len(members) - 1} more"
        taken = {group.name for group in groups}
        spare = (f"{name} #{number}" for number in itertools.count(2))
        unique = next(n for n in itertools.chain([name, members[0].shown], spare) if n and n not in taken)
        groups.append(Group(unique, members, {k: flats[key].get(k) for k in differing}))
    return groups


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; plugin options without the leading ``plugins.``."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = "" if not prefix and key == "plugins" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            flat |= flattened(value, inner)
        else:
            flat[inner] = value
    return flat


def compared(metric: str, groups: list[Group]) -> dict[str, Any]:
    """One metric over the groups, in the JSON form."""
    details = [run.details[metric] for group in groups for run in group.runs if metric in run.details]
    values = [group.values(metric) for group in groups]
    comparison: dict[str, Any] = {
        "unit": details[0].get("unit", ""),
        "better": details[0].get("better", "neither"),
        "groups": {
            group.name: {**statistics.summary(list(by_seed.values())).as_dict(), "by_seed": by_seed}
            for group, by_seed in zip(groups, values, strict=True)
        },
    }
    if len(groups) == 2:
        comparison["difference"] = statistics.difference(*values).as_dict()
    return comparison


def bracket(interval: dict[str, Any] | None) -> str:
    """`` [low, high]`` of a paired difference, or nothing."""
    return "" if interval is None else f" [{output.figure(interval['low'])}, {output.figure(interval['high'])}]"


def spread(summary: dict[str, Any], sign: str = "") -> str:
    """``mean ± standard error``; the mean alone for one value."""
    if summary["mean"] is None:
        return "-"
    plus = sign if summary["mean"] > 0 else ""
    error = summary["standard_error"]
    return f"{plus}{output.figure(summary['mean'])}" + (f" ± {output.figure(error)}" if error is not None else "")
