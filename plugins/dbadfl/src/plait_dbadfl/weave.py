"""The evaluation woven into a plait run: stages of the core's own steps, with the federation around every step.

A run is a list of stages, each from the same initial weights: the scan if distances are to be predicted, every run
beside the main one, and the main one last. In every stage a step is the core's ordinary step on a batch [N, B] of all
nodes; the engine exchanges models before and after it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Data
from plait.errors import BadInput, blame
from plait.step import LossReport
from plait_dbadfl import translate
from plait_dbadfl.course import AttackCourse, ScanCourse
from plait_dbadfl.detection import Detection, Detector
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.feeding import Feeding
from plait_dbadfl.items import Item
from plait_dbadfl.nodes import NodesBatch
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.poisoning import check_finite
from plait_dbadfl.reference import ImageData
from plait_dbadfl.results import Result, result_from_state, result_state
from plait_dbadfl.sampling import derive
from plait_dbadfl.stacking import Stacked

if TYPE_CHECKING:
    from plait.trainer import Trainer


@dataclass(frozen=True)
class Stage:
    """One stretch of training from the initial weights: a run, or the scan (item None)."""

    item: Item | None
    rounds: int


class Weave(Feeding):
    """What the plugin keeps during a run.

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

    def budget(self, steps: int) -> int:
        """Steps of all stages; ``steps`` is the length of one of them, or ``rounds`` says it."""
        options = self.options
        rounds = options.rounds or max(1, steps // options.local_steps)
        self.rounds = rounds
        items = (*options.others, self.main)
        wants = options.detect or any(item.scans for item in items)
        self.stages = [Stage(None, options.scan_rounds)] if wants else []
        self.stages += [Stage(item, rounds) for item in items]
        self.ends, total = [], 0
        for stage in self.stages:
            seed = derive(self.federation.config.seed, "run" if stage.item else "scan")
            engine = self.federation.engine(self.federation.mixing, derive(seed, "engine"))
            total += engine.steps_of(stage.rounds)
            self.ends.append(total)
        return total

    # ---- the step -----------------------------------------------------------------------------------------------
    def step(self, trainer: Trainer, batch: Any, proceed: Callable[[], LossReport]) -> LossReport:
        """An exchange if one is due, the core's step, the attackers' own rate, an exchange if one is due."""
        if not isinstance(batch, NodesBatch):
            raise BadInput(
                "plugin 'dbadfl': the batch is not one of all nodes; something replaced the training split after it. "
                "Put dbadfl behind the plugins that change the data."
            )
        training, course = self.training, self.course
        assert training is not None
        assert course is not None
        began, round_, attack = time.perf_counter(), training.round, course.attack()
        with blame("dbadfl"):
            training.begin_step(attack)
        slow = None if attack is None or attack.lr is None else attack
        kept = [] if slow is None else [p.detach()[slow.acting()].clone() for p in training.parameters]
        report = proceed()
        with torch.no_grad():
            if slow is not None and slow.lr is not None:
                factor = slow.lr / self.federation.config.local.lr
                for p, before in zip(training.parameters, kept, strict=True):
                    p[slow.acting()] = before + factor * (p[slow.acting()] - before)
            with blame("dbadfl"):
                training.end_step(attack)
        self.clock[0] += time.perf_counter() - began
        if training.round > round_:
            with blame("dbadfl"):
                check_finite(training.parameters, round_)
            course.round_ended()
            self.clock[1] += 1
        return report

    def weights(self, batch: Any) -> Tensor:
        """The loss's share alpha in attackers' rows, [n, B]; ones [B] where everybody has the whole loss."""
        count = batch["index"].shape[-1]
        attack = None if self.course is None else self.course.attack()
        made = torch.ones(count, device=batch["index"].device)
        if attack is None or attack.alpha == 1.0 or not isinstance(batch, NodesBatch):
            return made
        made = made.repeat(len(batch["index"]), 1)
        nodes = torch.arange(self.options.nodes, device=made.device) if batch.nodes is None else batch.nodes
        made[torch.isin(nodes, attack.acting().to(nodes.device))] = attack.alpha
        return made

    def terms(self, batch: Any) -> dict[str, Tensor]:
        """``distance``: (1 - alpha) times the attackers' distances to the start of the round; nothing with alpha 1."""
        attack = None if self.course is None else self.course.attack()
        if attack is None or attack.alpha == 1.0 or self.training is None or not isinstance(batch, NodesBatch):
            return {}
        found = self.training.distances(batch.nodes, attack)
        return {} if found is None else {"distance": (1 - attack.alpha) * found[1].sum()}

    # ---- stages -------------------------------------------------------------------------------------------------
    def fit(self) -> None:
        """Every stage from where the run stands."""
        self._say()
        while self.number < len(self.stages):
            if not self.begun:
                self._begin()
            self.trainer.train_until(self.ends[self.number])
            self._end()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.trainer.note(f"dbadfl: peak memory of this process so far {peak:.0f} MiB")

    def _say(self) -> None:
        """What a reader must know of the settings, once."""
        options, note = self.options, self.trainer.note
        if any(stage.item is None for stage in self.stages):
            for name, value, why in (
                ("shadow_data", options.shadow_data == "all", "attackers would own everybody's images"),
                ("shadow_topology", options.shadow_topology == "same-family", "they would know the family of graphs"),
            ):
                if value:
                    note(f"dbadfl: {name} = {getattr(options, name)!r} is optimistic: {why}")
            if self.trainer.recipe.optimizer.name != "sgd":
                note("dbadfl: shadow networks are trained by plain SGD, whatever the recipe's optimizer is")
        if self.federation.mixing.is_doubly_stochastic is False:
            note("dbadfl: W is row-stochastic only, so mixing does not conserve the mean model")

    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.stages[self.number]

    def _begin(self) -> None:
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
            training = federation.training(rounds=self.stage.rounds, stream="scan", stack=stack, optimizer=optimizer)
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

    def _end(self) -> None:
        """The figures of the stage, from its last (or selected) weights."""
        assert self.training is not None
        assert self.course is not None
        self.trainer.end_phase()
        item = self.stage.item
        if isinstance(self.course, ScanCourse):
            self.detector = self.federation.detector()
            tau = self.federation.config.attack.tau
            self.detection = self.detector.detect(self.course.features, self.federation.attacker_hops, tau=tau)
        else:
            self.results.append(self.course.result())
            short = int(self.results[-1].short.sum())
            if short and item is not None:
                self.trainer.note(
                    f"dbadfl: {item.text}: {short} attackers stay under the pixel budget: a ratio ends at 1"
                )
            if item == Item("none", text=item.text if item else ""):
                self.clean = self.mean(self.trainer.model)
        self.number, self.begun = self.number + 1, False
        if self.number < len(self.stages):
            self.training, self.course = None, None

    def mean(self, model: nn.Module) -> dict[str, Tensor]:
        """The benign nodes' mean model, name -> tensor, of the stacked ``model``."""
        benign = self.federation.benign
        state = {name.removeprefix("stacked."): value for name, value in model.state_dict().items()}
        return {name: value[benign.to(value.device)].double().mean(0).to(value.dtype) for name, value in state.items()}

    def export(self, model: nn.Module) -> nn.Module:
        """One network: the benign nodes' mean of the main run, if it is not poisoned or the flag is given; else that
        of the clean run."""
        assert isinstance(model, Stacked)
        attacked = self.options.arm != "none"
        weights = self.clean if attacked and not self.options.export_poisoned else self.mean(model)
        one = model.replica(0)
        if weights is not None:
            one.load_state_dict(weights)
        shown = attacked and self.options.export_poisoned
        text = f"mean of benign nodes under the attack {self.main.text}" if shown else "mean of benign nodes, no attack"
        one.export_metadata = {"backdoored": "yes" if shown else "no", "dbadfl": text}  # type: ignore[assignment]
        if shown:
            self.trainer.note("dbadfl: the exported model is BACKDOORED, as export_poisoned asked for")
        return one

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
