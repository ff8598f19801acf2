"""``plait verify``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plait_cli import completion, output
from plait_cli.parameters import AsJson, Settings, parse_settings
from plait_experiments.commands.parameters import CacheFolder, Fresh, RayAddress, Workers

# `plait --help` imports this module: what else a call needs is imported in it
if TYPE_CHECKING:
    from plait_experiments.results import ClaimResult, Verification

NOT_HELD = 4
"""Exit code when a claim that gates does not hold."""

COLOURS = {"holds": "green", "fails": "red", "guard broken": "red"}


class Scale(StrEnum):
    """The sizes of an experiment."""

    LAPTOP = "laptop"
    PAPER = "paper"


def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A plugin with claims.", autocompletion=completion.plugins),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every plugin that has claims; writes a scoreboard.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--scoreboard", help="Put the result into the scoreboard in --out, beside what is there.")
    ] = False,
    rejudge: Annotated[
        bool,
        typer.Option("--rejudge", help="Judge the figures of the scoreboard in --out by today's rules; runs nothing."),
    ] = False,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift",
            help="Run one arm of each claim of the scoreboard in --out again: with several threads, with a learning "
            "rate larger by 1e-8; put the moves into it.",
        ),
    ] = False,
    power: Annotated[
        bool,
        typer.Option(
            "--power", help="Run a pilot of three seeds (or --seeds N) and say how many a verdict takes; no verdict."
        ),
    ] = False,
    claims: Annotated[
        list[str] | None, typer.Option("--claim", metavar="ID", help="Only this claim; repeatable.")
    ] = None,
    gating: Annotated[
        bool,
        typer.Option("--gating", help="Only the claims that decide the exit code, not those reported beside them."),
    ] = False,
    extra: Annotated[
        bool, typer.Option("--extra", help="Also the long experiments that a claims file marks as extra.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="How many seeds, instead of the claim's own.")
    ] = None,
    scale: Annotated[Scale, typer.Option("--scale", help="The size of the experiment.")] = Scale.LAPTOP,
    workers: Workers = None,
    ray: RayAddress = None,
    cache: CacheFolder = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the HTML page and the JSON go.")] = Path(
        "verify"
    ),
    settings: Settings = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Re-run a paper's claims on this machine and give a verdict on each.

    Every run is kept: Ctrl-C loses nothing that is finished, and a second verification is instant. Exit code 0 when
    every claim that gates holds, else 4.

    Examples:

      plait verify chase
      plait verify fairsam --claim fair --power
      plait verify fairsam --claim fair --seeds 10 --workers 4
      plait verify chase --scale paper --ray auto
      plait verify --all --extra --out docs/scoreboard
      plait verify fairsam --extra --scoreboard --out docs/scoreboard
      plait verify --rejudge --out docs/scoreboard
      plait verify fairsam --drift --out docs/scoreboard
    """
    from plait.errors import BadInput
    from plait_experiments import scoreboard, verification
    from plait_experiments.page import write_pages
    from plait_experiments.schema import load

    if rejudge:
        if name is not None or any(
            [everything, join, drift, power, claims, gating, extra, seeds is not None, settings]
        ):
            raise BadInput("--rejudge takes the figures as they are: it goes with --out and --json only.")
        judge_again(out, as_json)
        return
    if everything == (name is not None):
        raise BadInput("give one plugin, or --all.")
    if drift:
        if name is None or any([join, power, gating, extra, fresh, settings]):
            raise BadInput(
                "--drift goes with one plugin, --claim, --seeds, --workers, --ray, --cache, --out and --json only."
            )
        measure_drift(name, out, claims or (), seeds, workers, ray, cache, as_json)
        return
    if power and join:
        raise BadInput("--power gives no verdict that --scoreboard could keep; give one of them.")
    if everything and claims:
        raise BadInput("--claim goes with one plugin, not with --all.")
    if join and everything:
        raise BadInput("--all writes a new scoreboard; --scoreboard puts one plugin's result into an old one.")
    if gating and (claims or extra):
        raise BadInput(f"give {'--claim' if claims else '--extra'} or --gating, not both.")
    names = with_claims() if name is None else [name]
    if not names:
        raise BadInput("no installed plugin brings claims; pip install plait-chase, for example.")
    books = [(plugin, load(plugin)) for plugin in names]  # refuses before anything starts
    earlier = scoreboard.stored(out) if join else []  # so does a damaged one
    changes = parse_settings(settings or ())
    verifications: list[Verification] = []
    for plugin, book in books:
        if everything:
            output.note(f"verifying {plugin}")
        verifications.append(
            verification.verify(
                book if book is not None else plugin,
                only=[c.id for c in book.claims if c.gate] if gating and book is not None else claims or (),
                extra=extra,
                scale=scale.value,
                seeds=seeds,
                pilot=power,
                workers=workers,
                ray=ray,
                cache=cache,
                settings=changes,
                fresh=fresh,
                progress=True,
            )
        )
    files = [] if power else write_pages(verifications, out)
    if not power and (everything or join):
        files += scoreboard.write_scoreboard(scoreboard.join(earlier, verifications), out)
    if as_json:
        documents = [v.as_dict() for v in verifications]
        output.emit({"plugins": documents} if everything else documents[0])
    else:
        for v in verifications:
            show(v)
        for path in files:
            if path.suffix == ".html":
                typer.echo(f"page: {path}")
    if not power and not all(v.holds for v in verifications):
        raise typer.Exit(NOT_HELD)


def judge_again(folder: Path, as_json: bool) -> None:
    """Judge a scoreboard's figures anew, write it, and print what changed.

    Raises:
        BadInput: there is no scoreboard.
        typer.Exit: a claim that gates does not hold.
    """
    from plait.errors import BadInput
    from plait.planning import discovery
    from plait_experiments import scoreboard, tables
    from plait_experiments.schema import load

    before = scoreboard.stored(folder)
    if not before:
        raise BadInput(f"{folder} holds no {scoreboard.SCOREBOARD}; give its folder with --out.")
    usable = discovery.active_registry()
    after = [scoreboard.judged_again(v, load(v.plugin) if v.plugin in usable else None) for v in before]
    files = scoreboard.write_scoreboard(after, folder)
    if as_json:
        output.emit({"plugins": [v.as_dict() for v in after]})
    else:
        for old, new in zip(before, after, strict=True):
            for was, now in zip(old.claims, new.claims, strict=True):
                if tables.word(was) != tables.word(now):
                    typer.echo(f"{new.plugin} {now.claim.id}: {tables.word(was)}, now {tables.word(now)}")
        typer.echo(f"page: {files[0]}")
    if not all(v.holds for v in after):
        raise typer.Exit(NOT_HELD)


def measure_drift(
    plugin: str,
    folder: Path,
    claims: Sequence[str],
    seeds: int | None,
    workers: int | None,
    ray: str | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Measure how far one arm of each claim of a scoreboard moves, write it there, and print it.

    Raises:
        BadInput: no such plugin, or a scoreboard without its figures.
    """
    from plait.errors import BadInput
    from plait_experiments import drift, scoreboard, tables
    from plait_experiments.schema import load

    book = load(plugin)
    before = next((entry for entry in scoreboard.stored(folder) if entry.plugin == plugin), None)
    if book is None or before is None:
        raise BadInput(
            f"{folder / scoreboard.SCOREBOARD} has no figures of {plugin}: "
            f"first plait verify {plugin} --scoreboard --out {folder}."
        )
    count = drift.SEEDS if seeds is None else seeds
    after, problems = drift.measure(
        before, book, only=claims, seeds=count, workers=workers, ray=ray, cache=cache, progress=True
    )
    now = scoreboard.stored(folder)  # another verification may have joined it meanwhile
    files = scoreboard.write_scoreboard([after if entry.plugin == plugin else entry for entry in now], folder)
    if as_json:
        output.emit({**after.as_dict(), "not_measured": problems})
        return
    for result in after.claims:
        if result.drifts:
            typer.echo(f"\n{output.heading(result.claim.id)}: {result.claim.sentence}")
            output.show(output.table("", tables.DRIFT_COLUMNS, tables.drift_rows(result), right=(3,)))
            for text in drift.smaller(result):
                typer.echo(f"- {text}")
    for name, reason in problems.items():
        typer.secho(f"{name}: not measured: {reason}", fg="yellow")
    typer.echo(f"page: {files[0]}")


def with_claims() -> list[str]:
    """Usable plugins that bring a ``claims.toml``; a bad file is an error, not a plugin without claims."""
    from plait.planning import discovery
    from plait_experiments.schema import load

    return [name for name in discovery.active_registry() if load(name) is not None]


def show(verified: Verification) -> None:
    """Print every claim with its tables."""
    from plait_experiments import tables

    typer.echo(output.heading(tables.heading(verified)))
    for what, value in tables.facts(verified):
        typer.echo(f"{what + ':':9}{value}")
    if verified.settings:
        typer.secho("settings were changed: this is another experiment than the claims describe.", fg="yellow")
    for note in verified.notes:
        typer.secho(note, fg="yellow")
    for result in verified.claims:
        show_claim(result)
    typer.echo()
    for result in verified.claims:
        reported = "" if result.claim.gate else " (reported only)"
        typer.echo(f"{verdict(result)}{tables.open_for(result)}  {result.claim.id}{reported}")


def show_claim(result: ClaimResult) -> None:
    """Print one claim; of a pilot what a verdict takes, and no expectation is judged."""
    from plait_experiments import tables
    from plait_experiments.verdicts import Verdict

    typer.echo(f"\n{output.heading(result.claim.id)}: {result.claim.sentence}  {verdict(result)}")
    if any(arm.values for arm in result.arms):
        arms = output.table("", tables.ARM_COLUMNS, tables.arm_rows(result), right=(2, 3, 4))
        expectations = output.table("", tables.EXPECTATION_COLUMNS, tables.expectation_rows(result), right=(1, 2, 3, 4))
        takes = output.table("", tables.POWER_COLUMNS, tables.power_rows(result), right=(1, 2, 3))
        output.show(arms, takes) if result.verdict is Verdict.PILOT else output.show(arms, expectations, takes)
        columns, tried = tables.tuning_rows(result)
        if tried:
            output.show(output.table("", columns, tried, right=(2, 3, 4)))
    typer.echo(f"source: {result.claim.source}")
    for text in tables.remarks(result):
        typer.echo(f"- {text}")


def verdict(result: ClaimResult) -> str:
    """The verdict, coloured where the terminal can."""
    from plait_experiments import tables

    return typer.style(tables.word(result), fg=COLOURS.get(result.verdict.value, "yellow"), bold=True)
