"""Batches of every node at once: which images a node owns, and which it takes at a step.

Batches are drawn with replacement, per node, because nodes own different numbers of images. A batch is a function of
(seed, step) alone, so that a resumed run needs one integer and nothing else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError

MASK64 = (1 << 64) - 1
PROBES = 24
"""Most images with which an attacker measures its own model (card, section 4 [inferred])."""


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream ``path`` of ``seed``; splitmix64, so that near seeds give unrelated streams.

    The low 32 bits are mixed as well as the others: torch's CPU generator uses no more than those.
    """
    state = seed & MASK64
    for item in path:
        word = zlib.crc32(item.encode()) if isinstance(item, str) else item
        state = _splitmix((state ^ _splitmix(word & MASK64)) & MASK64)
    return _splitmix(state) >> 1


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator for the stream ``path`` of ``seed``, e.g. ``generator(seed, "batch", step)``."""
    return torch.Generator().manual_seed(derive(seed, *path))


@dataclass(frozen=True)
class NodeData:
    """The images that each node owns, as rows of one matrix.

    Args:
        index: int64 [N, L], positions in the training set; row i is valid up to ``lengths[i]``.
        lengths: int64 [N], images per node, each at least 1.
    """

    index: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.lengths.shape != self.index.shape[:1]:
            raise DbadflError(
                f"node data needs index [N, L] and lengths [N]; got {tuple(self.index.shape)} and "
                f"{tuple(self.lengths.shape)}"
            )
        if self.index.numel() == 0 or int(self.lengths.min()) < 1:
            raise DbadflError("a node without images: every node needs at least one")

    @classmethod
    def of(cls, owner: Tensor, nodes: int) -> NodeData:
        """From ``owner`` int64 [n], the node that owns each image; within a node the order of the data is kept.

        Raises:
            DbadflError: a node owns nothing, or an owner is outside 0..nodes-1.
        """
        if owner.numel() == 0 or int(owner.min()) < 0 or int(owner.max()) >= nodes:
            raise DbadflError(f"owners must lie in 0..{nodes - 1} and there must be at least one image")
        lengths = torch.bincount(owner, minlength=nodes)
        order = owner.argsort(stable=True)
        offset = torch.arange(owner.numel()) - (lengths.cumsum(0) - lengths)[owner[order]]
        index = torch.zeros(nodes, int(lengths.max()), dtype=torch.int64)
        index[owner[order], offset] = order
        return cls(index, lengths)

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def valid(self) -> Tensor:
        """bool [N, L], True where `index` holds an image."""
        return torch.arange(self.index.shape[1]) < self.lengths[:, None]

    def rows(self, nodes: Tensor) -> NodeData:
        """The data of some nodes only; ``nodes`` int64 [n]."""
        lengths = self.lengths[nodes]
        return NodeData(self.index[nodes, : int(lengths.max())], lengths)

    def images(self) -> Tensor:
        """int64, every position held by some node, ascending, once each."""
        images: Tensor = torch.unique(self.index[self.valid])
        return images


def join(parts: list[NodeData]) -> NodeData:
    """The nodes of several federations one after the other, padded to the longest; for a stacked simulation."""
    width = max(p.index.shape[1] for p in parts)
    index = torch.cat([torch.nn.functional.pad(p.index, (0, width - p.index.shape[1])) for p in parts])
    return NodeData(index, torch.cat([p.lengths for p in parts]))


def draw_batch(data: NodeData, batch: int, seed: int, step: int) -> Tensor:
    """Positions of the training images of every node at one step, with replacement.

    Args:
        data: who owns what, on the CPU.
        batch: B, images per node.
        seed, step: the batch is a function of these alone.

    Returns:
        int64 [N, B].

    Source: card, section "Libraries", traps of our own: one gather from an index matrix, no loop over nodes.
    """
    uniform = torch.rand(data.nodes, batch, dtype=torch.float64, generator=generator(seed, "batch", step))
    column = (uniform * data.lengths[:, None]).long()
    return data.index.gather(1, column)


def split_probes(
    data: NodeData, nodes: Tensor, *, seed: int, limit: int = PROBES, hold_out: bool = False
) -> tuple[NodeData, NodeData]:
    """Set aside the images with which some nodes measure their own models.

    Args:
        data: who owns what.
        nodes: int64 [M], the nodes that measure.
        seed: of the choice.
        limit: most probes per node; default 24.
        hold_out: True takes at most half of a node's images and removes them from its training data. False (default)
            lets a node train on its probes too, since a node of 8 images can spare none [inferred].

    Returns:
        The probes, [M, <=limit]; the training data of all nodes.

    Raises:
        DbadflError: limit below 1, or ``hold_out`` with a node that has a single image.
    """
    if limit < 1:
        raise DbadflError(f"limit={limit} probe images must be at least 1")
    mine = data.rows(nodes)
    most = mine.lengths // 2 if hold_out else mine.lengths
    if int(most.min()) < 1:
        raise DbadflError("hold_out=True needs at least two images at every attacker; one of them has a single one")
    keys = torch.rand(mine.index.shape, generator=generator(seed, "probes")).masked_fill(~mine.valid, 2.0)
    order = keys.argsort(1)
    shuffled, count = mine.index.gather(1, order), most.clamp(max=limit)
    probes = NodeData(shuffled[:, : int(count.max())].contiguous(), count)
    if not hold_out:
        return probes, data
    column = torch.arange(shuffled.shape[1])[None]
    rotated = shuffled.gather(1, (column + count[:, None]) % shuffled.shape[1])
    index, lengths = data.index.clone(), data.lengths.clone()
    index[nodes, : shuffled.shape[1]] = rotated
    lengths[nodes] = mine.lengths - count
    return probes, NodeData(index, lengths)
