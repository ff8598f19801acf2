"""The plugin's commands: `plait malletrain simulate`, `convert`, `serve`, `status`."""

from __future__ import annotations

import inspect
import json as documents
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from plait.declare.recipe import validated
from plait.declare.results import Table
from plait.errors import BadInput
from plait.storage import progress as bars
from plait.storage.files import write_text
from plait_cli import output

from .comparison import Comparison, compare
from .options import MalletrainOptions, ServeOptions
from .traces import read_trace, write_changes

if TYPE_CHECKING:
    from pydantic import BaseModel

F = TypeVar("F", bound=Callable[..., Any])
PLAIN = (int, float, bool, str, int | None, str | None)
"""Types that a command line knows; any other option is a text, which its model reads."""


def takes(model: type[BaseModel]) -> Callable[[F], F]:
    """Give a command an option for every field of a model, in the place of its ``**given``."""

    def decorate(function: F) -> F:
        *parameters, _ = inspect.signature(function, eval_str=True).parameters.values()
        for name, field in model.model_fields.items():
            kind = field.annotation if field.annotation in PLAIN else str
            default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            option = Annotated[kind, typer.Option(help=field.description)]  # type: ignore[valid-type]
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, keyword, default=default, annotation=option))
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Pickles = Annotated[bool, typer.Option(help="Read pickles, by an unpickler that knows tables only.")]


@takes(MalletrainOptions)
def simulate(
    *,
    seeds: Annotated[int, typer.Option(min=1, help="How many; on a recorded trace each begins a day later.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with the plots (needs plait-report).")] = None,
    json: AsJson = False,
    **given: Any,
) -> None:
    """Compare policies on the idle nodes of a cluster: who gets how much training out of them."""
    if seeds < 1 or seed < 0:
        raise BadInput(f"--seeds {seeds} --seed {seed}: give at least 1, and a first one of at least 0.")
    options = validated(MalletrainOptions, given, "malletrain simulate")
    progress = bars.make(sys.stderr.isatty())
    try:
        result = compare(options, range(seed, seed + seeds), progress=progress)
    finally:
        progress.stop()
    drawn = _page(result) if page is not None else ""
    if json:
        print(documents.dumps(result.as_dict()))
    else:
        _show(result.table(), *result.notes)
        for name, outcomes in result.outcomes.items():
            if wall := sorted(ms for outcome in outcomes for ms in outcome.solver_ms):
                slow = wall[int(0.99 * (len(wall) - 1))]
                _show(f"{name}: {len(wall)} re-plans, {statistics.median(wall):.2f} ms median, {slow:.2f} ms p99")
    if page is not None:
        write_text(page, drawn)
        print(f"page: {page}", file=sys.stderr)


def convert(source: str, target: Path, allow_pickle: Pickles = False) -> None:
    """Write a trace (swf:FILE, replayer:FILE or table:FILE) as a table of changes: FILE.csv or FILE.parquet."""
    kind, colon, path = source.partition(":")
    if not colon:
        raise BadInput(f"{source}: say what it is: swf:{source}, replayer:{source} or table:{source}.")
    trace = read_trace(path, kind, skip_maintenance=False, allow_pickle=allow_pickle)
    write_changes(trace, target)
    what = f"{len(trace.node)} idle fragments of {trace.nodes} nodes, {trace.duration / 3600:.1f} h"
    _show(*trace.notes, f"{target}: {what}")


@takes(ServeOptions)
def serve(
    recipes: Annotated[list[Path], typer.Argument(help="Files of recipes; their names are the jobs'.")],
    *,
    out: Annotated[Path, typer.Option(help="Where runs, recipes and the state lie.")] = Path("runs/malletrain"),
    script: Annotated[Path | None, typer.Option(help="Lines SECONDS join|leave|kill SLOT, for tests.")] = None,
    json: AsJson = False,
    **given: Any,
) -> None:
    """Train recipes as resizable jobs on so many slots, which may come and go; the same command goes on after a stop.

    A slot is a worker: a process of this machine on a core of its own, or with --slurm and --ray one of a cluster.
    """
    import signal

    from plait.errors import Interrupted, RunFailed

    from .jobs import admitted
    from .launchers import Launcher, LocalProcesses, Ray, Slurm
    from .manager import Manager
    from .script import read_script

    options = validated(ServeOptions, given, "malletrain serve")
    orders = read_script(script) if script is not None else []
    jobs = admitted(recipes)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def interrupted(*_: object) -> None:
        raise Interrupted(f"stopped. Go on with the same command, or look: plait malletrain status {out}")

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        with Manager(out, options, say) as manager:
            manager.submit(jobs)
            token, log = (out / "token").resolve(), (out / "workers.log").resolve()
            launcher: Launcher = LocalProcesses(manager.address, token, log)
            if options.slurm:
                launcher = Slurm(manager.address, token, log, options.slurm_options)
            elif options.ray is not None:
                launcher = Ray(manager.address, token, options.ray)
            manager.run(launcher, [str(slot) for slot in range(options.slots)], orders)
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


def status(
    out: Annotated[Path, typer.Option(help="The manager's folder.")] = Path("runs/malletrain"),
    watch: Annotated[bool, typer.Option("--watch", help="Again every second, until all are done.")] = False,
    json: AsJson = False,
) -> None:
    """What the manager's jobs are doing."""
    import time

    from .manager import read_state

    state = read_state(out)
    if json:
        print(documents.dumps(state))
    elif not watch:
        _show_state(state)
    else:
        from rich.live import Live

        with Live(_grid(_jobs_table(state)), auto_refresh=False) as live:
            while state["running"]:
                time.sleep(1)
                state = read_state(out)
                live.update(_grid(_jobs_table(state)), refresh=True)


def _jobs_table(state: dict[str, Any]) -> Table:
    """A row a job."""
    columns = ["job", "state", "slots", "step", "of", "starts", "done again", "rescale s", "rates (samples/s)"]
    rows = []
    for job in state["jobs"]:
        rates = ", ".join(f"{n}: {rate:.3g}" for n, rate in sorted(job["table"].get("rates", {}).items()))
        rescale = statistics.median(job["rescales"]) if job["rescales"] else None
        row = [job["name"], job["state"], " ".join(job["slots"]) or "-"]
        rows.append([*row, *(job[key] for key in ("step", "total", "generation", "redone")), rescale, rates])
    return Table(f"{len(state['nodes'])} slots: {' '.join(state['nodes'])}; policy {state['policy']}", columns, rows)


def _show_state(state: dict[str, Any]) -> None:
    delays = [f"slots asked back were free after {max(state['release_s']):.2f} s at most"] if state["release_s"] else []
    _show(_jobs_table(state), *delays, *(f"{job['name']}: {job['why']}" for job in state["jobs"] if job["why"]))


def _show(*things: Table | str) -> None:
    output.show(*(_grid(thing) if isinstance(thing, Table) else thing for thing in things))


def _grid(table: Table) -> Any:
    return output.table(table.title, table.columns, table.rows, right=range(1, len(table.columns)))


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

    def row(cells: Any, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(output.figure(cell))}</{tag}>" for cell in cells) + "</tr>"

    sheet = files("plait_report").joinpath("templates/report.css").read_text(encoding="utf-8")
    table = result.table()
    body = [f"<h1>plait malletrain simulate</h1><p>{escape(table.title)}</p>", "<table>", row(table.columns, "th")]
    body += [*(row(cells, "td") for cells in table.rows), "</table>", *(f"<p>{escape(n)}</p>" for n in result.notes)]
    for number, plot in enumerate([*result.plots().values(), result.replan_plot()]):
        chart = from_plot(documents.loads(documents.dumps(asdict(plot), default=float)))
        names = " ".join(f'<span style="color:var(--s{s[1] % 8})">{escape(s[0])}</span>' for s in legend(chart.series))
        body.append(f"<h2>{escape(plot.title)}</h2><p>{names}</p>{draw(chart, f'p{number}')}")
    return f'<!doctype html><meta charset="utf-8"><title>malletrain</title><style>{sheet}</style>{"".join(body)}'
