"""Groups of attackers that are near one another. Card, section 5."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.sampling import generator

__all__ = ["adjusted_rand", "cluster_attackers", "random_clusters"]


def cluster_attackers(distances: Tensor, *, tau: float = 3.0, n_clusters: int | None = None) -> Tensor:
    """Agglomerative clustering with complete linkage: members of a cluster are at most ``tau`` hops apart.

    Args:
        distances: [M, M] predicted hops, symmetric with zero diagonal; clipped to at least 1 off the diagonal.
        tau: threshold in hops, at least 0; the tree is cut at ``tau + 0.5`` since predictions are not whole numbers.
            0 gives one cluster each, infinity a single cluster. Default 3.
        n_clusters: number of clusters instead of a threshold.

    Returns:
        int64 [M], labels numbered by first appearance.

    Raises:
        DbadflError: a matrix that is not square, symmetric or finite; tau negative; n_clusters outside 1..M; M below 2.

    Source: card, section 5; complete linkage is [inferred].
    """
    values = _checked(distances)
    count = len(values)
    if count < 2:
        raise DbadflError("clustering needs at least two attackers; with one use arm='centralized-one'")
    check_threshold(tau, n_clusters, count)
    if n_clusters is None and tau == 0:
        return torch.arange(count)
    if n_clusters is None and math.isinf(tau):
        return torch.zeros(count, dtype=torch.int64)
    from sklearn.cluster import AgglomerativeClustering

    tree = AgglomerativeClustering(
        n_clusters=n_clusters,
        metric="precomputed",
        linkage="complete",
        # scikit-learn keeps clusters apart at distances greater than or equal to the threshold.
        distance_threshold=None if n_clusters is not None else float(np.nextafter(tau + 0.5, np.inf)),
    )
    return renumber(torch.from_numpy(tree.fit_predict(values)))


def check_threshold(tau: float, n_clusters: int | None, attackers: int) -> None:
    """Raise `DbadflError` unless ``tau >= 0`` and ``n_clusters`` is None or in 1..M."""
    if not tau >= 0:
        raise DbadflError(f"tau={tau} hops must not be negative")
    if n_clusters is not None and not 1 <= n_clusters <= attackers:
        raise DbadflError(f"n_clusters={n_clusters} is outside 1..{attackers}, the number of attackers")


def _checked(distances: Tensor) -> np.ndarray:
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise DbadflError(f"distances must be [M, M]; got {tuple(distances.shape)}")
    values = distances.detach().double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise DbadflError("distances between attackers must be finite numbers")
    if not torch.allclose(values, values.T, atol=1e-6):
        raise DbadflError("distances between attackers must be symmetric")
    values = values.clamp(min=1.0)
    values.fill_diagonal_(0.0)
    return values.numpy()


def renumber(labels: Tensor) -> Tensor:
    """The same partition with labels numbered by first appearance."""
    _, inverse = torch.unique(labels.long(), return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels)).scatter_reduce(
        0, inverse, torch.arange(len(labels)), "amin"
    )
    number = torch.empty_like(first)
    number[first.argsort()] = torch.arange(len(first))
    return number[inverse]


def random_clusters(labels: Tensor, *, seed: int) -> Tensor:
    """Clusters of the same sizes with random members: the arm that separates part size from knowledge of the graph."""
    return renumber(labels[torch.randperm(len(labels), generator=generator(seed, "random clusters"))])


def adjusted_rand(first: Tensor, second: Tensor) -> float:
    """Adjusted Rand index of two partitions of the same attackers; 1 if identical.

    Where the index is 0/0 (both all singletons, or both one cluster) the partitions are identical and the result is 1.

    Raises:
        DbadflError: partitions of different length.
    """
    if first.shape != second.shape:
        raise DbadflError(f"partitions of {len(first)} and {len(second)} attackers cannot be compared")
    if torch.equal(renumber(first), renumber(second)):
        return 1.0
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(first.cpu().numpy(), second.cpu().numpy()))
