"""From scan sequences to hop distances: the LSTM and the controls beside it. Card, section 4 steps 4 and 6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.options import PredictorOptions
from plait_dbadfl.sampling import derive, generator

__all__ = ["DetectionScores", "DistancePredictor", "score_detection"]

FEATURES = 6


class SequenceNet(nn.Module):
    """LSTM(6 -> hidden), its last hidden state -> Linear(outputs); [B, T, 6] -> [B, outputs].

    Initialised from ``seed`` by PyTorch's own rule, uniform within 1/sqrt(hidden).
    """

    def __init__(self, hidden: int, outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # construction draws from the global generator
            self.lstm = nn.LSTM(FEATURES, hidden, batch_first=True)
            self.head = nn.Linear(hidden, outputs)
        rng, bound = generator(seed, "predictor", "init"), hidden**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=rng)

    def forward(self, sequences: Tensor) -> Tensor:
        """[B, T, 6] -> [B, outputs]."""
        _, (last, _) = self.lstm(sequences)
        out: Tensor = self.head(last[-1])
        return out


def swap_pair(sequences: Tensor) -> Tensor:
    """The same pairs in the other order: (a_ij, b_ij, e_ij) and (a_ji, b_ji, e_ji) exchanged."""
    return sequences.roll(FEATURES // 2, -1)


class DistancePredictor:
    """Predicts hops between two attackers from their scan sequence.

    Args:
        options: of the network and its training.
        seed: of initial weights and batches.

    Source: card, section 4 [inferred]; the classes head is closest to the summary's wording [summary].
    """

    def __init__(self, options: PredictorOptions, seed: int) -> None:
        self.options, self.seed = options, seed
        outputs = 1 if options.head == "regression" else options.max_distance
        self.net = SequenceNet(options.hidden, outputs, seed)

    def fit(self, sequences: Tensor, distances: Tensor) -> DistancePredictor:
        """Train on pairs of known distance.

        Args:
            sequences: [P, T, 6]. distances: [P] in hops, at least 1.

        Returns:
            Itself.

        Raises:
            DbadflError: shapes that do not agree, no pair, a distance below 1.
        """
        _check(sequences, distances)
        options = self.options
        both = torch.stack([sequences, swap_pair(sequences)])
        if options.head == "regression":
            wanted = distances.to(sequences.dtype).log1p()
        else:
            wanted = (distances.long() - 1).clamp(max=options.max_distance - 1)
        optimizer = torch.optim.Adam(self.net.parameters(), lr=options.predictor_lr)
        self.net.train()
        count = len(wanted)
        for epoch in range(options.predictor_epochs):
            rng = generator(self.seed, "predictor", "epoch", epoch)
            order = torch.randperm(count, generator=rng)
            side = torch.randint(2, (count,), generator=rng)
            for some in torch.split(order, options.predictor_batch):
                optimizer.zero_grad(set_to_none=True)
                out = self.net(both[side[some], some])
                if options.head == "regression":
                    loss = F.smooth_l1_loss(out.squeeze(-1), wanted[some])
                else:
                    loss = F.cross_entropy(out, wanted[some])
                torch.autograd.backward(loss)
                optimizer.step()
        return self

    @torch.no_grad()
    def predict(self, sequences: Tensor) -> Tensor:
        """Hops of pairs, [P, T, 6] -> [P], at least 1; the mean of both orders of the pair.

        With the classes head: the expected class, where the last class counts as ``max_distance`` hops.
        """
        _check(sequences)
        self.net.eval()
        out = self.net(torch.cat([sequences, swap_pair(sequences)]))
        if self.options.head == "regression":
            hops = out.squeeze(-1).expm1()
        else:
            hops = out.softmax(-1) @ torch.arange(1, self.options.max_distance + 1, dtype=out.dtype)
        mean: Tensor = hops.view(2, -1).mean(0).clamp(min=1.0)
        return mean

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, as tensors."""
        return dict(self.net.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take weights of a predictor with the same configuration."""
        self.net.load_state_dict(state)


# ---- controls ----------------------------------------------------------------------------------------------------
class MedianPredictor:
    """The median training distance for every pair; knows nothing of the sequence."""

    def __init__(self, distances: Tensor) -> None:
        self.median = float(np.median(distances.cpu().numpy()))

    def predict(self, sequences: Tensor) -> Tensor:
        """[P, T, 6] -> [P]."""
        return torch.full((len(sequences),), self.median)


class LastValuePredictor:
    """Least squares of log(1+d) on the last mean ``a - b`` of the two directions."""

    def __init__(self, sequences: Tensor, distances: Tensor) -> None:
        _check(sequences, distances)
        design = self._design(sequences)
        wanted = distances.double().log1p()
        self.weights = torch.linalg.lstsq(design, wanted[:, None], driver="gelsd").solution[:, 0]

    @staticmethod
    def _design(sequences: Tensor) -> Tensor:
        last = sequences[:, -1].double()
        gap = (last[:, 0] - last[:, 1] + last[:, 3] - last[:, 4]) / 2
        return torch.stack([torch.ones_like(gap), gap], 1)

    def predict(self, sequences: Tensor) -> Tensor:
        """[P, T, 6] -> [P], at least 1."""
        _check(sequences)
        hops: Tensor = (self._design(sequences) @ self.weights).expm1().clamp(min=1.0).float()
        return hops


def fit_shuffled(options: PredictorOptions, sequences: Tensor, distances: Tensor, seed: int) -> DistancePredictor:
    """The same network trained on distances in a random order; it must fail to learn."""
    order = torch.randperm(len(distances), generator=generator(seed, "shuffled labels"))
    return DistancePredictor(options, derive(seed, "shuffled")).fit(sequences, distances[order])


# ---- scores ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DetectionScores:
    """Prediction against truth, over unordered pairs.

    Args:
        mae: mean absolute error in hops.
        spearman: rank correlation; NaN if either side is constant.
        within_one: share of pairs off by at most one hop after rounding.
        auc: of "d <= tau" by the predicted distance; NaN if all pairs fall on one side.
        pairs: how many.
    """

    mae: float
    spearman: float
    within_one: float
    auc: float
    pairs: int


def score_detection(predicted: Tensor, true: Tensor, *, tau: float) -> DetectionScores:
    """Score predicted hops [P] against true hops [P], each pair once.

    Raises:
        DbadflError: different lengths, or no pair.
    """
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise DbadflError(
            f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)} distances must be equal vectors of pairs"
        )
    guess, truth = predicted.double().cpu(), true.double().cpu()
    near = truth <= tau
    rank, auc = float("nan"), float("nan")
    if bool((guess != guess[0]).any()) and bool((truth != truth[0]).any()):
        from scipy.stats import spearmanr

        rank = float(spearmanr(guess.numpy(), truth.numpy()).statistic)
    if bool(near.any()) and not bool(near.all()):
        from sklearn.metrics import roc_auc_score

        auc = float(roc_auc_score(near.numpy(), -guess.numpy()))
    return DetectionScores(
        mae=float((guess - truth).abs().mean()),
        spearman=rank,
        within_one=float(((guess.round() - truth).abs() <= 1).double().mean()),
        auc=auc,
        pairs=len(truth),
    )


def _check(sequences: Tensor, distances: Tensor | None = None) -> None:
    if sequences.ndim != 3 or sequences.shape[-1] != FEATURES or not len(sequences):
        raise DbadflError(f"scan sequences need shape [pairs, rounds, {FEATURES}]; got {tuple(sequences.shape)}")
    if distances is not None:
        if distances.shape != sequences.shape[:1]:
            raise DbadflError(f"{len(sequences)} sequences need as many distances; got {tuple(distances.shape)}")
        if bool((distances < 1).any()):
            raise DbadflError("two attackers are at least one hop apart; a training distance is below 1")
