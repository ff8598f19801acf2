"""Step 1 of the method: scan a federation, learn distances from shadows, predict them. Card, section 4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Attack, Training
from plait_dbadfl.options import PredictorOptions, ScanOptions
from plait_dbadfl.predictor import (
    DetectionScores,
    DistancePredictor,
    LastValuePredictor,
    MedianPredictor,
    fit_shuffled,
    score_detection,
)
from plait_dbadfl.sampling import NodeData
from plait_dbadfl.scan import Signatures, pair_matrix, pair_sequences, probe_features

__all__ = ["Detection", "Detector", "Scan"]


class Scan:
    """The scan phase of one or several federations in one stack.

    Args:
        training: the N nodes; changed by the scan.
        attackers: int64 [V], the attackers of all networks one after the other.
        probes: their private images.
        signatures: of one network ([M, ...]) or of several ([S, M, ...]), V = S * M.
        ratio: r_s.

    Attributes:
        features: one entry a round, [M, M, 3] or [S, M, M, 3].
    """

    def __init__(
        self, training: Training, attackers: Tensor, probes: NodeData, signatures: Signatures, ratio: float
    ) -> None:
        device = training.images.device
        self.training, self.attackers = training, attackers
        self.signatures = signatures.to(device)
        self.attack = Attack(attackers, self.signatures.poison(ratio))
        self.images, self.valid = training.images[probes.index.to(device)], probes.valid.to(device)
        self.features: list[Tensor] = []

    def run_round(self) -> None:
        """One round of training with signatures, then one measurement."""
        self.training.run_round(self.attack)
        self.measure()

    def measure(self) -> None:
        """Every attacker looks at its own model (see `plait_dbadfl.scan.probe_features`)."""

        def own(images: Tensor) -> Tensor:
            return self.training.forward(images, self.attackers)

        self.features.append(probe_features(own, self.images, self.valid, self.signatures).cpu())

    def run(self, rounds: int) -> Tensor:
        """Scan up to ``rounds`` rounds in all; [rounds, M, M, 3] or [rounds, S, M, M, 3]."""
        while len(self.features) < rounds:
            self.run_round()
        return torch.stack(self.features)

    def state_dict(self) -> dict[str, Any]:
        """Whatever is kept between rounds."""
        return {"training": self.training.state_dict(), "features": [f.clone() for f in self.features]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.training.load_state_dict(state["training"])
        self.features = [f.clone() for f in state["features"]]


@dataclass(frozen=True)
class Detector:
    """A trained predictor and its controls; what attackers take from their shadows.

    Args:
        predictor: the LSTM. shuffled: the same, trained on shuffled distances, or None.
        median, linear: the other controls.
    """

    predictor: DistancePredictor
    shuffled: DistancePredictor | None
    median: MedianPredictor
    linear: LastValuePredictor

    @classmethod
    def train(
        cls, sequences: Tensor, distances: Tensor, options: PredictorOptions, seed: int, *, control: bool = True
    ) -> Detector:
        """Fit on pairs of shadows.

        Args:
            sequences: [P, T_s, 6]. distances: int64 [P], hops.
            options, seed: of the predictor.
            control: train the shuffled control too, which doubles the time.
        """
        return cls(
            DistancePredictor(options, seed).fit(sequences, distances),
            fit_shuffled(options, sequences, distances, seed) if control else None,
            MedianPredictor(distances),
            LastValuePredictor(sequences, distances),
        )

    def state_dict(self) -> dict[str, Any]:
        """Weights of the networks and of the controls."""
        return {
            "predictor": self.predictor.state_dict(),
            "shuffled": None if self.shuffled is None else self.shuffled.state_dict(),
            "median": self.median.median,
            "linear": self.linear.weights,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], options: PredictorOptions, seed: int) -> Detector:
        """The inverse of `state_dict`, for the configuration that it was trained with."""

        def network(weights: dict[str, Tensor]) -> DistancePredictor:
            predictor = DistancePredictor(options, seed)
            predictor.load_state_dict(weights)
            return predictor

        linear = LastValuePredictor.__new__(LastValuePredictor)
        linear.weights = state["linear"]
        return cls(
            network(state["predictor"]),
            None if state["shuffled"] is None else network(state["shuffled"]),
            MedianPredictor(torch.tensor([state["median"]])),
            linear,
        )

    def detect(self, features: Tensor, true_hops: Tensor, *, tau: float) -> Detection:
        """Predict the distances of all pairs and score them.

        Args:
            features: [T_s, M, M, 3] of `Scan`.
            true_hops: [M, M], for the scores alone; no prediction reads it.
            tau: threshold of the AUC.

        Raises:
            DbadflError: true distances of another number of attackers.
        """
        sequences, pairs = pair_sequences(features)
        count = features.shape[1]
        if true_hops.shape != (count, count):
            raise DbadflError(f"true distances {tuple(true_hops.shape)} are not of {count} attackers")
        true = true_hops[pairs[0], pairs[1]]
        guesses: dict[str, Callable[[Tensor], Tensor]] = {
            "lstm": self.predictor.predict,
            "median": self.median.predict,
            "linear": self.linear.predict,
        }
        if self.shuffled is not None:
            guesses["shuffled"] = self.shuffled.predict
        predicted = {name: guess(sequences) for name, guess in guesses.items()}
        return Detection(
            hops=pair_matrix(predicted["lstm"], count),
            true_hops=true_hops,
            features=features,
            scores={name: score_detection(values, true, tau=tau) for name, values in predicted.items()},
            median=self.median.median,
        )


@dataclass(frozen=True)
class Detection:
    """What a scan said of the distances between attackers.

    Args:
        hops: [M, M] predicted, symmetric with zero diagonal.
        true_hops: int64 [M, M].
        features: [T_s, M, M, 3].
        scores: ``"lstm"`` and the controls ``"median"``, ``"linear"`` and, if trained, ``"shuffled"``.
        median: the shadow networks' median distance in hops, which ``tau = "median"`` reads.
    """

    hops: Tensor
    true_hops: Tensor
    features: Tensor
    scores: dict[str, DetectionScores]
    median: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        tensors = {"hops": self.hops, "true_hops": self.true_hops, "features": self.features}
        return {**tensors, "scores": scores, "median": self.median}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Detection:
        """The inverse of `state_dict`."""
        scores = {name: DetectionScores(**score) for name, score in state["scores"].items()}
        return cls(state["hops"], state["true_hops"], state["features"], scores, state["median"])

    @property
    def mae_ratio(self) -> float:
        """MAE over that of the constant median; below 1 is better than knowing nothing."""
        return self.scores["lstm"].mae / self.scores["median"].mae if self.scores["median"].mae else float("nan")

    def signal_by_hop(self) -> dict[int, float]:
        """Hop distance -> mean a - b in the last round; what there is to be learned (card, section 4)."""
        last = self.features[-1]
        i, j = pair_sequences(self.features)[1]
        gap = (last[j, i, 0] - last[j, i, 1] + last[i, j, 0] - last[i, j, 1]) / 2
        true = self.true_hops[i, j]
        return {int(d): float(gap[true == d].mean()) for d in torch.unique(true)}


def check_scan(options: ScanOptions, attackers: int) -> None:
    """Raise `DbadflError` if there are no two attackers to find the distance of."""
    if attackers < 2:
        raise DbadflError(
            f"attackers={attackers}: a scan of {options.scan_rounds} rounds finds distances between at least two; "
            "with one use arm='centralized-one'"
        )
