"""``plait sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plait_cli import output
from plait_cli.parameters import (
    AsJson,
    DataName,
    Device,
    Epochs,
    ModelName,
    PluginNames,
    RecipeFile,
    Settings,
    Steps,
    assemble,
)
from plait_experiments.commands.parameters import CacheFolder, Fresh, RayAddress, Workers

# `plait --help` imports this module: what else a call needs is imported in it
if TYPE_CHECKING:
    from plait_experiments.sweep import Sweep


def sweep(
    recipe: RecipeFile = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=VALUES",
            help="What to vary: chase.density=0.05,0.1 or seed=0:5; with --optimize also LOW..HIGH and LOW..HIGH:log.",
        ),
    ] = None,
    plugins: PluginNames = None,
    data: DataName = None,
    model: ModelName = None,
    settings: Settings = None,
    epochs: Epochs = None,
    steps: Steps = None,
    device: Device = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Show this metric; repeatable.")
    ] = None,
    optimize: Annotated[
        str, typer.Option("--optimize", metavar="METRIC", help="Look for the best point with Optuna.")
    ] = "",
    direction: Annotated[
        str, typer.Option("--direction", help="maximize or minimize; default as the metric says.")
    ] = "",
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="With --optimize: points to try in all.")] = 20,
    storage: Annotated[
        str, typer.Option("--storage", metavar="URL", help="Optuna's storage, for several machines; default SQLite.")
    ] = "",
    study: Annotated[str, typer.Option("--study", metavar="NAME", help="The study's name in the storage.")] = "plait",
    workers: Workers = None,
    ray: RayAddress = None,
    cache: CacheFolder = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where table and plot go.")] = Path("sweep"),
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write runs.parquet.")] = False,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe over a grid of values and seeds, or let Optuna look for the best.

    Every run is kept: after Ctrl-C the same command goes on, and one with more values runs only those. Exit code 1 when
    a run failed.

    Examples:

      plait sweep recipe.toml --over chase.density=0.05,0.1,0.2 --over seed=0:5
      plait sweep -p fairsam --over fairsam.rho=0.01,0.05 --metric fairsam/mcdd --parquet
      plait sweep recipe.toml --over chase.density=0.02..0.5:log --optimize task/accuracy@validation --trials 30
      plait sweep recipe.toml --over seed=0:20 --ray auto
    """
    from plait.planning.plan import make_plan
    from plait_experiments import sweep as sweeps
    from plait_experiments.grid import parse_all

    parse_all(over or ())  # refuses before torch is imported
    base = assemble(recipe, plugins, settings, data=data, model=model, epochs=epochs, steps=steps, device=device)
    make_plan(base)
    result = sweeps.sweep(
        base,
        over or (),
        optimize=optimize,
        direction=direction,
        trials=trials,
        storage=storage,
        study=study,
        workers=workers,
        ray=ray,
        cache=cache,
        fresh=fresh,
        progress=True,
    )
    shown = result.checked(metrics or ()) or [result.main_metric()]
    files = result.write(out, metric=shown[0], parquet=parquet)
    if as_json:
        output.emit({**result.as_dict(), "files": [str(path) for path in files]})
    else:
        show(result, [name for name in shown if name])
        for path in files:
            typer.echo(f"{path.suffix.removeprefix('.') + ':':9}{path}")
    if result.failed:
        raise typer.Exit(1)


def show(result: Sweep, metrics: list[str]) -> None:
    """Print the means, the best point, and what failed."""
    columns, rows = result.table(metrics)
    output.show(output.table("", columns, rows, right=range(columns.index("runs"), len(columns))))
    best = result.best()
    if best is not None:
        point = ", ".join(f"{key}={output.figure(value)}" for key, value in best.point.items())
        mean = output.figure(best.summary(result.optimized).mean)
        typer.echo(f"best:    {point} ({result.optimized} {mean}, {result.direction}d)")
    if (tie := result.tie()) is not None:
        nominal, gain = tie
        point = ", ".join(f"{key}={output.figure(value)}" for key, value in nominal.point.items())
        error = f"± {output.figure(gain.standard_error)}" if gain.standard_error is not None else "at one seed"
        typer.echo(
            f"tie:     {point} is best by {output.figure(gain.mean)} {error} against the recipe's own point, "
            "no more than the standard error, so the recipe's own is taken"
        )
    for row in result.failed:
        point = " ".join(f"{key}={value}" for key, value in row.point.items())
        output.complain("failed", f"{point}: {row.error}")
    for note in result.notes:
        output.note(note)
    typer.echo(f"runs:    {result.ran} run, {result.cached} kept from before")
