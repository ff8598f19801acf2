"""One federation from a seed: its nodes, its detection, and its runs under every arm and defence.

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
from plait_dbadfl.course import AttackCourse
from plait_dbadfl.defences import Defence, RobustAggregation
from plait_dbadfl.detection import Detection, Detector, Scan, check_scan
from plait_dbadfl.engines import make_engine
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Prepare, Training
from plait_dbadfl.metrics import Scores, Summary, eligible_images, evaluate, summarize
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.names import SCANNING
from plait_dbadfl.options import FederationOptions, SGDOptions
from plait_dbadfl.pace import Pace, passes
from plait_dbadfl.phases import Aggregate, Engine
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.poisoning import active
from plait_dbadfl.reference import ImageData
from plait_dbadfl.results import Result
from plait_dbadfl.sampling import derive, split_probes
from plait_dbadfl.scan import make_signatures
from plait_dbadfl.shadows import ShadowPairs, ShadowWorld, check_shadow_seed, simulate_shadows
from plait_dbadfl.splits import split
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.topologies import Topology
from plait_dbadfl.triggers import Trigger, preset_trigger

__all__ = ["DefenceMaker", "Federation"]

DefenceMaker = Callable[[], Defence]
"""Makes a fresh aggregation rule: rules with a history must not carry it from run to run."""


@dataclass
class Federation:
    """N nodes, M of them attackers, and what is run on them.

    Args:
        model: one node's network with its initial weights; everybody starts from them.
        data: train and test images.
        topology: the graph.
        options: how it is split, attacked, scanned and trained; see `plait_dbadfl.options`.
        trigger: Q; default the digits' preset scaled to the images.
        seed: of everything; two arms of one seed share graph, split, placement, weights and batches. Default 0.
        sgd: a node's own step.
        implementation: of `Stacked`; ``"auto"`` (default) by a rule, ``"measured"`` by a timed trial, once for the
            federation.
        device: where models and images are kept.
        prepare: applied to images [..., ch, H, W] just before the networks, after the triggers.
        topology_options: what made the topology, so that shadows of the same family are drawn alike.

    Raises:
        DbadflError: whatever split, placement, trigger, mixing or engine refuse; a target outside the classes; a test
            set of the target class alone; shadows with the run's own seed.
    """

    model: nn.Module
    data: ImageData
    topology: Topology
    options: FederationOptions = field(default_factory=FederationOptions)
    trigger: Trigger | None = None
    seed: int = 0
    sgd: SGDOptions = field(default_factory=SGDOptions)
    implementation: Implementation = "auto"
    device: torch.device | str = "cpu"
    topology_options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        options = self.options
        if self.trigger is None:
            self.trigger = preset_trigger("digits", self.data.height, self.data.width)
        if (self.trigger.height, self.trigger.width) != (self.data.height, self.data.width):
            raise DbadflError(
                f"a trigger for images of {self.trigger.height} x {self.trigger.width} does not fit images of "
                f"{self.data.height} x {self.data.width}"
            )
        if options.target >= self.data.classes:
            raise DbadflError(f"target={options.target} is outside the classes 0..{self.data.classes - 1}")
        check_shadow_seed(options.shadow_seed, self.seed)
        eligible_images(self.data.test_labels, options.target)
        self.data = self.data.to(self.device)
        self.mixing: Mixing = make_mixing(self.topology, options.weights)
        self.attackers: Tensor = place_attackers(
            self.topology, options.attackers, options.placement, seed=self.seed, positions=options.positions
        )
        owned = split(
            self.data.train_labels.cpu(),
            self.topology.n,
            kind=options.split,
            alpha=options.split_alpha,
            seed=self.seed,
            min_samples=options.min_samples,
        )
        self.probes, self.owned = split_probes(
            owned, self.attackers, seed=self.seed, limit=options.probes, hold_out=options.hold_out
        )
        self.engine(self.mixing, 0)  # so that an impossible one is refused here

    def changed(self, **changes: Any) -> Federation:
        """The same federation, same seed, with other options.

        Raises:
            DbadflError: options that are out of bounds or do not belong together.
        """
        return replace(self, options=self.options.changed(**changes))

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

    # ---- how its nodes train -----------------------------------------------------------------------------------
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
        options = self.options
        name, own = options.engine, options.engine_arguments
        if name == "fedavg" and mixing is not self.mixing:
            # Shadows have no complete graph between them; a block of federated averages is a plain mix.
            name, own = "dfedavg", {}
        if own.get("drawn") is not None:
            own["guests"] = self._guests()
        return make_engine(
            name,
            mixing,
            local_steps=options.local_steps,
            seed=seed,
            aggregate=aggregate,
            keep_start=keep_start,
            pace=self.pace(self.owned.lengths if lengths is None else lengths, attacking),
            fresh_momentum=options.fresh_momentum,
            **own,
        )

    def pace(self, lengths: Tensor, attacking: bool) -> Pace | None:
        """Numbers of local steps where they are not the same for all; None where they are.

        Args:
            lengths: int64 [N], images of each node.
            attacking: as in `engine`.
        """
        options, batch, counts = self.options, self.sgd.batch, None
        usual = None if options.local_epochs is None else passes(lengths, batch, options.local_epochs)
        if options.attacker_epochs is not None:
            counts = passes(lengths, batch, options.attacker_epochs)
        elif options.attacker_steps is not None:
            counts = torch.full_like(lengths, options.attacker_steps)
        if not attacking or options.arm == "none":
            counts = None
        if usual is None and counts is None:
            return None
        return Pace(usual, counts, None if counts is None else self.acting)

    def acting(self, round_: int) -> Tensor | None:
        """int64, the attackers' nodes that poison in a round of the configured arm; None if nobody does.

        A function of the round alone, known before distances are: whoever attacks has a part in every arm.
        """
        options = self.options
        if options.arm == "none" or options.amount == 0:
            return None
        every = options.redetect_every if options.arm in SCANNING else 0
        if every and round_ % (every + options.scan_rounds) >= every:
            return None  # attack and scan take turns, see `AttackCourse`; who scans trains as everybody does
        who = active(options, round_)
        if options.arm == "centralized-one":
            who = who & (torch.arange(len(who)) == 0)
        return self.attackers[who] if bool(who.any()) else None

    def _guests(self) -> dict[int, Tensor]:
        """Round -> attackers whose only round it is, under ``schedule="single"``: they take part in it [code]."""
        return {r: self.attackers[active(self.options, r)] for r in set(self.options.attack_rounds)}

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
        seed = derive(self.seed, stream)
        aggregate = None if defence is None else RobustAggregation(defence(), rounds=rounds)
        engine = self.engine(self.mixing, derive(seed, "engine"), aggregate, keep_start, attacking=attacking)
        if aggregate is not None:
            aggregate.defence.check(engine.heard.degrees, engine.heard.votes)
        training = Training(
            stack or self.stack(),
            engine,
            self.data.train,
            self.data.train_labels,
            self.owned,
            self.sgd,
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
        example = self.data.train[: self.sgd.batch]
        stack.settle(example if self.prepare is None else self.prepare(example), shared=True)
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
        options = self.options
        check_scan(options, len(self.attackers))
        signatures = make_signatures(
            len(self.attackers),
            self.data.height,
            self.data.width,
            self.data.classes,
            seed=derive(self.seed, "scan", turn),
            pixels=options.signature_pixels,
            target=options.signature_target,
            shared_target=options.target,
        )
        where = training or self.training(defence=defence, rounds=options.scan_rounds, stream="scan", attacking=False)
        return Scan(where, self.attackers, self.probes, signatures, options.scan_ratio)

    def shadows(self) -> ShadowPairs:
        """The attackers' simulations; see `plait_dbadfl.shadows`."""
        options = self.options
        check_scan(options, len(self.attackers))
        own = self.owned.rows(self.attackers).images()
        if self.implementation in ("auto", "measured"):
            self.stack()
        world = ShadowWorld(
            family=self.topology.name,
            family_options=self.topology_options,
            nodes=self.topology.n,
            base=self.model,
            implementation=self.implementation,
            engine=lambda mixing, seed, lengths: self.engine(mixing, seed, attacking=False, lengths=lengths),
            options=options,
            sgd=self.sgd,
            data=self.data,
            own=own,
            node_images=float(self.owned.lengths.double().mean()),
            prepare=self.prepare,
        )
        seed = derive(self.seed, "shadow seed") if options.shadow_seed is None else options.shadow_seed
        return simulate_shadows(world, seed=seed, run_seed=self.seed)

    def detector(self, pairs: ShadowPairs | None = None, *, control: bool = True) -> Detector:
        """Train the predictor, and its controls, on shadows."""
        pairs = pairs or self.shadows()
        return Detector.train(pairs.sequences, pairs.distances, self.options, self.seed, control=control)

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
        features = self.scan(defence=defence).run(self.options.scan_rounds)
        tau = self.options.threshold(trained.median.median)
        return trained.detect(features, self.attacker_hops, tau=tau)

    # ---- runs --------------------------------------------------------------------------------------------------
    def plan(self, detection: Detection | None = None) -> AttackPlan:
        """Who carries what in the configured arm.

        Raises:
            DbadflError: an arm that needs a detection without one.
        """
        seed = derive(self.seed, "attack")
        clusters = clusters_of_arm(self.options, self.attacker_hops, detection, seed=seed)
        return AttackPlan(self.options, self._trigger, self.attackers, clusters, seed, self.device)

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
            detection: for arms with predicted clusters; made if None, without the defence (`detect` takes one).
            detector: for that, and for ``redetect_every``; made if None.
            evaluate_every: rounds between evaluations on the way; 0 (default) is the end only.
            on_round: called after every round.

        Raises:
            DbadflError: rounds below 1, models that are not finite.
        """
        if rounds < 1:
            raise DbadflError(f"rounds={rounds} must be at least 1")
        if arm is not None and arm != self.options.arm:
            return self.changed(arm=arm).run(
                rounds,
                defence=defence,
                detection=detection,
                detector=detector,
                evaluate_every=evaluate_every,
                on_round=on_round,
            )
        if self.options.needs_detection and (detection is None or self.options.redetect_every):
            detector = detector or self.detector(control=False)
            detection = detection or self.detect(detector)
        training = self.training(defence=defence, rounds=rounds, keep_start=self.options.needs_start)
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
            target=self.options.target,
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
