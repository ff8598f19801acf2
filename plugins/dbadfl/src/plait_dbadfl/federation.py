"""One federation from a seed: its nodes, attackers and data, its detection, and its runs under every arm and defence.

This is the plain loop; nothing here knows plait. Arms and defences of one `Federation` share graph, split, placement,
initial weights and batches, so that their results are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plait_dbadfl.arms import AttackPlan, clusters_of_arm
from plait_dbadfl.config import FederationConfig
from plait_dbadfl.course import AttackCourse
from plait_dbadfl.defences import Defence, RobustAggregation
from plait_dbadfl.detection import Detection, Detector, Scan, check_scan
from plait_dbadfl.engines import make_engine
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Prepare, Training
from plait_dbadfl.metrics import Scores, Summary, eligible_images, evaluate, summarize
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.names import SCANNING
from plait_dbadfl.phases import Aggregate, Engine
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.reference import ImageData
from plait_dbadfl.results import Result
from plait_dbadfl.sampling import derive, split_probes
from plait_dbadfl.scan import make_signatures
from plait_dbadfl.shadows import ShadowPairs, ShadowWorld, simulate_shadows
from plait_dbadfl.splits import split
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.topologies import Topology
from plait_dbadfl.triggers import Trigger, preset_trigger

DefenceMaker = Callable[[], Defence]
"""Makes a fresh aggregation rule: rules with a history must not carry it from run to run."""


@dataclass
class Federation:
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
    def engine(self, mixing: Mixing, seed: int, aggregate: Aggregate | None = None, keep_start: bool = False) -> Engine:
        """A fresh engine."""
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
            **own,
        )

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
        stack: Stacked | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Training:
        """Fresh models and an engine at round 0.

        Args:
            defence: makes the aggregation rule; None is the mean.
            rounds: of the whole run, for rules whose thresholds shrink.
            keep_start: keep the models before local training, for gamma != 1 and alpha < 1.
            stream: name of the random numbers; runs of one name share batches.
            stack: models of the caller instead of fresh ones.
            optimizer: whose steps the caller makes; see `plait_dbadfl.local.Training`.
        """
        seed = derive(self.config.seed, stream)
        aggregate = None if defence is None else RobustAggregation(defence(), rounds=rounds)
        training = Training(
            stack or self.stack(),
            self.engine(self.mixing, derive(seed, "engine"), aggregate, keep_start),
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

    # ---- detection ---------------------------------------------------------------------------------------------
    def scan(self, *, defence: DefenceMaker | None = None, training: Training | None = None, turn: int = 0) -> Scan:
        """The scan phase, not begun: a separate run, models restarted; or in the course of ``training``.

        Args:
            defence: in place during the scan; None is the mean.
            training: to scan in, instead of fresh models.
            turn: number of the scan; each has its own signatures.
        """
        config = self.config
        check_scan(config.scan, len(self.attackers))
        signatures = make_signatures(
            len(self.attackers),
            self.data.height,
            self.data.width,
            self.data.classes,
            seed=derive(config.seed, "scan", turn),
            pixels=config.scan.pixels,
            target=config.scan.target,
            shared_target=config.attack.target,
        )
        where = training or self.training(defence=defence, rounds=config.scan.rounds, stream="scan")
        return Scan(where, self.attackers, self.probes, signatures, config.scan.ratio)

    def shadows(self) -> ShadowPairs:
        """The attackers' simulations; see `plait_dbadfl.shadows`."""
        config = self.config
        check_scan(config.scan, len(self.attackers))
        own = self.owned.rows(self.attackers).images()
        if self.implementation == "auto":
            self.training()
        world = ShadowWorld(
            family=self.topology.name,
            family_options=self.topology_options,
            nodes=self.topology.n,
            attackers=len(self.attackers),
            base=self.model,
            implementation=self.implementation,
            engine=self.engine,
            weights=config.weights,
            data=self.data,
            own=own,
            node_images=float(self.owned.lengths.double().mean()),
            split=config.split,
            local=config.local,
            scan=config.scan,
            signature_target=config.attack.target,
            prepare=self.prepare,
        )
        seed = derive(config.seed, "shadow seed") if config.shadow.seed is None else config.shadow.seed
        return simulate_shadows(world, config.shadow, seed=seed, run_seed=config.seed)

    def detector(self, pairs: ShadowPairs | None = None, *, control: bool = True) -> Detector:
        """Train the predictor, and its controls, on shadows."""
        found = pairs or self.shadows()
        return Detector.train(
            found.sequences, found.distances, self.config.predictor, self.config.seed, control=control
        )

    def detect(
        self, detector: Detector | None = None, *, defence: DefenceMaker | None = None, control: bool = True
    ) -> Detection:
        """Scan, learn from shadows, predict.

        Args:
            detector: from an earlier call, to save the shadows.
            defence: in place during the scan; None is the mean.
            control: train the shuffled control too.
        """
        trained = detector or self.detector(control=control)
        features = self.scan(defence=defence).run(self.config.scan.rounds)
        return trained.detect(features, self.attacker_hops, tau=self.config.attack.tau)

    # ---- runs --------------------------------------------------------------------------------------------------
    def plan(self, detection: Detection | None = None) -> AttackPlan:
        """Who carries what in the configured arm.

        Raises:
            DbadflError: an arm that needs a detection without one.
        """
        attack, trigger = self.config.attack, self._trigger
        seed = derive(self.config.seed, "attack")
        predicted = None if detection is None else detection.hops
        clusters = clusters_of_arm(attack, self.attacker_hops, predicted, seed=seed)
        return AttackPlan(attack, trigger, self.attackers, clusters, seed, self.device)

    def run(
        self,
        rounds: int,
        *,
        arm: str | None = None,
        defence: DefenceMaker | None = None,
        detection: Detection | None = None,
        detector: Detector | None = None,
        evaluate_every: int = 0,
        on_round: Callable[[Training], None] | None = None,
    ) -> Result:
        """Train ``rounds`` rounds under the configured arm and evaluate.

        Args:
            rounds: at least 1; scans of ``redetect_every`` count among them.
            arm: instead of the configured one.
            defence: makes the aggregation rule; None is the mean.
            detection: for arms with predicted clusters; made if None.
            detector: for that, and for ``redetect_every``; made if None.
            evaluate_every: rounds between evaluations on the way; 0 (default) is the end only.
            on_round: called after every round.

        Raises:
            DbadflError: rounds below 1, models that are not finite.
        """
        if rounds < 1:
            raise DbadflError(f"rounds={rounds} must be at least 1")
        if arm is not None and arm != self.config.attack.arm:
            return self.with_attack(arm=arm).run(
                rounds,
                defence=defence,
                detection=detection,
                detector=detector,
                evaluate_every=evaluate_every,
                on_round=on_round,
            )
        attack = self.config.attack
        if attack.arm in SCANNING and (detection is None or attack.redetect_every):
            detector = detector or self.detector(control=False)
            detection = detection or self.detect(detector)
        keep_start = attack.gamma != 1.0 or attack.alpha < 1.0
        training = self.training(defence=defence, rounds=rounds, keep_start=keep_start)
        course = AttackCourse(
            self, training, rounds, detection=detection, detector=detector, evaluate_every=evaluate_every
        )
        seconds = 0.0
        while training.round < rounds:
            began = time.perf_counter()
            training.run_round(course.attack())
            seconds += time.perf_counter() - began
            course.round_ended()
            if on_round is not None:
                on_round(training)
        return course.result(seconds / rounds)

    def with_attack(self, **changes: Any) -> Federation:
        """The same federation, same seed, with other options of the attack."""
        other = replace(self.config, attack=replace(self.config.attack, **changes))
        return replace(self, config=other)

    # ---- evaluation --------------------------------------------------------------------------------------------
    def evaluate(self, training: Training, plan: AttackPlan) -> Scores:
        """Test every node; success by local part is of the plan's distinct parts in its present round."""
        parts = torch.unique(plan.parts(max(0, training.round - 1)), dim=0)
        parts = parts[parts.any(1)]
        masks = self._trigger.masks(parts).to(self.device) if len(parts) else None
        return evaluate(
            training.forward,
            self.data.test,
            self.data.test_labels,
            self.topology.n,
            target=self.config.attack.target,
            trigger=self._trigger.mask.to(self.device),
            parts=masks,
            value=self._trigger.value,
        )

    def summary(self, scores: Scores) -> Summary:
        """Over benign nodes."""
        return summarize(scores, self.benign, self.hops_to_attackers)

    @property
    def _trigger(self) -> Trigger:
        assert self.trigger is not None
        return self.trigger
