"""Search for the best point of a sweep with Optuna."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.declare.recipe import Recipe
from plait.errors import BadInput, first_line, nearest
from plait.run import load_run
from plait_experiments.cells import Job, Outcome
from plait_experiments.grid import SEED, Axis, Point, Range, points
from plait_experiments.runner import Runner


class Visit(NamedTuple):
    """A point at one seed, its cell, and the number of the trial that asked for it; None on a grid."""

    point: Point
    job: Job
    trial: int | None = None


class Search:
    """A study: what is varied, what is optimised, and where Optuna keeps its trials.

    Args:
        runner: its outcomes hold those of every point afterwards.
        job_at: the cell of a point.
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
        runner: Runner,
        job_at: Callable[[Point], Job],
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
            raise BadInput("--optimize needs Optuna: pip install 'plait-experiments[search]'.") from error
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
        self._runner, self._job_at = runner, job_at
        self._optuna: Any = optuna

    def run(self, recipe: Recipe, cache: Path) -> tuple[list[Visit], list[str]]:
        """Try points until the study has as many trials as asked for.

        Args:
            recipe: what is varied; a study of another one is refused.
            cache: folder of the cells; the default storage lies beside it.

        Returns:
            The visits by trial and seed, and notes for the user. A visit of an earlier call may have no outcome here.

        Raises:
            BadInput: the metric is not there, or says of no direction that it is better.
        """
        notes = []
        if not self.metric.endswith("@validation"):
            notes.append(
                f"{self.metric} is a figure of the test split: choosing by it makes it too good. "
                f"{self.metric}@validation chooses without seeing the test."
            )
        self._settle_direction()
        study = self._study(recipe, cache)
        visits: dict[int, list[Visit]] = {}
        for number, trial in self._done(study).items():
            visits[number] = self._visits(trial)
            for visit in visits[number]:
                self._runner.kept(visit.job)
        for trial in self._unfinished(study):  # of a call that was stopped: its runs go on where they were
            self._try(study, [trial], visits)
        while (left := self.trials - len(self._done(study))) > 0:
            asked = [study.ask(self._distributions()) for _ in range(min(left, self.width))]
            self._try(study, asked, visits)
        return [visit for number in sorted(visits) for visit in visits[number]], notes

    def _try(self, study: Any, trials: Sequence[Any], visits: dict[int, list[Visit]]) -> None:
        failed = self._optuna.trial.TrialState.FAIL
        for trial in trials:
            try:
                visits[trial.number] = self._visits(trial)
            except BadInput:
                study.tell(trial.number, state=failed)
                raise
        left = max(0, self.trials - len(self._done(study)) - len(trials))
        self._runner.run([visit.job for trial in trials for visit in visits[trial.number]], left * len(self.seeds))
        for trial in trials:
            outcomes = [self._runner.outcomes[visit.job.key] for visit in visits[trial.number]]
            known = [value for outcome in outcomes if (value := outcome.metrics.get(self.metric)) is not None]
            if len(known) == len(outcomes):
                study.tell(trial.number, math.fsum(known) / len(known))
            else:
                self._check_metric(outcomes)
                study.tell(trial.number, state=failed)

    def _visits(self, trial: Any) -> list[Visit]:
        """The visits of a trial, one a seed."""
        named = {a.key: {_named(v): v for v in a.values} for a in self.searched if isinstance(a, Axis)}
        point = {key: named[key][value] if key in named else value for key, value in trial.params.items()}
        return [Visit({**point, **seed}, self._job_at({**point, **seed}), trial.number) for seed in self.seeds]

    # ---- Optuna -------------------------------------------------------------------------------------------------
    def _study(self, recipe: Recipe, cache: Path) -> Any:
        optuna = self._optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = self.storage or f"sqlite:///{_folder(recipe, cache)}/study.db"
        try:
            study = optuna.create_study(
                study_name=self.name, storage=storage, direction=self.direction, load_if_exists=True
            )
        except Exception as error:  # SQLAlchemy's, the driver's, the network's
            raise BadInput(f"--storage {storage}: {type(error).__name__}: {first_line(error)}") from error
        asked = json.dumps([self.metric, [repr(axis) for axis in self.searched], recipe.to_toml()])
        if study.user_attrs.setdefault("plait", asked) != asked:
            raise BadInput(
                f"the study {self.name!r} in {storage} is of another sweep: give another --study or --storage."
            )
        study.set_user_attr("plait", asked)
        # another seed at every call: the sampler of one that goes on must not repeat its first suggestions
        study.sampler = optuna.samplers.TPESampler(
            seed=_bits(recipe.seed, len(study.trials)) % 2**32, constant_liar=True
        )
        return study

    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        distributions: dict[str, Any] = {}
        for axis in self.searched:
            if isinstance(axis, Axis):
                distributions[axis.key] = kinds.CategoricalDistribution([_named(value) for value in axis.values])
            elif axis.whole:
                distributions[axis.key] = kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
            else:
                distributions[axis.key] = kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
        return distributions

    def _done(self, study: Any) -> dict[int, Any]:
        states = self._optuna.trial.TrialState
        return {t.number: t for t in study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL))}

    def _unfinished(self, study: Any) -> list[Any]:
        """Trials of a stopped call; in a storage of the user's own they may be another machine's, and are left."""
        if self.storage:
            return []
        running: list[Any] = study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))
        return [t for t in running if len(t.params) == len(self.searched)]

    def _settle_direction(self) -> None:
        """Ask the metric itself: it says so in the run directory of any run that has it."""
        if self.direction:
            return
        middle: Point = {}
        for axis in self.searched:
            value: Any = axis.values[0] if isinstance(axis, Axis) else (axis.low + axis.high) / 2
            middle[axis.key] = round(value) if isinstance(axis, Range) and axis.whole else value
        job = self._job_at({**middle, **self.seeds[0]})
        self._runner.run([job])
        self._check_metric([self._runner.outcomes[job.key]])
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


def _folder(recipe: Recipe, cache: Path) -> Path:
    """Where the default storage of a sweep of this recipe lies."""
    folder = cache.parent / "sweeps" / f"{_bits(recipe.to_toml()):016x}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _named(value: Any) -> Any:
    """A category as Optuna takes it: lists and tables as text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _bits(*parts: Any) -> int:
    """64 bits of any printable parts."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "little")
