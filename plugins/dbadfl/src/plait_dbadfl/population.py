"""The nodes of a federation: graph, data, attackers, models, and how they train. The part that every run shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plait_dbadfl.config import FederationConfig
from plait_dbadfl.defences import Defence, RobustAggregation
from plait_dbadfl.engines import make_engine
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Prepare, Training
from plait_dbadfl.metrics import eligible_images
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.names import SCANNING
from plait_dbadfl.pace import Pace, passes
from plait_dbadfl.phases import Aggregate, Engine
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.reference import ImageData
from plait_dbadfl.sampling import derive, split_probes
from plait_dbadfl.splits import split
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.topologies import Topology
from plait_dbadfl.triggers import Trigger, preset_trigger

DefenceMaker = Callable[[], Defence]
"""Makes a fresh aggregation rule: rules with a history must not carry it from run to run."""


@dataclass
class Population:
    """N nodes, M of them attackers.

    Args:
        model: one node's network with its initial weights; everybody starts from them.
        data: train and test images.
        topology: the graph.
        config: everything else; see `FederationConfig`.
        trigger: Q; default the digits' preset scaled to the images.
        implementation: of `Stacked`; ``"auto"`` (default) is chosen by a timed trial, once per federation.
        device: where models and images are kept.
        prepare: applied to images [..., ch, H, W] just before the networks, after the triggers.
        topology_options: what made the topology, so that shadows of the same family are drawn alike.

    Raises:
        DbadflError: whatever split, placement, trigger, mixing or engine refuse; a target outside the classes; a test
            set of the target class alone.
    """

    model: nn.Module
    data: ImageData
    topology: Topology
    config: FederationConfig = field(default_factory=FederationConfig)
    trigger: Trigger | None = None
    implementation: Implementation = "auto"
    device: torch.device | str = "cpu"
    topology_options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        config, attack = self.config, self.config.attack
        if self.trigger is None:
            self.trigger = preset_trigger("digits", self.data.height, self.data.width)
        if (self.trigger.height, self.trigger.width) != (self.data.height, self.data.width):
            raise DbadflError(
                f"a trigger for images of {self.trigger.height} x {self.trigger.width} does not fit images of "
                f"{self.data.height} x {self.data.width}"
            )
        if attack.target >= self.data.classes:
            raise DbadflError(f"target={attack.target} is outside the classes 0..{self.data.classes - 1}")
        eligible_images(self.data.test_labels, attack.target)
        self.data = self.data.to(self.device)
        self.mixing: Mixing = make_mixing(self.topology, config.weights)
        self.attackers: Tensor = place_attackers(
            self.topology, attack.attackers, attack.placement, seed=config.seed, positions=attack.positions
        )
        owned = split(
            self.data.train_labels.cpu(),
            self.topology.n,
            kind=config.split.kind,
            alpha=config.split.alpha,
            seed=config.seed,
            min_samples=config.split.min_samples,
        )
        self.probes, self.owned = split_probes(
            owned, self.attackers, seed=config.seed, limit=config.scan.probes, hold_out=config.scan.hold_out
        )
        self.engine(self.mixing, 0)  # so that an impossible one is refused here

    # ---- what it is --------------------------------------------------------------------------------------------
    @property
    def benign(self) -> Tensor:
        """bool [N], everybody but the attackers, in every arm."""
        mask = torch.ones(self.topology.n, dtype=torch.bool)
        mask[self.attackers] = False
        return mask

    @cached_property
    def hops_to_attackers(self) -> Tensor:
        """int64 [N], hops to the nearest attacker."""
        return self.topology.hops_to(self.attackers)

    @cached_property
    def attacker_hops(self) -> Tensor:
        """int64 [M, M], true hops between attackers."""
        return self.topology.hops(self.attackers)[:, self.attackers]

    # ---- parts -------------------------------------------------------------------------------------------------
    def engine(
        self,
        mixing: Mixing,
        seed: int,
        aggregate: Aggregate | None = None,
        keep_start: bool = False,
        *,
        attacking: bool = True,
        lengths: Tensor | None = None,
    ) -> Engine:
        """A fresh engine.

        Args:
            mixing: W of these nodes, or of shadows.
            seed: of its own choices.
            aggregate: replaces the mean.
            keep_start: keep the models before local training.
            attacking: whether attackers have their own number of local steps in the rounds of the attack.
            lengths: int64 [N], images of each node, for shadows; None: of these nodes.
        """
        name, local, own = self.config.engine, self.config.local, dict(self.config.engine_options)
        if name == "fedavg" and mixing is not self.mixing:
            # Shadows have no complete graph between them; a block of federated averages is a plain mix.
            name, own = "dfedavg", {}
        if own.get("drawn") is not None:
            own["guests"] = self._guests()
        return make_engine(
            name,
            mixing,
            local_steps=local.steps,
            seed=seed,
            aggregate=aggregate,
            keep_start=keep_start,
            pace=self.pace(self.owned.lengths if lengths is None else lengths, attacking),
            fresh_momentum=local.fresh_momentum,
            **own,
        )

    def pace(self, lengths: Tensor, attacking: bool) -> Pace | None:
        """Numbers of local steps where they are not the same for all; None where they are.

        Args:
            lengths: int64 [N], images of each node.
            attacking: as in `engine`.
        """
        local, counts = self.config.local, None
        usual = None if local.epochs is None else passes(lengths, local.batch, local.epochs)
        if local.attacker_epochs is not None:
            counts = passes(lengths, local.batch, local.attacker_epochs)
        elif local.attacker_steps is not None:
            counts = torch.full_like(lengths, local.attacker_steps)
        if not attacking or self.config.attack.arm == "none":
            counts = None
        if usual is None and counts is None:
            return None
        return Pace(usual, counts, None if counts is None else self.acting)

    def acting(self, round_: int) -> Tensor | None:
        """int64, the attackers' nodes that poison in a round of the configured arm; None if nobody does.

        A function of the round alone, known before distances are: whoever attacks has a part in every arm.
        """
        attack = self.config.attack
        if attack.arm == "none" or attack.amount == 0:
            return None
        every = attack.redetect_every if attack.arm in SCANNING else 0
        if every and round_ % (every + self.config.scan.rounds) >= every:
            return None  # attack and scan take turns, see `AttackCourse`; who scans trains as everybody does
        who = attack.schedule.active(round_, len(self.attackers))
        if attack.arm == "centralized-one":
            who = who & (torch.arange(len(who)) == 0)
        return self.attackers[who] if bool(who.any()) else None

    def _guests(self) -> dict[int, Tensor]:
        """Round -> attackers whose only round it is, under ``schedule="single"``: they take part in it [code]."""
        schedule = self.config.attack.schedule
        rounds = set(schedule.rounds) if schedule.kind == "single" else set()
        return {r: self.attackers[schedule.active(r, len(self.attackers))] for r in rounds}

    def training(
        self,
        *,
        defence: DefenceMaker | None = None,
        rounds: int = 1,
        keep_start: bool = False,
        stream: str = "run",
        attacking: bool = True,
        stack: Stacked | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Training:
        """Fresh models and an engine at round 0.

        Args:
            defence: makes the aggregation rule; None is the mean.
            rounds: of the whole run, for rules whose thresholds shrink.
            keep_start: keep the models before local training, for gamma != 1 and alpha < 1.
            stream: name of the random numbers; runs of one name share batches.
            attacking: as in `engine`.
            stack: models of the caller instead of fresh ones.
            optimizer: whose steps the caller makes; see `plait_dbadfl.local.Training`.
        """
        seed = derive(self.config.seed, stream)
        aggregate = None if defence is None else RobustAggregation(defence(), rounds=rounds)
        training = Training(
            stack or self.stack(),
            self.engine(self.mixing, derive(seed, "engine"), aggregate, keep_start, attacking=attacking),
            self.data.train,
            self.data.train_labels,
            self.owned,
            self.config.local,
            derive(seed, "training"),
            optimizer,
            self.prepare,
        )
        if aggregate is not None:
            aggregate.losses = training.cross_losses
        return training

    def stack(self) -> Stacked:
        """N copies of the model with its initial weights."""
        stack = Stacked(self.model, self.topology.n, implementation=self.implementation).to(self.device)
        if stack.implementation == "auto":
            example = self.data.train[: self.config.local.batch]
            stack.choose(example if self.prepare is None else self.prepare(example), shared=True)
            self.implementation = stack.implementation  # type: ignore[assignment]
        return stack

    @property
    def _trigger(self) -> Trigger:
        assert self.trigger is not None
        return self.trigger
