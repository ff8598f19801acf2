"""The plugin's commands: `plait malletrain simulate`, `convert`, `serve`, `status`."""

from __future__ import annotations

import json as documents
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.declare.recipe import validated
from plait.errors import BadInput

from .comparison import Comparison, compare
from .options import MalletrainOptions
from .traces import read_trace, write_changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from plait.declare.results import Plot, Table


def simulate(
    trace: str = "summit-like",
    nodes: int = 512,
    hours: float = 24.0,
    start: float = 0.0,
    part: int = 1,
    workload: str = "nas",
    jobs: int | None = None,
    max_parallel: int = 10,
    policies: str = "equal,freetrain-linear,freetrain-mean,passive,malletrain,oracle",
    objective: str = "speedup",
    horizon: float = 120.0,
    profile: str = "auto",
    seeds: int = 1,
    seed: int = 0,
    keep_maintenance: bool = False,
    allow_pickle: bool = False,
    page: Path | None = None,
    json: bool = False,
) -> None:
    """Compare policies on the idle nodes of a cluster: who gets how much training out of them.

    Args:
        trace: summit-like, static, swf:FILE, replayer:FILE or table:FILE.
        nodes: size of the machine, where the trace is generated.
        hours: length.
        start: where in a file it begins, hours; each seed begins a day later.
        part: only every so many-th node.
        workload: nas, nas-mild, nas-off, imagenet or hpo.
        jobs: how many there are; default more than can be done.
        max_parallel: jobs that run at a time.
        policies: separated by commas: equal, freetrain-linear, freetrain-mean, freetrain-wrong, passive, malletrain,
            malletrain-ascending, oracle.
        objective: speedup or throughput.
        horizon: T_fwd, seconds.
        profile: auto or always.
        seeds: how many.
        seed: the first.
        keep_maintenance: swf: keep the times in which more than 60 % is idle.
        allow_pickle: replayer: read pickles, by an unpickler that knows tables only.
        page: write an HTML page with the plots (needs plait-report).
        json: print one JSON document.
    """
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: give at least 1.")
    given = {
        "trace": trace,
        "nodes": nodes,
        "hours": hours,
        "start": start,
        "part": part,
        "workload": workload,
        "jobs": jobs,
        "max_parallel": max_parallel,
        "policies": [name.strip() for name in policies.split(",")],
        "objective": objective,
        "horizon": horizon,
        "profile": profile,
        "keep_maintenance": keep_maintenance,
        "allow_pickle": allow_pickle,
    }
    options = validated(MalletrainOptions, given, "malletrain simulate")
    with _progress() as progress:
        result = compare(options, range(seed, seed + seeds), progress=progress)
    if page is not None:
        from plait.storage.files import write_text

        write_text(page, _page(result))
    if json:
        print(documents.dumps(result.as_dict()))
        return
    _show(result, page)


def convert(source: str, target: Path, allow_pickle: bool = False) -> None:
    """Write a trace as a table of changes (time, node, idle).

    Args:
        source: swf:FILE, replayer:FILE or table:FILE.
        target: FILE.csv or FILE.parquet.
        allow_pickle: read pickles, by an unpickler that knows tables only.
    """
    kind, colon, path = source.partition(":")
    if not colon:
        raise BadInput(f"{source}: say what it is: swf:{source}, replayer:{source} or table:{source}.")
    trace = read_trace(path, kind, skip_maintenance=False, allow_pickle=allow_pickle)
    write_changes(trace, target)
    for note in trace.notes:
        print(note)
    print(f"{target}: {len(trace.node)} idle fragments of {trace.nodes} nodes, {trace.duration / 3600:.1f} h")


def serve(
    recipes: list[Path],
    slots: int = 2,
    out: Path = Path("runs/malletrain"),
    policy: str = "malletrain",
    nmax: int | None = None,
    max_parallel: int = 10,
    exact: bool = True,
    horizon: float = 10.0,
    profile_max: int = 4,
    measure_seconds: float = 10.0,
    warmup_steps: int = 10,
    restarts: int = 3,
    report_timeout: float = 300.0,
    grace: float = 1.5,
    script: Path | None = None,
    host: str = "127.0.0.1",
    slurm: bool = False,
    slurm_options: str = "",
    ray: str | None = None,
    json: bool = False,
) -> None:
    """Train recipes as resizable jobs on so many slots, which may come and go; the same command goes on after a stop.

    A slot is a worker: a process of this machine on a core of its own, or with --slurm and --ray one of a cluster.

    Args:
        recipes: TOML files of recipes; their names are the jobs'.
        slots: how many workers.
        out: where runs, recipes and the manager's state lie.
        policy: equal, passive, malletrain, malletrain-ascending or freetrain-linear.
        nmax: most slots of a job; default all.
        max_parallel: jobs that run at a time.
        exact: each job always runs as nmax processes, spread over its slots: the bits of a run that nothing disturbed;
            with --no-exact one process a slot, equal up to rounding.
        horizon: T_fwd, seconds that a resize has to pay within.
        profile_max: largest size of a profile.
        measure_seconds: shortest measurement.
        warmup_steps: steps that a measurement leaves out.
        restarts: how often a job whose processes fail is started again without progress.
        report_timeout: seconds without a step after which a job has failed.
        grace: seconds that a job has for a checkpoint when its slot is asked back.
        script: lines SECONDS join|leave|kill SLOT, for tests and demonstrations.
        host: the address where workers connect; other machines need another than loopback.
        slurm: workers are Slurm jobs.
        slurm_options: further options of sbatch.
        ray: workers are tasks of the Ray cluster at this address.
        json: print one JSON document.
    """
    import signal
    import sys

    from plait.errors import Interrupted, RunFailed

    from .launchers import Launcher, LocalProcesses, Ray, Slurm
    from .manager import Manager, read_script

    if not 1 <= slots <= 1024:
        raise BadInput(f"--slots {slots}: give 1 to 1024.")
    if nmax is not None and not 1 <= nmax <= slots:
        raise BadInput(f"--nmax {nmax}: give 1 to --slots, which is {slots}.")
    if slurm and ray is not None:
        raise BadInput("--slurm and --ray: choose one.")
    for name, value in (("report-timeout", report_timeout), ("grace", grace)):
        if not 0 < value < 1e6:
            raise BadInput(f"--{name} {value}: give seconds above 0.")
    if restarts < 0:
        raise BadInput(f"--restarts {restarts}: give 0 or more.")
    given = {
        "policy": policy,
        "max_parallel": max_parallel,
        "horizon": horizon,
        "profile_max": profile_max,
        "measure_seconds": measure_seconds,
        "warmup_steps": warmup_steps,
        "measure_steps": 5,
    }
    options = validated(MalletrainOptions, given, "malletrain serve")
    orders = read_script(script) if script is not None else []

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def interrupted(*_: object) -> None:
        raise Interrupted(f"stopped. Go on with the same command, or look: plait malletrain status {out}")

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        with Manager(
            out,
            options,
            nmax=nmax or slots,
            exact=exact,
            restarts=restarts,
            report_timeout=report_timeout,
            grace=grace,
            host=host,
            say=say,
        ) as manager:
            manager.submit(recipes)
            token, log = (out / "token").resolve(), (out / "workers.log").resolve()
            launcher: Launcher = LocalProcesses(manager.address, token, log)
            if slurm:
                launcher = Slurm(manager.address, token, log, slurm_options)
            elif ray is not None:
                launcher = Ray(manager.address, token, ray)
            manager.run(launcher, [str(slot) for slot in range(slots)], orders)
            state = manager.state_dict()
    except KeyboardInterrupt:
        interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        print(documents.dumps(state))
    else:
        _show_state(state)
    if failed := [job["name"] for job in state["jobs"] if job["state"] == "failed"]:
        raise RunFailed(f"{len(failed)} of {len(state['jobs'])} jobs failed: {', '.join(failed)}.")


def status(out: Path = Path("runs/malletrain"), watch: bool = False, json: bool = False) -> None:
    """What the manager's jobs are doing.

    Args:
        out: the manager's folder.
        watch: show it again every second, until all are done.
        json: print one JSON document.
    """
    import time

    from .manager import read_state

    state = read_state(out)
    if json:
        print(documents.dumps(state))
        return
    if not watch:
        _show_state(state)
        return
    from rich.live import Live

    with Live(grid(_jobs_table(state)), auto_refresh=False) as live:
        while state["running"]:
            time.sleep(1)
            state = read_state(out)
            live.update(grid(_jobs_table(state)), refresh=True)


def _jobs_table(state: dict[str, Any]) -> Table:
    """A row a job."""
    import statistics

    from plait.declare.results import Table

    columns = ["job", "state", "slots", "step", "of", "starts", "done again", "rescale s", "rates (samples/s)"]
    rows = []
    for job in state["jobs"]:
        rates = ", ".join(f"{n}: {rate:.3g}" for n, rate in sorted(job["table"].get("rates", {}).items()))
        rescale = statistics.median(job["rescales"]) if job["rescales"] else None
        where = " ".join(job["slots"]) or "-"
        rows.append(
            [
                job["name"],
                job["state"],
                where,
                job["step"],
                job["total"],
                job["generation"],
                job["redone"],
                rescale,
                rates,
            ]
        )
    return Table(f"{len(state['nodes'])} slots: {' '.join(state['nodes'])}; policy {state['policy']}", columns, rows)


def _show_state(state: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    console.print(grid(_jobs_table(state)))
    if state["release_s"]:
        console.print(f"slots asked back were free after {max(state['release_s']):.2f} s at most", markup=False)
    for job in state["jobs"]:
        if job["why"]:
            console.print(f"{job['name']}: {job['why']}", markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None] | None]:
    """A bar on stderr, where that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


def grid(table: Table) -> Any:
    """A rich table."""
    from rich import box
    from rich.table import Table as Grid

    shown = Grid(title=table.title, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*[_cell(value) for value in row])
    return shown


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _show(result: Comparison, page: Path | None) -> None:
    import numpy as np
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 170, highlight=False)
    console.print(grid(result.table()))
    for note in result.notes:
        console.print(note, markup=False)
    for name, outcomes in result.outcomes.items():
        wall = np.concatenate([o.solver_ms for o in outcomes])
        if len(wall):
            median, slow = np.percentile(wall, [50, 99])
            console.print(f"{name}: {len(wall)} re-plans, {median:.2f} ms median, {slow:.2f} ms p99", markup=False)
    if page is not None:
        console.print(f"page: {page}", markup=False)


def _page(result: Comparison) -> str:
    """The table and the plots as one HTML file."""
    try:
        from importlib.resources import files

        from plait_report.charts import from_plot
        from plait_report.figures import draw, legend
    except ImportError:
        raise BadInput("--page needs plait-report: pip install plait-report.") from None
    from dataclasses import asdict
    from html import escape

    sheet = files("plait_report").joinpath("templates/report.css").read_text(encoding="utf-8")
    table = result.table()
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>" for row in table.rows)
    parts = [f"<h1>plait malletrain simulate</h1><p>{escape(table.title)}</p>"]
    parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    parts += [f"<p>{escape(note)}</p>" for note in result.notes]
    plots: list[Plot] = [*result.plots().values(), result.replan_plot()]
    for number, plot in enumerate(plots):
        chart = from_plot(documents.loads(documents.dumps(asdict(plot), default=float)))
        names = " ".join(f'<span style="color:var(--s{s[1] % 8})">{escape(s[0])}</span>' for s in legend(chart.series))
        parts.append(f"<h2>{escape(plot.title)}</h2><p>{names}</p>{draw(chart, f'p{number}')}")
    return f'<!doctype html><meta charset="utf-8"><title>malletrain</title><style>{sheet}</style>{"".join(parts)}'
