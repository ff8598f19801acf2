"""What attackers do round by round, and what is noted on the way; for the plain loop and for a run of plait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait_dbadfl.clustering import adjusted_rand, cluster_attackers
from plait_dbadfl.detection import Detection, Detector, Scan
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Attack, Training
from plait_dbadfl.metrics import Summary, rejection_rates
from plait_dbadfl.names import SCANNING
from plait_dbadfl.results import Result, summary_from_state, summary_state

if TYPE_CHECKING:
    from plait_dbadfl.federation import Federation

__all__ = ["AttackCourse"]


class AttackCourse:
    """The rounds of one arm: who poisons with what, scans in the course of it, evaluations on the way.

    Call `attack` before the steps of a round (as often as wanted) and `round_ended` after them.

    Args:
        federation: whose arm it is.
        training: the nodes.
        rounds: in all; scans of ``redetect_every`` count among them.
        detection: for arms with predicted clusters.
        detector: for ``redetect_every``.
        evaluate_every: rounds between evaluations on the way; 0 (default) is the end only.

    Raises:
        DbadflError: an arm that scans again without a detector.
    """

    def __init__(
        self,
        federation: Federation,
        training: Training,
        rounds: int,
        *,
        detection: Detection | None = None,
        detector: Detector | None = None,
        evaluate_every: int = 0,
    ) -> None:
        self.federation, self.training, self.rounds = federation, training, rounds
        self.detection, self.detector, self.evaluate_every = detection, detector, evaluate_every
        options = federation.options
        self.again = options.redetect_every if options.arm in SCANNING else 0
        if self.again and detector is None:
            raise DbadflError("redetect_every needs a detector: train one on shadows first")
        self.plan = federation.plan(detection)
        self.history: list[tuple[int, Summary]] = []
        self.refused: list[tuple[float, float]] = []
        self.scan: Scan | None = None
        self.scans, self.attacked = 0, 0
        self._now: tuple[int, Attack | None] | None = None

    def attack(self) -> Attack | None:
        """What happens in the present round; None if nobody poisons."""
        if self._now is None or self._now[0] != self.training.round:
            self._now = (self.training.round, self._decided())
        return self._now[1]

    def _decided(self) -> Attack | None:
        if self.again and self.scan is None and self.attacked == self.again:
            self.scans += 1
            self.scan = self.federation.scan(training=self.training, turn=self.scans)
        if self.scan is not None:
            return self.scan.attack
        return self.plan.attack(self.training.round, self.federation.options)

    def round_ended(self) -> None:
        """Measure if a scan is on, and note what is to be noted."""
        federation, training = self.federation, self.training
        if self.scan is not None:
            self.scan.measure()
            if len(self.scan.features) == federation.options.scan_rounds:
                assert self.detector is not None
                tau = federation.options.threshold(self.detector.median.median)
                seen = torch.stack(self.scan.features)
                self.detection = self.detector.detect(seen, federation.attacker_hops, tau=tau)
                self.plan, self.scan, self.attacked = federation.plan(self.detection), None, 0
        else:
            self.attacked += 1
        rule = training.rule
        if rule is not None and rule.last is not None and rule.last.accept is not None and rule.mixing is not None:
            rejected = ~rule.last.accept.cpu()
            attackers = ~federation.benign
            attackers = torch.cat([attackers, attackers.new_zeros(rule.mixing.n - len(attackers))])  # a server is none
            self.refused.append(rejection_rates(rejected, rule.mixing.edge_index, attackers))
        every = self.evaluate_every
        if every and training.round % every == 0 and training.round < self.rounds:
            self.history.append((training.round, federation.summary(federation.evaluate(training, self.plan))))

    def result(self, seconds_per_round: float = float("nan")) -> Result:
        """Evaluate the nodes as they are now, and put everything together."""
        federation, training, plan = self.federation, self.training, self.plan
        last, options = max(0, training.round - 1), federation.options
        scores = federation.evaluate(training, plan)
        final, budget = federation.summary(scores), plan.budget(last)
        ari = None
        known = options.tau != "median" or self.detection is not None
        if plan.clusters is not None and options.attackers > 1 and known:
            tau = options.threshold(None if self.detection is None else self.detection.median)
            oracle = cluster_attackers(federation.attacker_hops, tau=tau, n_clusters=options.n_clusters)
            ari = adjusted_rand(plan.clusters, oracle)
        return Result(
            arm=options.arm,
            defence=None if training.rule is None else training.rule.defence.name,
            final=final,
            history=(*self.history, (training.round, final)),
            scores=scores,
            clusters=plan.clusters,
            ari=ari,
            parts=plan.parts(last),
            short=budget.short,
            pixels=budget.pixels,
            rejection=_means(self.refused),
            seconds_per_round=seconds_per_round,
        )

    # ---- checkpoints -------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Whatever is kept between steps beside the training itself: numbers and tensors."""
        return {
            "history": [[round_, summary_state(summary)] for round_, summary in self.history],
            "refused": torch.tensor(self.refused, dtype=torch.float64).reshape(-1, 2),
            "scans": self.scans,
            "attacked": self.attacked,
            "scan": None if self.scan is None else [f.clone() for f in self.scan.features],
            "detection": None if self.detection is None else self.detection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the training's own state is loaded already."""
        federation = self.federation
        self.history = [(int(round_), summary_from_state(summary)) for round_, summary in state["history"]]
        self.refused = [(float(t), float(f)) for t, f in state["refused"].tolist()]
        self.scans, self.attacked = int(state["scans"]), int(state["attacked"])
        if state["detection"] is not None:
            self.detection = Detection.from_state(state["detection"])
            self.plan = federation.plan(self.detection)
        self.scan, self._now = None, None
        if state["scan"] is not None:
            self.scan = federation.scan(training=self.training, turn=self.scans)
            self.scan.features = [f.clone() for f in state["scan"]]


def _means(rates: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Mean over the rounds in which there was something to refuse."""
    if not rates:
        return None
    tpr, fpr = torch.tensor(rates, dtype=torch.float64).nanmean(0).tolist()
    return tpr, fpr


class ScanCourse:
    """The rounds of a scan: everybody attacks with its signature, then measures.

    Args:
        scan: not begun.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    @property
    def features(self) -> Tensor:
        """[rounds so far, M, M, 3]."""
        return torch.stack(self.scan.features)

    def attack(self) -> Attack:
        """Signatures, in every round."""
        return self.scan.attack

    def round_ended(self) -> None:
        """One measurement."""
        self.scan.measure()

    def state_dict(self) -> dict[str, Any]:
        """The measurements."""
        return {"features": [f.clone() for f in self.scan.features]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.scan.features = [f.clone() for f in state["features"]]
