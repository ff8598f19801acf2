"""Rules that look at directions of updates: FoolsGold and FLAME. Card, baselines and defences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import HDBSCAN
from torch import Tensor

from plait_dbadfl.defences.base import Block, Defence, lengths, masked_median, require, shrink
from plait_dbadfl.defences.geometric import equal_mean, weighted_sum

__all__ = ["Flame", "FoolsGold"]

PARDON = 1e-5
CERTAIN = 0.99
FEW = 6


class FoolsGold(Defence):
    """Models whose accumulated updates point the same way lose weight (Fung et al. 2020) [known].

    Without a server, node i's view of j's update is u_ij = x_j - s_i, s_i its own model before the local steps
    [inferred]. The sum over rounds is S_j - R_i with S the accumulated sent models and R the accumulated references, so
    the history is two matrices [N, P] instead of one row per edge. Exact while the graph is fixed; with random partners
    (swarm, gossip) a node counts as if it had heard everybody in every exchange. The weighted mean is normalised by the
    sum of the weights [inferred]; a node whose weights are all zero keeps its model.
    """

    name = "foolsgold"
    selects = True
    needs_start = True

    def __init__(self) -> None:
        self.sent: Tensor | None = None
        self.reference: Tensor | None = None

    def observe(self, models: Tensor, start: Tensor | None) -> None:
        assert start is not None
        if self.sent is None or self.reference is None:
            self.sent, self.reference = models.clone(), start.clone()
        else:
            self.sent += models
            self.reference += start

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        assert self.sent is not None
        assert self.reference is not None
        history = self.sent[block.senders] - self.reference[block.nodes, None]
        weights = foolsgold_weights(cosines(history), block.mask)
        total = weights.sum(1, keepdim=True)
        merged = weighted_sum(weights / total.clamp(min=torch.finfo(total.dtype).tiny), block.members)
        return torch.where(total > 0, merged, block.own), weights > 0

    def state_dict(self) -> dict[str, Any]:
        if self.sent is None or self.reference is None:
            return {}
        return {"sent": self.sent.clone(), "reference": self.reference.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sent = state["sent"].clone() if "sent" in state else None
        self.reference = state["reference"].clone() if "reference" in state else None


class Flame(Defence):
    """Cluster by cosine, clip to the median norm, add a little noise (Nguyen et al. 2022) [known].

    HDBSCAN (minimum cluster n//2+1, minimum samples 1) runs node by node: scikit-learn has no batched form, and n is
    small. Where it finds no cluster everything is accepted, as in the authors' code. Noise has the standard deviation
    ``noise * S``.

    Args:
        noise: default 0.001; 0 for none.
        seed: of the noise.
    """

    name = "flame"
    selects = True
    needs_start = True

    def __init__(self, noise: float = 0.001, seed: int = 0) -> None:
        require(self.name, noise >= 0, f"noise={noise} is negative")
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)

    def caution(self, degrees: Tensor) -> str | None:
        few = int((degrees < FEW).sum())
        return f"flame clusters fewer than {FEW} neighbours at {few} nodes, which means little" if few else None

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        assert block.start is not None
        updates = block.members - block.start[:, None]
        distances = (1 - cosines(updates)).clamp(min=0).double().cpu()
        # Rounding of the batched product is not symmetric, and HDBSCAN refuses what is not.
        apart = ((distances + distances.transpose(1, 2)) / 2).numpy()
        accepted = torch.zeros(block.mask.shape, dtype=torch.bool)
        for row, seen in enumerate(block.mask.cpu()):
            accepted[row, seen] = torch.from_numpy(_largest_cluster(apart[row][seen.numpy()][:, seen.numpy()]))
        accepted = accepted.to(block.mask.device)
        scale = masked_median(lengths(updates), block.mask)
        clipped = shrink(updates, scale[:, None].expand(updates.shape[:2]))
        models = block.start + equal_mean(clipped, accepted)
        if self.noise:
            drawn = torch.randn(models.shape, generator=self.generator, dtype=models.dtype).to(models.device)
            models = models + self.noise * scale[:, None] * drawn
        return models, accepted

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def cosines(vectors: Tensor) -> Tensor:
    """Cosine similarity [n, m, m] between the rows of vectors [n, m, P]; 0 beside a zero vector."""
    unit = vectors / lengths(vectors).clamp(min=torch.finfo(vectors.dtype).tiny)[..., None]
    return torch.bmm(unit, unit.transpose(1, 2)).clamp(-1, 1)


def foolsgold_weights(similarity: Tensor, mask: Tensor) -> Tensor:
    """Weights [n, m] in 0..1 of cosine similarities [n, m, m] where mask [n, m]; 0 at padding.

    v_i = max_j cs_ij; pardoning cs_ij *= v_i / v_j where v_j > v_i; alpha_i = 1 - max_j cs_ij, divided by the largest;
    clip(ln(alpha / (1 - alpha)) + 0.5, 0, 1). The diagonal counts as 0, 1e-5 is added to v, and an alpha of 1 is 0.99,
    as in the authors' code.
    """
    m = similarity.shape[1]
    itself = torch.eye(m, dtype=torch.bool, device=similarity.device)
    cs = similarity.masked_fill(itself | ~mask[:, None, :] | ~mask[:, :, None], 0.0)
    v = cs.amax(-1) + PARDON
    ratio = v[:, :, None] / v[:, None, :]
    alpha = (1 - (cs * ratio.clamp(max=1.0)).amax(-1)).clamp(0, 1).masked_fill(~mask, 0.0)
    alpha = alpha / alpha.amax(-1, keepdim=True).clamp(min=torch.finfo(alpha.dtype).tiny)
    return (torch.logit(alpha.clamp(max=CERTAIN)) + 0.5).clamp(0, 1)


def _largest_cluster(distances: Any) -> Any:
    n = len(distances)
    if n < 3:
        return np.ones(n, dtype=bool)
    clustering = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit(distances)
    labels = clustering.labels_
    if labels.max() < 0:
        return np.ones(n, dtype=bool)
    return labels == np.bincount(labels[labels >= 0]).argmax()
