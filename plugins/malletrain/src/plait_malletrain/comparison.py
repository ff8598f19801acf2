"""Policies on the same traces and jobs, seed by seed: figures, tables and plots, for command, run and claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plait.declare.recipe import Recipe
from plait.declare.results import Metric, Plot, Table

from .errors import MalletrainError
from .generator import summit_like
from .options import MalletrainOptions
from .policies import POLICY
from .simulation import Outcome, simulate
from .traces import Trace, read_trace, static_trace, usable
from .workloads import Workload, workload

__all__ = ["Comparison", "compare", "scenario"]

SURPLUS = 1.5
"""Jobs there are by default, over those that the idle nodes could do at ten node-hours each."""


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
    trace = usable(trace.thinned(options.part))
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
        bases = [name for name in ("equal", "freetrain-mean", "oracle") if name in self.outcomes]
        columns = ["policy", "1-node eq.", "samples/s", *(f"over {name}" for name in bases)]
        if "equal" in bases:
            columns.append("smallest")
        columns += ["efficiency", "used %", "stalled %", "curve err. %", "profiling %", "resizes/h", "done"]
        rows = []
        for name, outcomes in self.outcomes.items():
            row: list[object] = [name, _mean(outcomes, "normalised"), _mean(outcomes, "throughput")]
            row += [_average(self.ratios(name, base)) for base in bases]
            if "equal" in bases:
                row.append(min(self.ratios(name, "equal")))
            hours = sum(o.duration for o in outcomes) / 3600
            row += [_average(self.efficiency(name)), _percent(outcomes, "utilisation")]
            row += [_percent(outcomes, key) for key in ("stall_share", "curve_error", "profile_overhead")]
            row += [sum(o.resizes for o in outcomes) / hours, _mean(outcomes, "done")]
            rows.append(row)
        first = next(iter(self.outcomes.values()))
        title = (
            f"{self.where}; {self.options.workload}, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}: "
            f"{_mean(first, 'equivalent_nodes'):.1f} idle nodes in the mean, "
            f"{_mean(first, 'nodes_per_job'):.1f} for a running job"
        )
        return Table(title, columns, rows)

    def metrics(self) -> dict[str, Metric]:
        """The figures of the first policy asked for, or of ``malletrain``, as a run reports them."""
        name = self.options.policy if self.options.policy in self.outcomes else next(iter(self.outcomes))
        outcomes = self.outcomes[name]

        def of(key: str, factor: float = 1.0) -> float:
            values = [getattr(o, key) for o in outcomes]
            known = [v for v in values if v is not None]
            return factor * float(np.mean(known)) if known else math.nan

        hours = sum(o.duration for o in outcomes) / 3600
        figures = {
            "throughput": Metric(of("throughput"), "samples/s", "higher"),
            "normalised": Metric(of("normalised"), "one-node equivalents", "higher"),
            "efficiency": Metric(100 * _average(self.efficiency(name)), "%", "higher"),
            "utilisation": Metric(of("utilisation", 100), "%", "higher"),
            "stall_share": Metric(of("stall_share", 100), "%", "lower"),
            "profile_overhead": Metric(of("profile_overhead", 100), "%", "lower"),
            "profile_stall": Metric(of("profile_stall"), "s", "lower"),
            "curve_error": Metric(of("curve_error", 100), "%", "lower"),
            "main_queue_delay": Metric(max(o.main_queue_delay for o in outcomes), "s", "lower"),
            "jobs_done": Metric(of("done"), "jobs", "higher"),
            "replans": Metric(of("replans"), "", "neither"),
            "resizes_per_hour": Metric(sum(o.resizes for o in outcomes) / hours, "1/h", "lower"),
            "idle_nodes": Metric(of("equivalent_nodes"), "nodes", "neither"),
            "nodes_per_job": Metric(of("nodes_per_job"), "nodes", "neither"),
        }
        for base in ("equal", "freetrain-linear", "freetrain-mean", "oracle"):
            if base in self.outcomes and base != name:
                key = f"over_{base.replace('-', '_')}"
                figures[key] = Metric(_average(self.ratios(name, base)), "", "higher")
        return figures

    def plots(self) -> dict[str, Plot]:
        """Pool and use over time, throughput over the oracle's, and the pool's sizes, of the first seed."""
        name = self.options.policy if self.options.policy in self.outcomes else next(iter(self.outcomes))
        outcome = self.outcomes[name][0]
        hours = [t / 3600 for t in outcome.times]
        series = {"idle": (hours, [float(n) for n in outcome.pool])}
        series["in use"] = (hours, [float(n) for n in outcome.used])
        plots = {"pool": Plot(f"Idle nodes, and those that {name} uses", "hours", "nodes", series)}
        if "oracle" in self.outcomes:
            names = list(self.outcomes)
            share = [100 * _average(self.ratios(policy, "oracle")) for policy in names]
            bars: dict[str, tuple[Sequence[str], Sequence[float]]] = {"of the oracle": (names, share)}
            plots["oracle"] = Plot("Throughput, % of the oracle's", "", "%", bars, kind="bar")
        order = sorted(map(float, outcome.pool), reverse=True) or [0.0]
        share_of = [100 * (rank + 1) / len(order) for rank in range(len(order))]
        plots["pool_sizes"] = Plot(
            "How often the pool has at least so many nodes", "% of the changes", "nodes", {"pool": (share_of, order)}
        )
        return plots

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
    progress: Callable[[float, str], None] | None = None,
    dedicated: bool = True,
) -> Comparison:
    """Simulate policies on the same traces and jobs.

    Args:
        options: machine, jobs, profiling.
        seeds: of traces and jobs.
        policies: default ``options.policies``.
        progress: called with the share that is done and with what is done.
        dedicated: also simulate dedicated nodes, for the efficiency.

    Raises:
        MalletrainError: a policy that there is not, or a trace that cannot be used.
    """
    names = list(policies or options.policies)
    if unknown := [name for name in names if name not in POLICY]:
        raise MalletrainError(f"policies: {unknown[0]!r}: choose from {', '.join(POLICY)}.")
    result = Comparison(options, tuple(seeds), {name: [] for name in names})
    whole = recorded(options) if ":" in options.trace else None
    total = len(names) * len(seeds)
    for number, seed in enumerate(seeds):
        trace, jobs = scenario(options, seed, whole)
        for place, name in enumerate(names):
            done = number * len(names) + place
            tell: Mapping[str, Callable[[float], None]] = {}
            if progress is not None:
                tell = {"progress": _told(progress, done, total, f"{name}, seed {seed}")}
            result.outcomes[name].append(simulate(trace, jobs, name, options, **tell))
        base = result.outcomes[names[0]][-1].efficiency_base
        alone = simulate(static_trace(base, trace.duration), jobs, "oracle", options) if base and dedicated else None
        result.dedicated.append(alone.normalised if alone is not None else None)
        result.notes = tuple(dict.fromkeys((*result.notes, *trace.notes)))
        result.where = f"{trace.name}, {trace.nodes} nodes, {trace.duration / 3600:g} h"
    return result


def _told(progress: Callable[[float, str], None], done: int, total: int, what: str) -> Callable[[float], None]:
    return lambda share: progress((done + share) / total, what)


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean(outcomes: Sequence[Outcome], key: str) -> float:
    return _average([getattr(o, key) for o in outcomes])


def _percent(outcomes: Sequence[Outcome], key: str) -> float | None:
    known = [value for o in outcomes if (value := getattr(o, key)) is not None]
    return 100 * _average(known) if known else None


def arm(recipe: Recipe, folder: Path) -> dict[str, float]:
    """A simulation as an arm of a claim: what a run with this recipe reports, without its training."""
    options = MalletrainOptions.model_validate(recipe.plugins["malletrain"])
    result = compare(options, (recipe.seed,), dedicated=False)
    return {f"malletrain/{name}": metric.value for name, metric in result.metrics().items()}
