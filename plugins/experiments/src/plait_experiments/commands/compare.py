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

if TYPE_CHECKING:
    from plait.storage.catalog import Seen

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
        from plait_experiments import statistics

        by_seed: dict[int, list[float | None]] = {}
        for run in self.runs:
            if metric in run.details and run.recipe is not None:
                by_seed.setdefault(run.recipe.seed, []).append(run.details[metric].get("value"))
        return {seed: statistics.summary(found).mean for seed, found in by_seed.items()}

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

    Two groups also get their difference, second minus first, paired by seed, with a bootstrap interval from three seeds
    on: the statistics of `plait verify`.

    Examples:

      plait compare runs/dense runs/sparse
      plait compare runs/dense-seeds3 runs/sparse-seeds3 --json
    """
    from plait.errors import BadInput
    from plait.storage.catalog import finished

    found = finished(runs)
    if len(found) < 2:
        raise BadInput("compare needs two or more finished runs.")
    groups = grouped(found)
    names = list(dict.fromkeys(name for seen in found for name in seen.details))
    figures = {name: compared(name, groups) for name in names}
    if as_json:
        output.emit({"groups": [g.as_dict() for g in groups], "metrics": figures})
        return
    columns = ["metric", *(g.name for g in groups), *(["difference"] if len(groups) == 2 else []), "unit", "better"]
    rows = []
    for name, made in figures.items():
        row = [name, *(spread(made["groups"][g.name]) for g in groups)]
        if len(groups) == 2:
            row.append(spread(made["difference"], sign="+") + within(made["difference"]))
        rows.append([*row, made["unit"], "" if made["better"] == "neither" else made["better"]])
    output.show(output.table("", columns, rows, right=range(1, len(columns) - 2)))
    for group in groups:
        what = ", ".join(f"{key}={value}" for key, value in group.differs.items())
        seeds = ", ".join(str(r.recipe.seed) for r in group.runs if r.recipe is not None)
        typer.echo(f"{group.name}: {len(group.runs)} run(s), seed(s) {seeds}{'; ' + what if what else ''}")
    if len(groups) == 2:
        pairs = max((made["difference"]["n"] for made in figures.values() if made["difference"]["paired"]), default=0)
        how = f"paired by seed ({pairs} pair(s))" if pairs else "of the means (no common seed)"
        brackets = any(made["difference"]["interval"] for made in figures.values())
        more = "; in brackets the 95 % bootstrap interval" if brackets else ""
        typer.echo(f"difference: {groups[1].name} minus {groups[0].name}, {how}{more}")


def grouped(found: list[Seen]) -> list[Group]:
    """Runs of one recipe but for the seed, in the order of first appearance."""
    together: dict[str, list[Seen]] = {}
    flats: dict[str, dict[str, Any]] = {}
    for seen in found:
        assert seen.recipe is not None
        flat = flattened(
            seen.recipe.model_dump(mode="json", exclude={"seed", "device", "loggers", "checkpoint", "distributed"})
        )
        flat["plugins"] = "+".join(seen.recipe.plugins) or "none"
        key = json.dumps(flat, sort_keys=True, default=str)
        together.setdefault(key, []).append(seen)
        flats[key] = flat
    keys = {name for flat in flats.values() for name in flat}
    differing = sorted(k for k in keys if len({json.dumps(f.get(k), default=str) for f in flats.values()}) > 1)
    groups: list[Group] = []
    for key, members in together.items():
        members.sort(key=lambda seen: seen.recipe.seed if seen.recipe else 0)
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
    """One metric over the groups."""
    from plait_experiments import statistics

    details = [run.details[metric] for group in groups for run in group.runs if metric in run.details]
    values = [group.values(metric) for group in groups]
    made: dict[str, Any] = {
        "unit": details[0].get("unit", ""),
        "better": details[0].get("better", "neither"),
        "groups": {
            group.name: {**statistics.summary(list(found.values())).as_dict(), "by_seed": found}
            for group, found in zip(groups, values, strict=True)
        },
    }
    if len(groups) == 2:
        made["difference"] = statistics.difference(*values).as_dict()
    return made


def within(made: dict[str, Any]) -> str:
    """`` [low, high]`` of a paired difference, or nothing."""
    found = made["interval"]
    return "" if found is None else f" [{output.figure(found['low'])}, {output.figure(found['high'])}]"


def spread(made: dict[str, Any], sign: str = "") -> str:
    """``mean ± standard error``; the mean alone for one value."""
    if made["mean"] is None:
        return "-"
    plus = sign if made["mean"] > 0 else ""
    error = made["standard_error"]
    return f"{plus}{output.figure(made['mean'])}" + (f" ± {output.figure(error)}" if error is not None else "")
