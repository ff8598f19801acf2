"""``plait run`` and ``plait resume``."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait_cli import completion, output
from plait_cli.parameters import (
    AsJson,
    DataName,
    Device,
    Epochs,
    ModelName,
    PluginNames,
    Processes,
    RecipeFile,
    Restarts,
    RunPath,
    Seed,
    Settings,
    Steps,
    assemble,
)

if TYPE_CHECKING:
    from plait.declare.recipe import Recipe
    from plait.planning.plan import Plan
    from plait.run import Run


def run(
    recipe: RecipeFile = None,
    plugins: PluginNames = None,
    data: DataName = None,
    model: ModelName = None,
    settings: Settings = None,
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Run seeds 0 to N-1, each in DIR/seed-K, and average.")
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run directory; also s3://...; default runs/<time>-..."),
    ] = None,
    nproc: Processes = None,
    restarts: Restarts = 0,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="If DIR holds a run of this very recipe, go on with it (for schedulers).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, export and report.

    Ctrl-C writes a checkpoint and says how to go on. Several processes make one run together, to the same result:
    --nproc starts them on this machine; under torchrun or accelerate launch each of them is this command.

    Examples:

      plait run --epochs 1
      plait run -p chase -p fairsam --epochs 5 --out runs/both
      plait run recipe.toml --set chase.density=0.05 --seed 1
      plait run -p fairsam --data mypackage.data:load --model mypackage.nets:build
      plait run -p chase --seeds 3 --json
      plait run recipe.toml --nproc 2 --restarts 3 --out runs/shared
      torchrun --nproc-per-node 2 -m plait_cli run recipe.toml --out runs/shared
    """
    from plait.distributed.processes import current
    from plait.errors import BadInput
    from plait.planning.plan import make_plan
    from plait.storage.directory import default_path

    if seeds is not None and seed is not None:
        raise BadInput("give --seed or --seeds, not both.")
    if seeds is not None and not 1 <= seeds <= 10_000:
        raise BadInput(f"--seeds {seeds}: give a number from 1 to 10000.")
    team = Team(nproc, restarts, go_on)
    plan = make_plan(
        assemble(
            recipe, plugins, settings, data=data, model=model, epochs=epochs, steps=steps, seed=seed, device=device
        )
    )
    plan.raise_if_refused()  # before anything heavy is imported
    if seeds is not None:
        if not current().alone:
            raise BadInput("--seeds makes one run after the other: use it with --nproc, not under a launcher.")
        run_seeds(plan, seeds, out or seeds_path(plan.recipe, seeds), as_json, team)
        return
    path = out if out is not None else default_path(plan.recipe)
    finish(start(plan, None if out is None and not current().alone else path, team), as_json)


def resume(
    run: RunPath,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="NAME", help="Default: the newest.", autocompletion=completion.checkpoints
        ),
    ] = None,
    device: Device = None,
    nproc: Processes = None,
    restarts: Restarts = 0,
    anyway: Annotated[
        bool, typer.Option("--go-on-anyway", help="Also over data that has changed since the run began.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with an interrupted run, to the same result bit for bit on the same kind of device.

    It may go on with another number of processes than it began with, in the same order of samples. Over data that has
    changed since the run began it is refused, unless --go-on-anyway says otherwise.

    Examples:

      plait resume runs/both
      plait resume runs/both --checkpoint step-000000120
      plait resume runs/both --nproc 4
    """
    import plait
    from plait.storage import places

    directory = places.existing(run)
    done = directory.result() is not None and checkpoint is None
    if done:
        output.note(f"{run} had finished already; this is its result.")
    team = Team(nproc, restarts)
    if team.processes is not None and not done:
        team.work({"resume": str(run), "checkpoint": checkpoint, "device": device, "anyway": anyway}, run)
        finish(plait.load_run(run), as_json)
        return
    with interruptible(run):
        resumed = plait.resume(run, checkpoint=checkpoint, device=device, anyway=anyway, progress=True)
    finish(resumed, as_json)


# ---- inside ------------------------------------------------------------------------------------------------------
class Team:
    """The processes that make a run: those that ``--nproc`` starts, or this one.

    Args:
        processes: how many to start; None: this process runs, alone or as one of a launcher's.
        restarts: how often to go on after one was lost.
        go_on: go on with the run that is there already.

    Raises:
        BadInput: numbers that make no sense, or a launcher inside a launcher.
    """

    def __init__(self, processes: int | None = None, restarts: int = 0, go_on: bool = False) -> None:
        from plait.distributed.processes import current
        from plait.errors import BadInput
        from plait_cli.launcher import check_count

        self.processes, self.restarts, self.go_on = processes, restarts, go_on
        if processes is None:
            if restarts:
                raise BadInput("--restarts goes with --nproc; torchrun has --max-restarts.")
            return
        check_count(processes, restarts)
        if not current().alone:
            raise BadInput("--nproc starts processes itself: leave it out under torchrun or accelerate launch.")

    def work(self, order: dict[str, Any], path: Path) -> None:
        """Let the processes do an order of `plait_cli.worker`."""
        from plait_cli.launcher import launch

        again = f"plait resume {path} --nproc {self.processes}"
        assert self.processes is not None
        launch("plait_cli.worker", [json.dumps(order)], self.processes, restarts=self.restarts, go_on=again)


@contextlib.contextmanager
def interruptible(path: Path) -> Iterator[None]:
    """A Ctrl-C outside the training loop (while loading, or the second one) says how to go on, too."""
    from plait.errors import Interrupted
    from plait.storage import places

    try:
        yield
    except KeyboardInterrupt:
        if places.at(path).recipe_file.is_file():
            raise Interrupted(f"stopped. Go on with: plait resume {path}") from None
        raise Interrupted("stopped before the run began; there is nothing to resume.") from None


def start(plan: Plan, path: Path | None, team: Team) -> Run:
    """Do a plan with a progress bar on stderr."""
    import plait
    from plait.distributed.processes import current

    if team.processes is None:
        with interruptible(path or Path()):
            return plait.run(plan, out=path, go_on=team.go_on or None, progress=current().rank == 0)
    from plait.storage import places

    assert path is not None
    if not team.go_on:
        places.at(path).must_be_free()  # before processes are started
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(plan.recipe.to_toml(), encoding="utf-8")
        team.work({"recipe": str(file), "out": str(path), "go_on": team.go_on or None}, path)
    return plait.load_run(path)


def finish(done: Run, as_json: bool) -> None:
    """Print the result of a run, once if several processes made it."""
    from plait.distributed.processes import current

    if current().rank:
        return
    if as_json:
        output.emit(document(done))
        return
    result = done.directory.result() or {}
    columns, rows = output.metric_rows(result.get("details", {}))
    tables = [output.table("", columns, rows, right=(1, 2) if "exported" in columns else (1,))]
    of_run = result.get("tables", {})
    for name, table in of_run.items():
        if name.endswith("@export") and table == of_run.get(name.removesuffix("@export")):
            continue
        title = f"{table['title']}{' (exported model)' if name.endswith('@export') else ''}"
        tables.append(output.table(title, table["columns"], table["rows"]))
    output.show(*tables)
    for word, path in {"run": done.directory.shown, **done.artifacts, "export": output.existing(done.export)}.items():
        if path is not None:
            typer.echo(f"{word + ':':8}{path}")


def document(done: Run) -> dict[str, Any]:
    """The JSON form of a run."""
    return {
        "run": done.directory.shown,
        "metrics": done.metrics,
        "export": _text(output.existing(done.export)),
        "report": _text(done.artifacts.get("report")),
        "artifacts": {name: str(path) for name, path in done.artifacts.items()},
    }


def run_seeds(plan: Plan, count: int, root: Path, as_json: bool, team: Team) -> None:
    """Runs with seeds 0 to ``count - 1`` one after the other, then mean and standard error of every metric."""
    from plait.planning.plan import make_plan
    from plait.storage import places

    folders = [root / f"seed-{seed}" for seed in range(count)]
    for folder in (root, *folders):
        if not team.go_on:
            places.at(folder).must_be_free()
    runs = []
    for seed, folder in enumerate(folders):
        output.note(f"seed {seed} ({seed + 1} of {count})")
        runs.append(start(make_plan(plan.recipe.merged({"seed": seed})), folder, team))
    names = list(dict.fromkeys(name for done in runs for name in done.metrics))
    figures = {name: summary([done.metrics.get(name) for done in runs]) for name in names}
    if as_json:
        output.emit(
            {
                "run": str(root),
                "metrics": {name: figure["mean"] for name, figure in figures.items()},
                "summary": figures,
                "runs": [{"seed": seed, **document(done)} for seed, done in enumerate(runs)],
            }
        )
        return
    details = {name: detail for done in runs for name, detail in done.details.items()}
    rows = [
        [
            name,
            output.figure(figure["mean"]),
            output.figure(figure["standard_error"]),
            figure["n"],
            details[name]["unit"],
        ]
        for name, figure in figures.items()
    ]
    output.show(output.table("", ["metric", "mean", "standard error", "n", "unit"], rows, right=(1, 2, 3)))
    typer.echo(f"runs:   {root}")


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """``mean`` and ``standard_error`` over the ``n`` values that are defined; None where there are too few."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": statistics.fmean(known) if known else None,
        "standard_error": statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None,
        "n": len(known),
        "undefined": len(values) - len(known),
    }


def seeds_path(recipe: Recipe, count: int, root: Path = Path("runs")) -> Path:
    """``runs/<time>-<plugins>-seeds<N>``, made unique by a counter."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{'+'.join(recipe.plugins) or 'plain'}-seeds{count}"
    path, number = root / stem, 1
    while path.exists():
        number += 1
        path = root / f"{stem}-{number}"
    return path


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
