"""Search for the best point of a sweep with Optuna."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.claims.cells import Job, Outcome
from plait.errors import BadInput, nearest
from plait.sweeps.grid import Axis, Point, Range, points
from plait.sweeps.results import SEED, Row

if TYPE_CHECKING:
    from plait.sweeps.sweeping import Runner


class Search:
    """A study: what is varied, what is optimised, and where Optuna keeps its trials.

    Args:
        axes: values (categories) and ranges; ``seed`` is not searched: each point is run at all of its values.
        metric: what is optimised.
        direction: ``maximize``, ``minimize``, or empty: as the metric itself says.
        trials: how many in all.
        storage: Optuna's storage as a URL.
        name: the study's name.
        workers: how many runs at once; None one a core.

    Raises:
        BadInput: Optuna is not installed, or something makes no sense.
    """

    def __init__(
        self,
        axes: Sequence[Axis | Range],
        metric: str,
        direction: str,
        trials: int,
        storage: str,
        name: str,
        workers: int | None,
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise BadInput("--optimize needs Optuna: pip install 'plait-core[sweeps]'.") from error
        if direction not in ("", "maximize", "minimize"):
            raise BadInput(f"--direction {direction}: give maximize or minimize.")
        if trials < 1:
            raise BadInput(f"--trials {trials}: give a number from 1 on.")
        if any(axis.key == SEED and isinstance(axis, Range) for axis in axes):
            raise BadInput("--over seed: a seed is not searched; give values, seed=0:3, and each point is run at all.")
        self.searched = [axis for axis in axes if axis.key != SEED]
        if not self.searched:
            raise BadInput("--optimize needs something to search: --over KEY=LOW..HIGH or KEY=1,2,3.")
        self.seeds = list(points([axis for axis in axes if isinstance(axis, Axis) and axis.key == SEED]))
        self.metric, self.direction, self.trials = metric, direction, trials
        self.storage, self.name = storage, name
        self.width = max(1, (workers or os.cpu_count() or 1) // len(self.seeds))
        self._optuna: Any = optuna

    def run(self, runner: Runner) -> tuple[list[Row], list[str]]:
        """Try points until the study has as many trials as asked for; the rows of all, and notes.

        Raises:
            BadInput: the metric is not there, or says of no direction that it is better.
        """
        notes = []
        if not self.metric.endswith("@validation"):
            notes.append(
                f"{self.metric} is a figure of the test split: choosing by it makes it too good. "
                f"{self.metric}@validation chooses without seeing the test."
            )
        self._settle_direction(runner)
        study = self._study(runner)
        rows = {n: self._rows(runner, n, self._point(t)) for n, t in self._done(study).items()}
        for trial in self._unfinished(study):  # of a call that was stopped: its runs go on where they were
            self._try(runner, study, [trial], rows)
        while (left := self.trials - len(self._done(study))) > 0:
            asked = [study.ask(self._distributions()) for _ in range(min(left, self.width))]
            self._try(runner, study, asked, rows)
        return [row for number in sorted(rows) for row in rows[number]], notes

    def _try(self, runner: Runner, study: Any, trials: Sequence[Any], rows: dict[int, list[Row]]) -> None:
        from plait.sweeps.sweeping import row

        jobs: dict[int, list[tuple[Point, Job]]] = {}
        for trial in trials:
            point = self._point(trial)
            try:
                jobs[trial.number] = [({**point, **seed}, runner.job({**point, **seed})) for seed in self.seeds]
            except BadInput:
                study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                raise
        left = max(0, self.trials - len(self._done(study)) - len(trials))
        outcomes = runner.run([job for found in jobs.values() for _, job in found], left * len(self.seeds))
        for number, found in jobs.items():
            rows[number] = [row(point, job, outcomes[job.key], number) for point, job in found]
            values = [outcomes[job.key].metrics.get(self.metric) for _, job in found]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                study.tell(number, math.fsum(known) / len(known))
            else:
                self._check_metric([outcomes[job.key] for _, job in found])
                study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    # ---- Optuna -------------------------------------------------------------------------------------------------
    def _study(self, runner: Runner) -> Any:
        optuna = self._optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = self.storage or f"sqlite:///{_folder(runner)}/study.db"
        try:
            study = optuna.create_study(
                study_name=self.name, storage=storage, direction=self.direction, load_if_exists=True
            )
        except Exception as error:  # SQLAlchemy's, the driver's, the network's
            said = str(error).splitlines()[0]
            raise BadInput(f"--storage {storage}: {type(error).__name__}: {said}") from error
        asked = json.dumps([self.metric, [repr(axis) for axis in self.searched], runner.recipe.to_toml()])
        if study.user_attrs.setdefault("plait", asked) != asked:
            raise BadInput(
                f"the study {self.name!r} in {storage} is of another sweep: give another --study or --storage."
            )
        study.set_user_attr("plait", asked)
        # another seed at every call: the sampler of one that goes on must not repeat its first suggestions
        study.sampler = optuna.samplers.TPESampler(
            seed=_number(runner.recipe.seed, len(study.trials)) % 2**32, constant_liar=True
        )
        return study

    def _distributions(self) -> dict[str, Any]:
        made = self._optuna.distributions
        found: dict[str, Any] = {}
        for axis in self.searched:
            if isinstance(axis, Axis):
                found[axis.key] = made.CategoricalDistribution([_named(value) for value in axis.values])
            elif axis.whole:
                found[axis.key] = made.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
            else:
                found[axis.key] = made.FloatDistribution(axis.low, axis.high, log=axis.log)
        return found

    def _point(self, trial: Any) -> Point:
        named = {a.key: {_named(v): v for v in a.values} for a in self.searched if isinstance(a, Axis)}
        return {key: named[key][value] if key in named else value for key, value in trial.params.items()}

    def _done(self, study: Any) -> dict[int, Any]:
        states = self._optuna.trial.TrialState
        return {t.number: t for t in study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL))}

    def _unfinished(self, study: Any) -> list[Any]:
        """Trials of a stopped call; in a storage of the user's own they may be another machine's, and are left."""
        if self.storage:
            return []
        found: list[Any] = study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))
        return [t for t in found if len(t.params) == len(self.searched)]

    def _rows(self, runner: Runner, number: int, point: Point) -> list[Row]:
        """The rows of a trial that was done before, from the cache."""
        from plait.claims import cells
        from plait.sweeps.sweeping import row

        found = []
        for seed in self.seeds:
            job = runner.job({**point, **seed})
            outcome = cells.stored(job)
            if outcome is None:
                outcome = Outcome(job.key, "unavailable", error="done by an earlier call; not in this cache")
            else:
                runner.cached += 1
            found.append(row({**point, **seed}, job, outcome, number))
        return found

    def _settle_direction(self, runner: Runner) -> None:
        """Ask the metric itself: it says so in the run directory of any run that has it."""
        if self.direction:
            return
        from plait.running import load_run

        middle: Point = {}
        for axis in self.searched:
            value: Any = axis.values[0] if isinstance(axis, Axis) else (axis.low + axis.high) / 2
            middle[axis.key] = round(value) if isinstance(axis, Range) and axis.whole else value
        job = runner.job({**middle, **self.seeds[0]})
        outcome = runner.run([job])[job.key]
        self._check_metric([outcome])
        try:
            better = load_run(job.folder).details[self.metric]["better"]
        except (BadInput, KeyError):  # the run lies on another machine
            better = "neither"
        directions = {"higher": "maximize", "lower": "minimize"}
        if better not in directions:
            raise BadInput(f"--optimize {self.metric}: which is better is not known; give --direction.")
        self.direction = directions[better]

    def _check_metric(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.status != "done":
                raise BadInput(f"a run of the sweep failed: {outcome.error}")
            if self.metric not in outcome.metrics:
                known = nearest(self.metric, outcome.metrics)
                raise BadInput(f"--optimize {self.metric}: the run has no such metric.{known}")


def _folder(runner: Runner) -> Path:
    """Where the default storage of a sweep of this recipe lies."""
    name = f"{_number(runner.recipe.to_toml()):016x}"
    folder = runner.cache.parent / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _named(value: Any) -> Any:
    """A category as Optuna takes it: lists and tables as text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _number(*parts: Any) -> int:
    """64 bits of any printable parts."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "little")
