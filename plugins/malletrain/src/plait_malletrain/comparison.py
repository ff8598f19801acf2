"""Policies on the same traces and jobs, seed by seed: figures, tables and plots, for command, run and claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plait.declare.recipe import Recipe
from plait.declare.results import Metric, Plot, Table
from plait.storage.progress import Silent

from .errors import MalletrainError
from .generator import summit_like
from .options import MalletrainOptions
from .policies import POLICY
from .simulation import Outcome, simulate
from .traces import Trace, read_trace, static_trace
from .workloads import Workload, workload

__all__ = ["Comparison", "compare", "scenario"]

SURPLUS = 1.5
"""Jobs there are by default, over those that the idle nodes could do at ten node-hours each."""

SHARES = ("utilisation", "stall_share", "curve_error", "profile_overhead")
BASES = ("equal", "freetrain-linear", "freetrain-mean", "oracle")
FIGURES: dict[str, tuple[str, float, str, Literal["higher", "lower", "neither"]]] = {
    "throughput": ("throughput", 1, "samples/s", "higher"),
    "normalised": ("normalised", 1, "one-node equivalents", "higher"),
    "utilisation": ("utilisation", 100, "%", "higher"),
    "stall_share": ("stall_share", 100, "%", "lower"),
    "profile_overhead": ("profile_overhead", 100, "%", "lower"),
    "profile_stall": ("profile_stall", 1, "s", "lower"),
    "curve_error": ("curve_error", 100, "%", "lower"),
    "jobs_done": ("done", 1, "jobs", "higher"),
    "replans": ("replans", 1, "", "neither"),
    "idle_nodes": ("equivalent_nodes", 1, "nodes", "neither"),
    "nodes_per_job": ("nodes_per_job", 1, "nodes", "neither"),
}
"""Metric of a run -> figure of an outcome, factor, unit, and which is better."""


def scenario(options: MalletrainOptions, seed: int, whole: Trace | None = None) -> tuple[Trace, Workload]:
    """The trace and the jobs of a seed. On a recorded trace every seed begins a day later than the one before.

    Args:
        options: which.
        seed: of everything drawn.
        whole: the recorded trace, where it was read before.

    Raises:
        MalletrainError: a trace that cannot be used.
    """
    seconds = options.hours * 3600
    if options.trace == "static":
        trace = static_trace(options.nodes, seconds)
    elif options.trace == "summit-like":
        trace = summit_like(options.nodes, options.hours, seed)
    else:
        whole = whole or recorded(options)
        start = options.start * 3600 + seed * 86400
        if start + seconds > whole.duration:
            start %= max(1.0, whole.duration - seconds)
        trace = whole.slice(start, seconds)
    trace = trace.thinned(options.part)
    if not len(trace.node):
        raise MalletrainError(f"{trace.name}: the trace is empty.")
    jobs = options.jobs
    if jobs is None:
        jobs = math.ceil(SURPLUS * trace.node_seconds / 36_000) + options.max_parallel
    return trace, workload(options.workload, jobs, seed)


def recorded(options: MalletrainOptions) -> Trace:
    """The whole trace of a file.

    Raises:
        MalletrainError: it cannot be read.
    """
    kind, _, path = options.trace.partition(":")
    return read_trace(path, kind, skip_maintenance=not options.keep_maintenance, allow_pickle=options.allow_pickle)


@dataclass
class Comparison:
    """What came of every policy in every seed.

    Attributes:
        outcomes: policy -> one `Outcome` per seed.
        dedicated: normalised throughput of the oracle on as many dedicated nodes as the pool is worth, per seed.
        notes: what the trace's reader clipped or left out.
    """

    options: MalletrainOptions
    seeds: tuple[int, ...]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    dedicated: list[float | None] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    where: str = ""

    def ratios(self, policy: str, base: str) -> list[float]:
        """Normalised throughput of a policy over that of another, seed by seed; NaN where the other did nothing."""
        pairs = zip(self.outcomes[policy], self.outcomes[base], strict=True)
        return [a.normalised / b.normalised if b.normalised else math.nan for a, b in pairs]

    def efficiency(self, policy: str) -> list[float]:
        """Normalised throughput over that on dedicated nodes; NaN where the pool was empty."""
        pairs = zip(self.outcomes[policy], self.dedicated, strict=True)
        return [o.normalised / base if base else math.nan for o, base in pairs]

    def table(self) -> Table:
        """A row a policy: means over the seeds, and ratios paired by seed."""
        bases = [name for name in BASES if name in self.outcomes and name != "freetrain-linear"]
        smallest = ["smallest"] if "equal" in bases else []
        rows: list[list[Any]] = []
        for name in self.outcomes:
            row = [name, self.mean(name, "normalised"), self.mean(name, "throughput")]
            row += [_average(self.ratios(name, base)) for base in bases]
            row += [min(self.ratios(name, "equal")) for _ in smallest]
            row += [_average(self.efficiency(name)), *(self.mean(name, key, 100) for key in SHARES)]
            rows.append([*row, self.resizes(name), self.mean(name, "done")])
        columns = ["policy", "1-node eq.", "samples/s", *(f"over {name}" for name in bases), *smallest]
        columns += ["efficiency", "used %", "stalled %", "curve err. %", "profiling %", "resizes/h", "done"]
        first, count = next(iter(self.outcomes)), len(self.seeds)
        title = f"{self.where}; {self.options.workload}, {count} seed{'s' if count > 1 else ''}:"
        title += f" {self.mean(first, 'equivalent_nodes'):.1f} idle nodes in the mean,"
        return Table(f"{title} {self.mean(first, 'nodes_per_job'):.1f} for a running job", columns, rows)

    def metrics(self) -> dict[str, Metric]:
        """The figures of the policy that the options name, as a run reports them."""
        name = self.shown
        figures = {
            metric: Metric(self.mean(name, key, factor), unit, better)
            for metric, (key, factor, unit, better) in FIGURES.items()
        }
        figures["efficiency"] = Metric(100 * _average(self.efficiency(name)), "%", "higher")
        figures["resizes_per_hour"] = Metric(self.resizes(name), "1/h", "lower")
        slowest = max(outcome.main_queue_delay for outcome in self.outcomes[name])
        figures["main_queue_delay"] = Metric(slowest, "s", "lower")
        for base in BASES:
            if base in self.outcomes and base != name:
                over = _average(self.ratios(name, base))
                figures[f"over_{base.replace('-', '_')}"] = Metric(over, "", "higher")
        return figures

    @property
    def shown(self) -> str:
        """The policy whose figures a run reports: the option's, or the first."""
        return self.options.policy if self.options.policy in self.outcomes else next(iter(self.outcomes))

    def mean(self, policy: str, key: str, factor: float = 1.0) -> float:
        """Mean over the seeds in which a figure is defined; NaN where it is in none."""
        known = [value for o in self.outcomes[policy] if (value := getattr(o, key)) is not None]
        return factor * _average(known) if known else math.nan

    def resizes(self, policy: str) -> float:
        """Resizes an hour."""
        outcomes = self.outcomes[policy]
        return 3600 * sum(o.resizes for o in outcomes) / sum(o.duration for o in outcomes)

    def plots(self) -> dict[str, Plot]:
        """Pool and use over time, throughput over the oracle's, and the pool's sizes, of the first seed."""
        name = self.shown
        outcome = self.outcomes[name][0]
        hours, idle = [t / 3600 for t in outcome.times], [float(n) for n in outcome.pool]
        series = {"idle": (hours, idle), "in use": (hours, [float(n) for n in outcome.used])}
        plots = {"pool": Plot(f"Idle nodes, and those that {name} uses", "hours", "nodes", series)}
        if "oracle" in self.outcomes:
            names = list(self.outcomes)
            share = [100 * _average(self.ratios(policy, "oracle")) for policy in names]
            bars: dict[str, tuple[Sequence[str], Sequence[float]]] = {"of the oracle": (names, share)}
            plots["oracle"] = Plot("Throughput, % of the oracle's", "", "%", bars, kind="bar")
        order = sorted(idle, reverse=True) or [0.0]
        sizes = {"pool": ([100 * (rank + 1) / len(order) for rank in range(len(order))], order)}
        title = "How often the pool has at least so many nodes"
        return {**plots, "pool_sizes": Plot(title, "% of the changes", "nodes", sizes)}

    def replan_plot(self) -> Plot:
        """Wall times of the re-plans; they differ from run to run, so a run does not report them."""
        share = [float(p) for p in range(1, 100)]
        series = {
            name: (share, np.percentile(np.concatenate([o.solver_ms for o in outcomes]), share).tolist())
            for name, outcomes in self.outcomes.items()
        }
        return Plot("Re-plan times", "percentile", "ms", series)

    def as_dict(self) -> dict[str, object]:
        """Every figure of every policy and seed; the same on every machine."""
        left_out = ("times", "pool", "used", "samples", "solver_ms")
        return {
            "where": self.where,
            "notes": list(self.notes),
            "seeds": list(self.seeds),
            "dedicated": self.dedicated,
            "policies": {
                name: [{k: v for k, v in vars(o).items() if k not in left_out} for o in outcomes]
                for name, outcomes in self.outcomes.items()
            },
        }


def compare(
    options: MalletrainOptions,
    seeds: Sequence[int] = (0,),
    policies: Sequence[str] | None = None,
    progress: Silent | None = None,
    dedicated: bool = True,
) -> Comparison:
    """Simulate policies on the same traces and jobs.

    Args:
        options: machine, jobs, profiling.
        seeds: of traces and jobs.
        policies: default ``options.policies``.
        progress: shows how many simulations are done; default nothing.
        dedicated: also simulate dedicated nodes, for the efficiency.

    Raises:
        MalletrainError: a policy that there is not, or a trace that cannot be used.
    """
    names = list(policies or options.policies)
    if unknown := [name for name in names if name not in POLICY]:
        raise MalletrainError(f"policies: {unknown[0]!r}: choose from {', '.join(POLICY)}.")
    result = Comparison(options, tuple(seeds), {name: [] for name in names})
    whole = recorded(options) if ":" in options.trace else None
    progress = progress or Silent()
    progress.start(len(names) * len(seeds), 0, options.workload)
    for number, seed in enumerate(seeds):
        trace, jobs = scenario(options, seed, whole)
        for place, name in enumerate(names):
            progress.advance(number * len(names) + place, f"{name}, seed {seed}")
            result.outcomes[name].append(simulate(trace, jobs, name, options))
        base = round(result.outcomes[names[0]][-1].equivalent_nodes)  # dedicated nodes that are worth this pool
        alone = simulate(static_trace(base, trace.duration), jobs, "oracle", options) if base and dedicated else None
        result.dedicated.append(alone.normalised if alone is not None else None)
        result.notes = tuple(dict.fromkeys((*result.notes, *trace.notes)))
        result.where = f"{trace.name}, {trace.nodes} nodes, {trace.duration / 3600:g} h"
    return result


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def arm(recipe: Recipe, folder: Path) -> dict[str, float]:
    """A simulation as an arm of a claim: what a run with this recipe reports, without its training."""
    options = MalletrainOptions.model_validate(recipe.plugins["malletrain"])
    result = compare(options, (recipe.seed,), dedicated=False)
    return {f"malletrain/{name}": metric.value for name, metric in result.metrics().items()}
