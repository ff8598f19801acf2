"""One federation from a seed: its detection, and its runs under every arm and defence.

This is the plain loop; nothing here knows plait. Arms and defences of one `Federation` share graph, split, placement,
initial weights and batches, so that their results are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from plait_dbadfl.arms import AttackPlan, clusters_of_arm
from plait_dbadfl.course import AttackCourse
from plait_dbadfl.detection import Detection, Detector, Scan, check_scan
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Training
from plait_dbadfl.metrics import Scores, Summary, evaluate, summarize
from plait_dbadfl.names import SCANNING
from plait_dbadfl.population import DefenceMaker as DefenceMaker
from plait_dbadfl.population import Population
from plait_dbadfl.results import Result
from plait_dbadfl.sampling import derive
from plait_dbadfl.scan import make_signatures
from plait_dbadfl.shadows import ShadowPairs, ShadowWorld, simulate_shadows


@dataclass
class Federation(Population):
    """N nodes, M of them attackers, and what is run on them; its arguments are those of `Population`."""

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
        where = training or self.training(defence=defence, rounds=config.scan.rounds, stream="scan", attacking=False)
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
            engine=lambda mixing, seed, lengths: self.engine(mixing, seed, attacking=False, lengths=lengths),
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
