"""Drift: how far an arm's figures move with what should not matter: threads, the machine, rounding."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import BadInput, Interrupted, Refused
from plait.storage.environment import describe
from plait_experiments.cells import Cache, Job, Outcome
from plait_experiments.experiment import Experiment, Point
from plait_experiments.expressions import parse
from plait_experiments.progress import Progress
from plait_experiments.results import ClaimResult, Drift, Verification
from plait_experiments.runner import Runner
from plait_experiments.schema import Book

SEEDS = 3
"""Seeds of an arm that are run again."""

NUDGE = 1e-8
"""Added to the learning rate: rounding's share in a figure, as no method depends on it."""

AGAIN = "run again"
"""The change that is none: on the scoreboard's own machine and versions it must move nothing."""


Key = tuple[str, Point, tuple[int, ...]]
"""An arm, its grid point and its seeds."""


@dataclass(frozen=True)
class Changed:
    """One arm at some seeds under one change.

    Attributes:
        change: in words.
        jobs: seed -> job.
    """

    change: str
    jobs: Mapping[int, Job]


def measure(
    board: Verification,
    book: Book,
    *,
    only: Sequence[str] = (),
    seeds: int = SEEDS,
    workers: int | None = None,
    ray: str | None = None,
    cache: Path | str | None = None,
    progress: bool = False,
) -> tuple[Verification, dict[str, str]]:
    """Run one arm of every claim again: as it was, with several threads, and with a learning rate larger by `NUDGE`.

    The arm is one that a claim's expectations name, at the grid point that was chosen for it; arms that several claims
    share come first, so that few are run. The first of the three is compared with the scoreboard's figures, which may
    come from another machine; the others with the first. Where threads and rate were measured on another machine,
    only the first is run. The runs are kept by machine, so that an interrupted measurement goes on.

    Args:
        board: a plugin's figures, from `plait_experiments.scoreboard.stored`.
        book: the plugin's claims today.
        only: claim ids; default all with figures.
        seeds: an arm's first ones that are run.
        workers, ray, cache, progress: as in `plait_experiments.verification.verify`.

    Returns:
        The same figures and verdicts with the claims' drifts, those that other machines had measured among them; and
        claim -> why its drift could not be measured here.

    Raises:
        BadInput: an unknown claim, or one without figures; fewer than one seed.
        Interrupted: stopped by Ctrl-C.
    """
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: give a number from 1 on.")
    scale = next((name for name in book.scales if name == board.scale), None)
    if scale is None:
        raise BadInput(f"{book.where} has no scale {board.scale!r}, of which the scoreboard's figures are.")
    claims = [book.claim(name).id for name in only] or [claim.id for claim in book.claims]
    keys = {r.claim.id: _candidates(r, book, seeds) for r in board.claims if r.claim.id in claims}
    candidates = {name: of for name, of in keys.items() if of}
    for name in only:
        if name not in candidates:
            raise BadInput(f"claim {name}: the scoreboard has no figures of it; verify it first.")
    here = place(describe("cpu", []))
    machine = hashlib.sha256(here.encode()).hexdigest()[:16]
    experiment = Experiment(book, scale, [], Cache(Cache(cache).folder / "drift" / machine))
    wanted = _shared(candidates)
    known = {key for r in board.claims if (key := wanted.get(r.claim.id)) and _elsewhere(r, key[0], here)}
    changes: dict[Key, list[Changed]] = {}
    problems: dict[str, str] = {}
    for name, key in wanted.items():
        try:
            if key not in changes:
                changes[key] = list(_changes(experiment, *key, only_again=key in known))
        except (BadInput, Refused) as error:
            problems[name] = str(error)
    runner = Runner(workers, ray, False, Progress("measuring drift" if progress else ""))
    try:
        runner.run([job for of_arm in changes.values() for change in of_arm for job in change.jobs.values()])
    except KeyboardInterrupt:
        again = f"plait verify {board.plugin} --drift"
        raise Interrupted(f"stopped; every finished run is kept. Go on with: {again}") from None
    finally:
        runner.close()
    after = []
    for result in board.claims:
        drifts: list[Drift] = []
        if (name := result.claim.id) in wanted and name not in problems:
            try:
                drifts = list(_drifts(result, wanted[name][0], changes[wanted[name]], runner.outcomes, here))
            except BadInput as error:
                problems[name] = str(error)
        after.append(_with(result, drifts))
    return dataclasses.replace(board, claims=tuple(after)), problems


def smaller(result: ClaimResult) -> list[str]:
    """A sentence for every expectation whose margin is smaller than the largest move of one of its metrics."""
    texts = []
    for judgement in result.judgements:
        margin = judgement.margin if judgement.difference is None else judgement.difference
        if margin is None or judgement.exact:
            continue
        short = {metric for _, metric in parse(judgement.text).references}
        moves = [(drift.moves[m], m, drift) for drift in result.drifts for m in drift.moves if m in short]
        largest, metric, drift = max(moves, key=lambda move: move[0], default=(0.0, "", None))
        if drift is not None and abs(margin) < largest:
            texts.append(
                f"{judgement.text}: the margin {margin:.3g} is smaller than the {largest:.3g} by which {metric} of arm "
                f"{drift.arm} alone moved in one of {drift.seeds} seeds ({drift.change}, {drift.where})."
            )
    return texts


# ---- what is run -------------------------------------------------------------------------------------------------
def _candidates(result: ClaimResult, book: Book, seeds: int) -> list[Key]:
    """The arms of the expectations that have figures, in their order, at the claim's first seeds."""
    measured = {a.name: a for a in result.arms if a.name in book.arms and any(a.values.values())}
    named = dict.fromkeys(arm for judgement in result.judgements for arm, _ in parse(judgement.text).references)
    return [(name, tuple(measured[name].point.items()), result.seeds[:seeds]) for name in named if name in measured]


def _shared(candidates: Mapping[str, Sequence[Key]]) -> dict[str, Key]:
    """Claim -> one of its arms: each time the arm that most of the claims left have, the first named of equals."""
    chosen: dict[str, Key] = {}
    while left := {name: keys for name, keys in candidates.items() if name not in chosen}:
        shares = Counter(key for keys in left.values() for key in keys)
        most, _ = shares.most_common(1)[0]
        chosen |= {name: most for name, keys in left.items() if most in keys}
    return chosen


def _elsewhere(result: ClaimResult, arm: str, here: str) -> bool:
    """Whether another machine has measured what threads and rounding are worth for this arm."""
    return any(d.arm == arm and d.change != AGAIN and d.where != here for d in result.drifts)


def _changes(
    experiment: Experiment, arm: str, point: Point, seeds: Sequence[int], *, only_again: bool
) -> Iterator[Changed]:
    same = {seed: experiment.job(arm, point, seed) for seed in seeds}
    yield Changed(AGAIN, same)
    if only_again:
        return
    threads = max(2, os.cpu_count() or 1)
    several = {seed: dataclasses.replace(job, threads=threads) for seed, job in same.items()}
    yield Changed(f"{threads} threads", {seed: _named(job, f"threads-{threads}") for seed, job in several.items()})
    rate = float(next(iter(same.values())).recipe["optimizer"]["lr"]) + NUDGE
    nudged = dataclasses.replace(experiment, settings={"optimizer.lr": rate})
    yield Changed(f"learning rate + {NUDGE:g}", {seed: nudged.job(arm, point, seed) for seed in seeds})


def _named(job: Job, change: str) -> Job:
    key = hashlib.sha256(f"{job.key} {change}".encode()).hexdigest()[: len(job.key)]
    return dataclasses.replace(job, key=key, folder=str(Path(job.folder).with_name(key)))


def place(environment: Mapping[str, Any]) -> str:
    """``AMD EPYC 7B13, torch 2.14.1``; between the two what holds it to older instructions, if anything does."""
    device = environment.get("device_name") or environment.get("device") or "unknown device"
    kernels = "".join(f", {name}={value}" for name, value in environment.get("kernels", {}).items())
    return f"{device}{kernels}, torch {environment.get('versions', {}).get('torch', 'unknown')}"


# ---- what came of it ---------------------------------------------------------------------------------------------
def _drifts(
    result: ClaimResult, name: str, changes: Sequence[Changed], outcomes: Mapping[str, Outcome], here: str
) -> Iterator[Drift]:
    arm = next(arm for arm in result.arms if arm.name == name)
    board = {short: dict(values) for short, values in arm.values.items()}
    again = _values(changes[0], outcomes, result)
    for change in changes:
        before, after = (board, again) if change is changes[0] else (again, _values(change, outcomes, result))
        moves: dict[str, float] = {}
        for short in result.metrics:
            pairs = [(before.get(short, {}).get(seed), after[short].get(seed)) for seed in change.jobs]
            distances = [abs(a - b) for a, b in pairs if a is not None and b is not None]
            if distances:
                moves[short] = max(distances)
        yield Drift(name, change.change, here, len(change.jobs), moves)


def _values(
    change: Changed, outcomes: Mapping[str, Outcome], result: ClaimResult
) -> dict[str, dict[int, float | None]]:
    """Metric -> seed -> value.

    Raises:
        BadInput: a run failed, or its data is not here.
    """
    for seed, job in change.jobs.items():
        if outcomes[job.key].status != "done":
            raise BadInput(f"arm {job.arm} at seed {seed}, {change.change}: {outcomes[job.key].error}")
    return {
        short: {seed: outcomes[job.key].metrics.get(metric.name) for seed, job in change.jobs.items()}
        for short, metric in result.metrics.items()
    }


def _with(result: ClaimResult, drifts: Sequence[Drift]) -> ClaimResult:
    now = {(drift.change, drift.where) for drift in drifts}
    kept = [drift for drift in result.drifts if not drifts or (drift.change, drift.where) not in now]
    return dataclasses.replace(result, drifts=(*kept, *drifts))
