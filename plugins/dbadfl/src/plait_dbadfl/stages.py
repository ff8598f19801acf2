"""The stages of a woven run: what is compared, how long each takes, and where the run stands.

A run is a list of stages, each from the same initial weights: the scan if distances are to be predicted, every run
beside the main one, and the main one last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.errors import blame
from plait_dbadfl.assembly import defence_maker
from plait_dbadfl.course import AttackCourse, ScanCourse
from plait_dbadfl.defences import RobustAggregation
from plait_dbadfl.detection import Detection, Detector
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.feed import Present
from plait_dbadfl.items import Item
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.results import Result, result_from_state, result_state
from plait_dbadfl.sampling import derive
from plait_dbadfl.stacking import Stacked

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


@dataclass(frozen=True)
class Stage:
    """One stretch of training from the initial weights: a run, or the scan (item None)."""

    item: Item | None
    rounds: int


class Stages:
    """The stages, the federation of each, and their state.

    Args:
        options: the plugin's options.
        trainer: the run, before it is built.
        federation: the main run's.
        initial: the weights that every stage starts from, one network's, by their names in the stack.

    Attributes:
        main: the main run.
        federations: of every run.
        all: the stages in their order; none before `budget`.
        ends: the step after each.
        number: of the present one. begun: whether its training has.
        results: of the runs so far.
        detection, detector: of the scan, if there was one.
        clean: the mean model of the clean run, name -> tensor, once there is one.

    Raises:
        DbadflError: what a companion's federation or defence refuses.
    """

    def __init__(
        self, options: DbadflOptions, trainer: Trainer, federation: Federation, initial: Mapping[str, Tensor]
    ) -> None:
        self.options, self.trainer, self.federation, self.initial = options, trainer, federation, initial
        self.main = Item(options.arm, options.defence, text=options.arm)
        if options.defence is not None:
            self.main = replace(self.main, text=f"{options.arm}+{options.defence}")
        self.federations = {item: self._federation(item) for item in (self.main, *options.others)}
        for item in self.federations:
            self._check_defence(item)
        self.all: list[Stage] = []
        self.ends: list[int] = []
        self.number, self.begun = 0, False
        self.results: list[Result] = []
        self.detection: Detection | None = None
        self.detector: Detector | None = None
        self.clean: dict[str, Tensor] | None = None

    def _federation(self, item: Item) -> Federation:
        changes: dict[str, Any] = {"arm": item.arm}
        if item.placement is not None and item.placement != self.options.placement:
            changes |= {"placement": item.placement, "positions": ()}
        if item.budget is not None:
            changes |= {"budget": item.budget}
        if item.change is not None:
            changes |= dict([item.change])
        return self.federation.changed(**changes)

    def _check_defence(self, item: Item) -> None:
        maker = defence_maker(self.options, item.defence)
        if maker is None:
            return
        rule, federation = maker(), self.federations[item]
        heard = federation.engine(federation.mixing, 0, RobustAggregation(rule)).heard
        rule.check(heard.degrees, heard.votes)
        caution = rule.caution(heard.degrees[heard.degrees > 0])
        if caution is not None:
            self.trainer.note(f"dbadfl: {caution}")

    # ---- their length -------------------------------------------------------------------------------------------
    def budget(self, steps: int) -> int:
        """Steps of all stages; ``steps`` is the length of one of them, or ``rounds`` says it.

        Raises:
            DbadflError: a run that ends before the attack begins.
        """
        options = self.options
        pace = self.federation.pace(self.federation.owned.lengths, attacking=False)
        usual = options.local_steps if pace is None or pace.usual is None else int(pace.usual.max())
        rounds = options.rounds or max(1, steps // usual)
        with blame("dbadfl"):
            self._check_schedule(rounds)
        items = (*options.others, self.main)
        scans = options.detect or any(self.federations[item].options.needs_detection for item in items)
        self.all = [Stage(None, options.scan_rounds)] if scans else []
        self.all += [Stage(item, rounds) for item in items]
        self.ends, total = [], 0
        for stage in self.all:
            seed = derive(self.federation.seed, "run" if stage.item else "scan")
            federation = self.federations[stage.item] if stage.item else self.federation
            engine = federation.engine(federation.mixing, derive(seed, "engine"), attacking=stage.item is not None)
            total += engine.steps_of(stage.rounds)
            self.ends.append(total)
        return total

    def _check_schedule(self, rounds: int) -> None:
        """Refuse an attack that never comes, and say so of attackers whose round does not."""
        options = self.options
        if all(item.arm == "none" for item in self.federations):
            return
        try:
            options.check_scans(rounds)
        except ValueError as error:
            raise DbadflError(str(error)) from None
        late = [r for r in options.attack_rounds if r >= rounds]
        first = min(options.attack_rounds) if options.schedule == "single" else options.attack_start
        if first >= rounds:
            raise DbadflError(
                f"the attack begins in round {first} (they count from 0), but a run has {rounds} rounds; give more "
                "'rounds' or train.steps, or an earlier attack"
            )
        if late:
            self.trainer.note(f"dbadfl: the run of {rounds} rounds ends before attack rounds {late}")

    # ---- the present stage --------------------------------------------------------------------------------------
    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.all[self.number]

    @property
    def over(self) -> bool:
        """Whether there is none left."""
        return self.number == len(self.all)

    @property
    def runs(self) -> list[Item]:
        """What is compared, in its order."""
        return [stage.item for stage in self.all if stage.item]

    def begin(self) -> Present:
        """Start the present stage: the initial weights, and what is trained in it."""
        trainer, n = self.trainer, self.options.nodes
        before = self.ends[self.number - 1] if self.number else 0
        rows = {name: value.expand(n, *value.shape) for name, value in self.initial.items()}
        trainer.begin_phase(self.ends[self.number] - before, fresh=True, weights=rows)
        present = self.present()
        self.begun = True
        name = self.stage.item.text if self.stage.item else "scan"
        trainer.say(f"dbadfl: {name}, stage {self.number + 1} of {len(self.all)}")
        return present

    def present(self) -> Present:
        """Engine, batches and course of the present stage, at their beginning."""
        stack, optimizer = self.trainer.model, self.trainer.optimizer
        assert isinstance(stack, Stacked)
        item, rounds = self.stage.item, self.stage.rounds
        course: AttackCourse | ScanCourse
        if item is None:
            federation = self.federation
            training = federation.training(
                rounds=rounds, stream="scan", attacking=False, stack=stack, optimizer=optimizer
            )
            course = ScanCourse(federation.scan(training=training))
        else:
            federation = self.federations[item]
            training = federation.training(
                defence=defence_maker(self.options, item.defence),
                rounds=rounds,
                keep_start=federation.options.needs_start,
                stack=stack,
                optimizer=optimizer,
            )
            course = AttackCourse(
                federation,
                training,
                rounds,
                detection=self.detection,
                detector=self.detector,
                evaluate_every=self.options.evaluate_every,
            )
        for group in optimizer.param_groups:
            if training.engine.momentum and not group.get("momentum", 1):
                group["momentum"] = training.engine.momentum
        return Present(training, course)

    def end(self, present: Present) -> None:
        """The figures of the stage, from its last (or selected) weights."""
        self.trainer.end_phase()
        item, course = self.stage.item, present.course
        if isinstance(course, ScanCourse):
            self.detector = self.federation.detector()
            tau = self.federation.options.threshold(self.detector.median.median)
            self.detection = self.detector.detect(course.features, self.federation.attacker_hops, tau=tau)
        else:
            assert item is not None
            result = course.result()
            self.results.append(result)
            short = int(result.short.sum())
            if short:
                self.trainer.note(
                    f"dbadfl: {item.text}: {short} attackers stay under the pixel budget: a ratio ends at 1"
                )
            if item == Item("none", text=item.text):
                self.clean = self.mean(self.trainer.model)
        self.number, self.begun = self.number + 1, False

    def mean(self, model: nn.Module) -> dict[str, Tensor]:
        """The benign nodes' mean model, name -> tensor, of the stacked ``model``."""
        benign = self.federation.benign
        state = {name.removeprefix("stacked."): value for name, value in model.state_dict().items()}
        return {name: _mean(value[benign.to(value.device)]) for name, value in state.items()}

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self, present: Present | None) -> dict[str, Any]:
        """The stage and where it stands, and what the stages before gave."""
        state: dict[str, Any] = {
            "number": self.number,
            "begun": self.begun,
            "implementation": self.federation.implementation,
            "results": [result_state(result) for result in self.results],
            "detection": None if self.detection is None else self.detection.state_dict(),
            "detector": None if self.detector is None else self.detector.state_dict(),
            "clean": self.clean,
            "training": None,
            "course": None,
        }
        if self.begun and present is not None:
            training, rule = present.training, present.training.rule
            state["training"] = {
                "engine": training.engine.state_dict(),
                "rule": {} if rule is None else rule.state_dict(),
                "steps": training.steps,
            }
            state["course"] = present.course.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> Present | None:
        """Go on from `state_dict`, on a freshly built run; what is trained now, if a stage has begun."""
        self.number, self.begun = int(state["number"]), bool(state["begun"])
        self.federation.implementation = state["implementation"]
        stack = self.trainer.model
        assert isinstance(stack, Stacked)
        stack.implementation = state["implementation"]
        self.results = [result_from_state(result) for result in state["results"]]
        if state["detection"] is not None:
            self.detection = Detection.from_state(state["detection"])
        if state["detector"] is not None:
            self.detector = Detector.from_state(state["detector"], self.options, self.federation.seed)
        self.clean = state["clean"]
        if state["training"] is None:
            return None
        present = self.present()
        training = present.training
        training.engine.load_state_dict(state["training"]["engine"])
        if training.rule is not None:
            training.rule.load_state_dict(state["training"]["rule"])
        training.steps = int(state["training"]["steps"])
        present.course.load_state_dict(state["course"])
        return present


def _mean(rows: Tensor) -> Tensor:
    """Over axis 0, in double precision and back; of integers (counters of layers) the nearest one."""
    mean = rows.to(torch.promote_types(rows.dtype, torch.float64)).mean(0)
    return (mean if rows.is_floating_point() or rows.is_complex() else mean.round()).to(rows.dtype)
