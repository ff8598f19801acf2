"""The stages of a woven run: what is compared, how long each takes, and where the run stands.

A run is a list of stages, each from the same initial weights: the scan if distances are to be predicted, every run
beside the main one, and the main one last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from plait.data import Data
from plait.errors import blame
from plait_dbadfl import translate
from plait_dbadfl.course import AttackCourse, ScanCourse
from plait_dbadfl.detection import Detection, Detector
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.feeding import Feeding
from plait_dbadfl.items import Item
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.reference import ImageData
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


class Stages(Feeding):
    """The stages, the federation of each, and their state.

    Args:
        options: the plugin's options.
        trainer: the run, before it is built.
        data: its data, images [ch, H, W] in [0, 1].

    Raises:
        DbadflError: what the federation refuses.
    """

    def __init__(self, options: DbadflOptions, trainer: Trainer, data: Data) -> None:
        super().__init__(options, trainer, data)
        self.main = Item(options.arm, options.defence, text=options.arm)
        if options.defence is not None:
            self.main = replace(self.main, text=f"{options.arm}+{options.defence}")
        self.number, self.begun = 0, False
        self.results: list[Result] = []
        self.detection: Detection | None = None
        self.detector: Detector | None = None
        self.clean: dict[str, Tensor] | None = None
        self.clock = [0.0, 0.0]

    # ---- building -----------------------------------------------------------------------------------------------
    def stack(self, model: nn.Module) -> Stacked:
        """N networks with the weights of ``model``, and the federation around them."""
        options, recipe = self.options, self.trainer.recipe
        graph, again = translate.topology(options, recipe.seed)
        images = self.columns["input"]
        if images.ndim != 4:
            raise DbadflError(
                f"a federation needs images [ch, H, W]; the data's input has shape {tuple(images.shape[1:])}"
            )
        found = ImageData(
            images, self.columns["label"], self.test["input"], self.test["label"], self.plain.info.num_classes
        )
        implementation = options.implementation
        if implementation == "auto":
            pixels = recipe.train.batch_size * found.height * found.width
            chosen = translate.usual_implementation(model, pixels)
        else:
            chosen = "auto" if implementation == "measured" else implementation
        self.federation = Federation(
            model,
            found,
            graph,
            translate.configuration(options, recipe),
            translate.trigger(options, found.height, found.width),
            implementation=chosen,
            device=self.trainer.device,
            topology_options=again,
            prepare=None if self.plain.prepare is None else self.prepare,
        )
        stack = self.federation.stack()
        self.initial = {name: value[0].clone() for name, value in stack.state_dict().items()}
        self.federations = {item: self._federation(item) for item in (self.main, *options.others)}
        for item, federation in self.federations.items():
            self._check_defence(item, federation)
        return stack

    def _federation(self, item: Item) -> Federation:
        changes: dict[str, Any] = {"arm": item.arm}
        if item.placement is not None and item.placement != self.options.placement:
            changes |= {"placement": item.placement, "positions": ()}
        if item.budget is not None:
            changes |= {"budget": item.budget}
        return self.federation.with_attack(**changes)

    def _check_defence(self, item: Item, federation: Federation) -> None:
        maker = translate.defence_maker(self.options, item.defence)
        if maker is None:
            return
        rule = maker()
        rule.check(federation.mixing.degrees)
        caution = rule.caution(federation.mixing.degrees)
        if caution is not None:
            self.trainer.note(f"dbadfl: {caution}")

    def _check_schedule(self, rounds: int) -> None:
        """Refuse an attack that never comes, and say so of attackers whose round does not."""
        if all(item.arm == "none" for item in self.federations):
            return
        schedule = self.federation.config.attack.schedule
        late = [r for r in schedule.rounds if r >= rounds] if schedule.kind == "single" else []
        first = min(schedule.rounds) if schedule.kind == "single" else schedule.start
        if first >= rounds:
            raise DbadflError(
                f"the attack begins in round {first} (they count from 0), but a run has {rounds} rounds; give more "
                "'rounds' or train.steps, or an earlier attack"
            )
        if late:
            self.trainer.note(f"dbadfl: the run of {rounds} rounds ends before attack rounds {late}")

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
        self.rounds = rounds
        items = (*options.others, self.main)
        wants = options.detect or any(item.scans for item in items)
        self.stages = [Stage(None, options.scan_rounds)] if wants else []
        self.stages += [Stage(item, rounds) for item in items]
        self.ends, total = [], 0
        for stage in self.stages:
            seed = derive(self.federation.config.seed, "run" if stage.item else "scan")
            federation = self.federations[stage.item] if stage.item else self.federation
            engine = federation.engine(federation.mixing, derive(seed, "engine"), attacking=stage.item is not None)
            total += engine.steps_of(stage.rounds)
            self.ends.append(total)
        return total

    # ---- the present stage --------------------------------------------------------------------------------------
    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.stages[self.number]

    def begin(self) -> None:
        trainer, n = self.trainer, self.options.nodes
        rows = {name: value.expand(n, *value.shape) for name, value in self.initial.items()}
        trainer.restore_model({"weights": rows, "masks": trainer.masks.state_dict()})
        named = dict(trainer.model.named_parameters())
        for shadow in trainer.shadows.sets.values():
            for name, tensor in shadow.items():
                tensor.copy_(named[name].detach())
        before = self.ends[self.number - 1] if self.number else 0
        trainer.begin_phase(self.ends[self.number] - before, fresh=True)
        self._prepare_stage()
        self.begun, self.clock = True, [0.0, 0.0]
        name = self.stage.item.text if self.stage.item else "scan"
        trainer.recorder.progress.say(f"dbadfl: {name}, stage {self.number + 1} of {len(self.stages)}")

    def _prepare_stage(self) -> None:
        """Engine, batches and course of the present stage, at their beginning."""
        stack, optimizer = self.trainer.model, self.trainer.optimizer
        assert isinstance(stack, Stacked)
        item = self.stage.item
        if item is None:
            federation = self.federation
            training = federation.training(
                rounds=self.stage.rounds, stream="scan", attacking=False, stack=stack, optimizer=optimizer
            )
            self.course = ScanCourse(federation.scan(training=training))
        else:
            federation, attack = self.federations[item], self.federations[item].config.attack
            training = federation.training(
                defence=translate.defence_maker(self.options, item.defence),
                rounds=self.stage.rounds,
                keep_start=attack.gamma != 1.0 or attack.alpha < 1.0,
                stack=stack,
                optimizer=optimizer,
            )
            self.course = AttackCourse(
                federation,
                training,
                self.stage.rounds,
                detection=self.detection,
                detector=self.detector,
                evaluate_every=self.options.evaluate_every,
            )
        self.training = training
        for group in optimizer.param_groups:
            if training.engine.momentum and not group.get("momentum", 1):
                group["momentum"] = training.engine.momentum

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The stage and where it stands, and what the stages before gave."""
        running = self.begun and self.training is not None and self.course is not None
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
        if running:
            assert self.training is not None
            assert self.course is not None
            rule = self.training.rule
            state["training"] = {
                "engine": self.training.engine.state_dict(),
                "rule": {} if rule is None else rule.state_dict(),
                "steps": self.training.steps,
            }
            state["course"] = self.course.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, on a freshly built run."""
        if not state:
            return
        self.number, self.begun = int(state["number"]), bool(state["begun"])
        self.federation.implementation = state["implementation"]
        stack = self.trainer.model
        assert isinstance(stack, Stacked)
        stack.implementation = state["implementation"]
        self.results = [result_from_state(result) for result in state["results"]]
        if state["detection"] is not None:
            self.detection = Detection.from_state(state["detection"])
        if state["detector"] is not None:
            config = self.federation.config
            self.detector = Detector.from_state(state["detector"], config.predictor, config.seed)
        self.clean = state["clean"]
        if state["training"] is None:
            return
        self._prepare_stage()
        assert self.training is not None
        assert self.course is not None
        self.training.engine.load_state_dict(state["training"]["engine"])
        if self.training.rule is not None:
            self.training.rule.load_state_dict(state["training"]["rule"])
        self.training.steps = int(state["training"]["steps"])
        self.course.load_state_dict(state["course"])
