"""How the training images are shared out among the nodes. Card, section "Data"."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import SPLITS
from plait_dbadfl.sampling import NodeData, derive, generator

__all__ = ["dirichlet_split", "iid_split"]

MIN_SAMPLES = 8
ATTEMPTS = 100


def split(
    labels: Tensor,
    nodes: int,
    *,
    kind: str = "dirichlet",
    alpha: float = 0.5,
    seed: int,
    min_samples: int = MIN_SAMPLES,
) -> NodeData:
    """Share the training set among ``nodes``: `dirichlet_split` or `iid_split` by name.

    Raises:
        DbadflError: an unknown kind, or what the split itself refuses.
    """
    if kind == "iid":
        return iid_split(labels, nodes, seed=seed, min_samples=min_samples)
    if kind == "dirichlet":
        return dirichlet_split(labels, nodes, alpha=alpha, seed=seed, min_samples=min_samples)
    raise DbadflError(f"split={kind!r} is unknown; choose one of {', '.join(SPLITS)}")


def dirichlet_split(
    labels: Tensor, nodes: int, *, alpha: float, seed: int, min_samples: int = MIN_SAMPLES, attempts: int = ATTEMPTS
) -> NodeData:
    """Give each node a share of each class drawn from Dirichlet(alpha, ..., alpha); every image is used exactly once.

    Args:
        labels: int64 [n], class of each image.
        nodes: N.
        alpha: concentration, > 0; small is uneven.
        seed: of the draw.
        min_samples: fewest images of a node; the split is redrawn until every node has them. Default 8.
        attempts: draws before giving up; default 100.

    Raises:
        DbadflError: alpha not positive, fewer images than ``nodes * min_samples``, or no draw in ``attempts`` gave
            every node its minimum (names alpha and N).

    Source: card, section "Data"; Hsu et al. 2019 [known].
    """
    if not alpha > 0:
        raise DbadflError(f"alpha={alpha} of the Dirichlet split must be positive")
    _check_counts(len(labels), nodes, min_samples)
    values, classes = torch.unique(labels, return_inverse=True)
    sizes = torch.bincount(classes, minlength=len(values))
    starts = sizes.cumsum(0) - sizes
    rng = np.random.default_rng(derive(seed, "dirichlet"))
    shuffle = generator(seed, "dirichlet", "order")
    concentration = np.full(nodes, float(alpha))
    for _ in range(attempts):
        order = torch.randperm(len(labels), generator=shuffle)
        order = order[classes[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(labels))
        place = (rank - starts[classes]).double() / sizes[classes]
        edges = torch.from_numpy(rng.dirichlet(concentration, size=len(values))).cumsum(1)
        edges[:, -1] = 1.0  # rounding must leave no image beyond the last node
        # One sorted line for all classes, class c on [c, c+1): a single search instead of one per class.
        line = (edges.clamp(max=1.0) + torch.arange(len(values))[:, None]).flatten()
        owner = torch.searchsorted(line, place + classes, right=True) - classes * nodes
        owner = owner.clamp(0, nodes - 1)
        if int(torch.bincount(owner, minlength=nodes).min()) >= min_samples:
            return NodeData.of(owner, nodes)
    raise DbadflError(
        f"no Dirichlet split with alpha={alpha} gave each of N={nodes} nodes {min_samples} images in {attempts} draws; "
        "raise alpha, or lower N or min_samples"
    )


def iid_split(labels: Tensor, nodes: int, *, seed: int, min_samples: int = MIN_SAMPLES) -> NodeData:
    """Deal the shuffled images to the nodes in turn; sizes differ by at most one.

    Raises:
        DbadflError: fewer images than ``nodes * min_samples``.
    """
    _check_counts(len(labels), nodes, min_samples)
    owner = torch.empty(len(labels), dtype=torch.int64)
    owner[torch.randperm(len(labels), generator=generator(seed, "iid"))] = torch.arange(len(labels)) % nodes
    return NodeData.of(owner, nodes)


def _check_counts(images: int, nodes: int, min_samples: int) -> None:
    if nodes < 1 or min_samples < 1:
        raise DbadflError(f"N={nodes} nodes with min_samples={min_samples}: both must be at least 1")
    if nodes * min_samples > images:
        raise DbadflError(
            f"N={nodes} nodes with min_samples={min_samples} need {nodes * min_samples} images; there are {images}"
        )
