"""What malletrain costs: re-plans against HiGHS, events per second of the simulator, and resizes of real runs.

``python benchmarks/malletrain.py [--no-live]``. CPU seconds of one thread; the live part is in wall time, on a machine
as busy as it is (its load is printed). ``--plot FILE`` draws a day instead: idle nodes, and those in use.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plait.declare.recipe import Recipe
from plait_malletrain.allocation import Demand, allocate
from plait_malletrain.comparison import compare
from plait_malletrain.generator import summit_like
from plait_malletrain.milp import solve_counts
from plait_malletrain.options import MalletrainOptions
from plait_malletrain.simulation import simulate
from plait_malletrain.trial import live
from plait_malletrain.workloads import workload

PROBLEMS = ((10, 100, 64, 1.0), (30, 1000, 64, 8.0), (100, 4000, 256, 80.0))
"""Jobs, nodes, nmax, and the bar in ms (card, correction 10: of the compiled form; NumPy's own are 2, 20 and 250)."""


def demands(jobs: int, nodes: int, most: int, seed: int) -> list[Demand]:
    """Curves of 7 breakpoints; 90 % of the nodes are in use."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.rint(np.geomspace(1, most, 7)).astype(int))
    held = rng.multinomial(int(0.9 * nodes), np.ones(jobs) / jobs).clip(0, most)
    return [
        Demand(sizes, sizes ** rng.uniform(0.3, 1.0), int(h), rng.uniform(17, 19), rng.uniform(11, 13)) for h in held
    ]


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median milliseconds."""
    spans = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        spans.append(1e3 * (time.process_time() - began))
    return statistics.median(spans)


def draw(path: Path) -> None:
    """A day of the generated machine: the pool, what MalleTrain uses of it, and throughput against its rivals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result = compare(MalletrainOptions(), (0,), ("equal", "freetrain-mean", "malletrain", "oracle"))
    outcome = result.outcomes["malletrain"][0]
    figure = Figure(figsize=(9, 3))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    hours = np.array(outcome.times) / 3600
    left.fill_between(hours, outcome.pool, step="post", color="#cfd8e3", label="idle")
    left.step(hours, outcome.used, where="post", color="#1f6fb2", linewidth=0.8, label="used by training")
    left.set(xlabel="hours", ylabel="nodes of 512", xlim=(0, 24), ylim=(0, None))
    left.legend(frameon=False)
    names = list(result.outcomes)
    right.barh(names[::-1], [100 * result.ratios(name, "oracle")[0] for name in names[::-1]], color="#1f6fb2")
    right.set(xlabel="throughput, % of the oracle's", xlim=(0, 105))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-live", action="store_true", help="leave out the real runs (two minutes)")
    parser.add_argument("--month", action="store_true", help="simulate the whole month, not 6 hours of it (minutes)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a day instead")
    given = parser.parse_args()
    if given.plot is not None:
        draw(given.plot)
        return
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("re-plan, tables built, ms (median of 20; HiGHS of 3)   bar    windows     HiGHS   relative difference")
    for jobs, nodes, most, bar in PROBLEMS:
        problem = demands(jobs, nodes, most, 0)
        ours = timed(lambda p=problem, n=nodes: allocate(p, n, 120.0), 20)  # type: ignore[misc]
        theirs = timed(lambda p=problem, n=nodes: solve_counts(p, n, 120.0), 3)  # type: ignore[misc]
        best, check = allocate(problem, nodes, 120.0).value, solve_counts(problem, nodes, 120.0).value
        what = f"{jobs} jobs, {nodes} nodes, nmax {most}"
        print(f"{what:<52}{bar:>7.0f}{ours:>11.2f}{theirs:>10.0f}{abs(best / check - 1):>14.1e}")
    began = time.process_time()
    month = summit_like(4608, 30 * 24.0, 0)
    made = time.process_time() - began
    trace = month if given.month else month.slice(0, 6 * 3600)
    changes = len(month.events[0])
    print(f"\na month of 4,608 nodes: {len(month.node)} idle fragments, {changes} changes,", end=" ")
    print(f"made in {made:.1f} s", flush=True)
    jobs_there = workload("nas", 30_000 if given.month else 2_000, 0)
    began, clock = time.process_time(), time.monotonic()
    outcome = simulate(trace, jobs_there, "malletrain")
    spent, passed = time.process_time() - began, time.monotonic() - clock
    print(f"simulated {trace.duration / 3600:.0f} h of it: {outcome.events} events in {spent:.1f} s", end=" ")
    print(f"({passed:.0f} s on the clock, load {os.getloadavg()[1]:.1f}), {outcome.events / spent:.0f} events/s")
    print(
        f"re-plans there: median {np.median(outcome.solver_ms):.2f} ms, p99 {np.percentile(outcome.solver_ms, 99):.2f}"
    )
    if given.no_live:
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = live(Recipe.parse({"seed": 0}), Path(folder))
    print("\nlive, two runs on 4 slots of which one is killed and one asked back:")
    for name, value in figures.items():
        print(f"  {name.removeprefix('live/'):<16}{value:g}")


if __name__ == "__main__":
    main()
