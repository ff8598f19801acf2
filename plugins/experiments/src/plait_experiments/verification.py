"""Run what claims ask for, and judge them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.errors import BadInput, Interrupted
from plait.planning import discovery
from plait_experiments.cells import Cache, Job, Outcome
from plait_experiments.experiment import Experiment, Point, Tried, choose
from plait_experiments.expressions import parse
from plait_experiments.progress import Progress
from plait_experiments.results import ArmResult, ClaimResult, Verification
from plait_experiments.runner import Runner
from plait_experiments.schema import Book, Claim, MetricTable, ScaleName, load
from plait_experiments.verdicts import Values, Verdict, combine, judge

__all__ = ["Verification", "verify"]


def verify(
    claims: str | Book,
    *,
    only: Sequence[str] = (),
    extra: bool = False,
    scale: ScaleName = "laptop",
    seeds: int | None = None,
    pilot: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    cache: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    progress: bool = False,
) -> Verification:
    """Check claims on this machine: run every arm at every seed, choose on validation data, judge.

    Results are cached per cell; an interrupted verification goes on where it stopped, and a second one runs nothing.

    Args:
        claims: an installed plugin, or a book from `plait_experiments.schema.load_file`.
        only: claim ids; default all that are not marked as extra.
        extra: also the claims that are marked as extra, which take long.
        scale: ``laptop`` or ``paper``.
        seeds: how many, instead of the claim's own.
        pilot: run only a few seeds (``seeds``, default `plait_experiments.experiment.PILOT`), take in what the cache
            holds of the others, and say what a verdict takes, without giving one.
        workers: local processes of one thread each; default one a core, 0 for this process.
        ray: address of a Ray cluster, or ``local``.
        cache: folder of the cells; default as of `plait_experiments.cells.Cache`.
        settings: dotted keys of every arm's recipe that are changed; the result says so.
        fresh: run every cell again.
        progress: True for progress on stderr.

    Raises:
        BadInput: no such plugin, claim or key; a bad claims file.
        Interrupted: stopped by Ctrl-C; finished cells are kept.
    """
    start = time.monotonic()
    book = load(claims) if isinstance(claims, str) else claims
    if book is None:
        raise BadInput(f"plugin {claims!r} brings no claims.toml: there is nothing to verify.")
    if seeds is not None and not 1 <= seeds <= 10_000:
        raise BadInput(f"--seeds {seeds}: give a number from 1 to 10000.")
    asked = [book.claim(name) for name in only] or list(book.claims)
    able = [claim for claim in asked if scale in claim.minutes and (only or extra or not claim.extra)]
    runner = Runner(workers, ray, fresh, Progress("verifying" if progress else ""))
    experiment = Experiment(book, scale, able, Cache(cache), seeds, pilot, settings or {}) if able else None
    try:
        tuned, jobs = _run(experiment, runner) if experiment is not None else ({}, {})
    except KeyboardInterrupt:
        again = f"plait verify {book.plugin}" if book.plugin else "the same call"
        raise Interrupted(f"stopped; every finished cell is kept. Go on with: {again}") from None
    finally:
        runner.close()
    results = [
        _result(claim, experiment, tuned, jobs, runner.outcomes)
        if experiment is not None and claim in able
        else ClaimResult(claim, Verdict.NOT_RUN, reason=_not_asked(claim, scale))
        for claim in asked
    ]
    return _verification(book, scale, experiment, results, runner, time.monotonic() - start)


def judged(
    claim: Claim,
    arms: Sequence[ArmResult],
    metrics: Mapping[str, MetricTable],
    seeds: Sequence[int],
    reason: str = "",
) -> ClaimResult:
    """A claim with its verdict, from the figures of its arms.

    Args:
        claim: what was claimed.
        arms: with a value of every metric at every seed that gave one.
        metrics: short name -> what it is.
        seeds: that were planned.
        reason: why it did not run.
    """
    table: Values = {(arm.name, short): arm.values.get(short, {}) for arm in arms for short in metrics}
    judgements = tuple(
        judge(parse(text), table, seeds, guard=guard, paper=claim.paper, required=claim.required.get(text))
        for texts, guard in ((claim.expect, False), (claim.guards, True))
        for text in texts
    )
    return ClaimResult(claim, combine(judgements), judgements, tuple(arms), metrics, tuple(seeds), reason)


def _run(experiment: Experiment, runner: Runner) -> tuple[dict[str, list[Tried]], dict[str, dict[int, Job]]]:
    """Everything that the experiment needs; arm -> its tuning, and arm -> seed -> final job."""
    tuning = experiment.tuning()
    first = [job for points in tuning.values() for _, jobs in points for job in jobs]
    final: dict[str, dict[int, Job]] = {}
    for arm in experiment.arms:
        if arm not in tuning and arm not in experiment.problems:
            final[arm] = {job.seed: job for job in experiment.final(arm, experiment.points(arm)[0])}
    experiment.check_settings()
    first += [job for jobs in final.values() for job in jobs.values() if job.seed in experiment.run_now]
    runner.run(first, sum(len(experiment.run_now.intersection(experiment.arms[arm])) for arm in tuning))
    chosen: dict[str, list[Tried]] = {}
    second: list[Job] = []
    for arm, points in tuning.items():
        chosen[arm] = choose(experiment.book.arms[arm], points, runner.outcomes, experiment.default(arm))
        best: Point | None = next((p for (p, _), t in zip(points, chosen[arm], strict=True) if t.chosen), None)
        if best is None:
            errors = {o.error for _, js in points for j in js if (o := runner.outcomes[j.key]).error}
            said = f": {sorted(errors)[0]}" if errors else ""
            experiment.problems[arm] = f"no grid point has a validation score at every tuning seed{said}"
            continue
        final[arm] = {job.seed: job for job in experiment.final(arm, best)}
        second += [job for job in final[arm].values() if job.seed in experiment.run_now]
    runner.run(second)
    if experiment.pilot and not runner.fresh:
        for jobs in final.values():
            for job in jobs.values():
                runner.kept(job)
    return chosen, final


# ---- judging -----------------------------------------------------------------------------------------------------
def _not_asked(claim: Claim, scale: ScaleName) -> str:
    if scale not in claim.minutes:
        return f"it has no experiment at the scale {scale}"
    return f"it is an extra (about {claim.minutes[scale]:g} minutes): ask for it with --extra or --claim {claim.id}"


def _result(
    claim: Claim,
    experiment: Experiment,
    tuned: Mapping[str, Sequence[Tried]],
    jobs: Mapping[str, Mapping[int, Job]],
    outcomes: Mapping[str, Outcome],
) -> ClaimResult:
    book, seeds = experiment.book, experiment.seeds[claim.id]
    metrics = {name: book.metrics[name] for name in book.metrics_of(claim)}
    if experiment.pilot:
        keys = [{seed: job.key for seed, job in jobs.get(name, {}).items()} for name in book.arms_of(claim)]
        seeds = [seed for seed in seeds if all(of_arm.get(seed) in outcomes for of_arm in keys)]
    arms = []
    for name in book.arms_of(claim):
        by_seed = {s: outcomes[job.key] for s, job in jobs.get(name, {}).items() if s in seeds and job.key in outcomes}
        values = {
            short: {s: o.metrics.get(metric.name) for s, o in by_seed.items() if o.status == "done"}
            for short, metric in metrics.items()
        }
        failures = {s: o.error for s, o in by_seed.items() if o.status != "done"}
        problem = experiment.problems.get(name, "")
        if by_seed and all(o.status == "unavailable" for o in by_seed.values()):
            problem, failures = next(iter(failures.values())), {}
        arm = book.arms[name]
        tried = tuple(tuned.get(name, ()))
        chosen_by = arm.choose or "" if tried else ""
        higher = arm.choose_better == "higher"
        arms.append(ArmResult(name, arm.about, values, failures, problem, tried, chosen_by, higher))
    problems: dict[str, list[str]] = {}
    for result in arms:
        if result.problem:
            problems.setdefault(result.problem, []).append(result.name)
    reason = "; ".join(f"{', '.join(names)}: {problem}" for problem, names in problems.items())
    verdict = judged(claim, arms, metrics, seeds, reason)
    if not experiment.pilot:
        return verdict
    ran = [
        j if j.verdict is Verdict.NOT_RUN else replace(j, verdict=Verdict.PILOT, note="") for j in verdict.judgements
    ]
    return replace(verdict, judgements=tuple(ran), verdict=combine(ran))


def _verification(
    book: Book,
    scale: ScaleName,
    experiment: Experiment | None,
    results: Sequence[ClaimResult],
    runner: Runner,
    seconds: float,
) -> Verification:
    item = discovery.active_registry().get(book.plugin)
    notes = []
    if runner.stale:
        names = ", ".join(sorted(runner.stale))
        notes.append(f"some cached results come from other sources of {names} (same version); --fresh runs them again")
    return Verification(
        book.plugin or book.where,
        item.plugin.paper if item and item.plugin else "",
        item.version if item else "",
        scale,
        book.scales[scale].about if scale in book.scales else "",
        tuple(results),
        dict(experiment.settings) if experiment else {},
        tuple(notes),
        runner.ran,
        runner.cached,
        seconds,
        sum(o.seconds for o in runner.outcomes.values()),
        next((o.environment for o in runner.outcomes.values() if o.environment), {}),
    )
