"""The evaluation woven into a plait run: stages of the core's own steps, with the federation around every step.

In every stage (see `plait_dbadfl.stages`) a step is the core's ordinary step on a batch [n, B] of all nodes that train
in it; the engine exchanges models before and after it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.errors import BadInput, blame
from plait.training.woven import LossReport
from plait_dbadfl.course import ScanCourse
from plait_dbadfl.items import Item
from plait_dbadfl.nodes import NodesBatch
from plait_dbadfl.poisoning import check_finite
from plait_dbadfl.stacking import Stacked
from plait_dbadfl.stages import Stages

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


class Weave(Stages):
    """What the plugin does in a run; its arguments are those of `Stages`."""

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
        rates = training.rates(attack)
        kept = [] if rates is None else [p.detach()[rates[0]].clone() for p in training.parameters]
        report = proceed()
        with torch.no_grad():
            if rates is not None:
                acting, factors = rates
                for p, before in zip(training.parameters, kept, strict=True):
                    p[acting] = before + factors.view(-1, *[1] * (p.ndim - 1)) * (p[acting] - before)
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
                self.begin()
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
