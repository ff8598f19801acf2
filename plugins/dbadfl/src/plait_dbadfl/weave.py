"""The evaluation woven into a plait run: stages of the core's own steps, with the federation around every step.

In every stage (see `plait_dbadfl.stages`) a step is the core's ordinary step on a batch [n, B] of all nodes that train
in it; the engine exchanges models before and after it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Data
from plait.errors import BadInput, blame
from plait.training import replicas
from plait.training.woven import LossReport
from plait_dbadfl import assembly
from plait_dbadfl.feed import Feed, Present
from plait_dbadfl.local import Attack
from plait_dbadfl.nodes import NodesBatch
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.poisoning import check_finite
from plait_dbadfl.stacking import Stacked
from plait_dbadfl.stages import Stages

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


class Weave:
    """What the plugin does in a run.

    Args:
        options: the plugin's options.
        trainer: the run, before it is built.
        data: its data, images [ch, H, W] in [0, 1].

    Attributes:
        feed: what goes in.
        stages: what is compared, and where the run stands; set when the model is there.
        clock: seconds in the steps of the present stage, and its rounds.

    Raises:
        DbadflError: data that brings a forward pass of its own.
    """

    stages: Stages

    def __init__(self, options: DbadflOptions, trainer: Trainer, data: Data) -> None:
        self.options, self.trainer = options, trainer
        self.feed = Feed(options, trainer, data)
        self.clock = [0.0, 0.0]

    @property
    def present(self) -> Present | None:
        """What is trained now; None between stages."""
        return self.feed.present

    def stack(self, model: nn.Module) -> Stacked:
        """N networks with the weights of ``model``, and the federation around them.

        Raises:
            DbadflError: what the federation refuses.
        """
        trainer, feed = self.trainer, self.feed
        feed.federation = assembly.federation(
            self.options, trainer.recipe, model, feed.images(), device=trainer.device, prepare=feed.prepare
        )
        stack = feed.federation.stack()
        initial = {name: value[0].clone() for name, value in stack.state_dict().items()}
        self.stages = Stages(self.options, trainer, feed.federation, initial)
        return stack

    # ---- the step -----------------------------------------------------------------------------------------------
    def step(self, trainer: Trainer, batch: Any, proceed: Callable[[], LossReport]) -> LossReport:
        """An exchange if one is due, the core's step, the attackers' own rate, an exchange if one is due."""
        if not isinstance(batch, NodesBatch):
            raise BadInput(
                "plugin 'dbadfl': the batch is not one of all nodes; something replaced the training split after it. "
                "Put dbadfl behind the plugins that change the data."
            )
        assert self.present is not None
        training, course = self.present.training, self.present.course
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
                    p[acting] = before + replicas.scaled([p[acting] - before], factors)[0]
            with blame("dbadfl"):
                training.end_step(attack)
        self.clock[0] += time.perf_counter() - began
        if training.round > round_:
            with blame("dbadfl"):
                check_finite(training.parameters, round_)
            course.round_ended()
            self.clock[1] += 1
        return report

    def _stealthy(self, batch: Any) -> Attack | None:
        """The present attack, if it keeps near the start of the round."""
        attack = None if self.present is None else self.present.course.attack()
        return attack if attack is not None and attack.alpha < 1.0 and isinstance(batch, NodesBatch) else None

    def weights(self, batch: Any) -> Tensor:
        """The loss's share alpha in attackers' rows, [n, B]; ones [B] where everybody has the whole loss."""
        count, attack = batch["index"].shape[-1], self._stealthy(batch)
        ones = torch.ones(count, device=batch["index"].device)
        if attack is None:
            return ones
        shares = ones.repeat(len(batch["index"]), 1)
        nodes = torch.arange(self.options.nodes, device=ones.device) if batch.nodes is None else batch.nodes
        shares[torch.isin(nodes, attack.acting().to(nodes.device))] = attack.alpha
        return shares

    def terms(self, batch: Any) -> dict[str, Tensor]:
        """``distance``: (1 - alpha) times the attackers' distances to the start of the round; nothing with alpha 1."""
        attack = self._stealthy(batch)
        if attack is None or self.present is None:
            return {}
        distances = self.present.training.distances(batch.nodes, attack)
        return {} if distances is None else {"distance": (1 - attack.alpha) * distances[1].sum()}

    # ---- stages -------------------------------------------------------------------------------------------------
    def fit(self) -> None:
        """Every stage from where the run stands."""
        self._say()
        stages = self.stages
        while not stages.over:
            if not stages.begun:
                self.feed.present, self.clock = stages.begin(), [0.0, 0.0]
            self.trainer.train_until(stages.ends[stages.number])
            assert self.present is not None
            stages.end(self.present)
            if not stages.over:
                self.feed.present = None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.trainer.note(f"dbadfl: peak memory of this process so far {peak:.0f} MiB")

    def _say(self) -> None:
        """What a reader must know of the settings, once."""
        options, note = self.options, self.trainer.note
        if any(stage.item is None for stage in self.stages.all):
            for name, value, why in (
                ("shadow_data", options.shadow_data == "all", "attackers would own everybody's images"),
                ("shadow_topology", options.shadow_topology == "same-family", "they would know the family of graphs"),
            ):
                if value:
                    note(f"dbadfl: {name} = {getattr(options, name)!r} is optimistic: {why}")
            unaware = [item.text for item in self.stages.runs if item.unaware]
            if unaware:
                note(f"dbadfl: {', '.join(unaware)}: attacked with distances that were learnt without the defence")
            if self.trainer.recipe.optimizer.name != "sgd":
                note("dbadfl: shadow networks are trained by plain SGD, whatever the recipe's optimizer is")
        if self.stages.federation.mixing.is_doubly_stochastic is False:
            note("dbadfl: W is row-stochastic only, so mixing does not conserve the mean model")

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands."""
        return self.stages.state_dict(self.present)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, on a freshly built run."""
        if state:
            self.feed.present = self.stages.load_state_dict(state)

    # ---- export -------------------------------------------------------------------------------------------------
    def export(self, model: nn.Module) -> nn.Module:
        """One network: the benign nodes' mean of the main run, if it is not poisoned or the flag is given; else that
        of the clean run."""
        assert isinstance(model, Stacked)
        attacked = self.options.arm != "none"
        shown = attacked and self.options.export_poisoned
        weights = self.stages.clean if attacked and not shown else self.stages.mean(model)
        network = model.replica(0)
        if weights is not None:
            network.load_state_dict(weights)
        main = self.stages.main.text
        text = f"mean of benign nodes under the attack {main}" if shown else "mean of benign nodes, no attack"
        network.export_metadata = {"backdoored": "yes" if shown else "no", "dbadfl": text}  # type: ignore[assignment]
        if shown:
            self.trainer.note("dbadfl: the exported model is BACKDOORED, as export_poisoned asked for")
        return network
