"""Batches of all nodes at once for a run of plait: fields [N, B, ...], and streams of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plait.data import Batch, Split, TensorSplit
from plait.data.streams import Stream, in_order

COLLECT = 1024
"""Examples read at a time when a split is taken into memory."""


class NodesBatch(Batch):
    """One batch for each of some nodes: ``input`` [n, B, ...], ``label`` [n, B], ``index`` [n, B], and more.

    Rows and parts are taken along B, of every node alike.

    Attributes:
        nodes: int64 [n], whose batches these are, ascending; None: of all N nodes.
    """

    nodes: Tensor | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any], nodes: Tensor | None) -> NodesBatch:
        """From fields [n, B, ...]."""
        batch = cls(fields)
        batch.nodes = nodes
        return batch

    @property
    def size(self) -> int:
        """B, examples of one node."""
        return int(self["index"].shape[1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> NodesBatch:
        return NodesBatch.of({k: change(v) if isinstance(v, Tensor) else v for k, v in self.items()}, self.nodes)

    def take(self, rows: Tensor) -> NodesBatch:
        """The same rows int64 [M] of every node."""
        return self._each(lambda v: v[:, rows])

    def chunks(self, parts: int) -> list[Batch]:
        """At most ``parts`` batches of nearly equal size, none of them empty."""
        pieces = [r for r in torch.arange(self.size).tensor_split(parts) if len(r)]
        return [self._each(lambda v, r=r: v[:, int(r[0]) : int(r[-1]) + 1]) for r in pieces]  # type: ignore[misc]

    def to(self, device: torch.device | str) -> NodesBatch:
        """On a device."""
        moved = super().to(device)
        return NodesBatch.of(moved, None if self.nodes is None else self.nodes.to(device))

    def of_nodes(self, chosen: Tensor) -> NodesBatch:
        """Of some of its nodes only; ``chosen`` int64 [m], places along n."""
        count = len(self["index"])
        nodes = torch.arange(count, device=chosen.device) if self.nodes is None else self.nodes
        return NodesBatch.of({k: v[chosen] if isinstance(v, Tensor) else v for k, v in self.items()}, nodes[chosen])


class NodeStream(Stream):
    """Endless batches of all nodes; each is a function of the run's seed and of how many there were before.

    The stream ``train`` gives what the federation's present step takes, poisoned as the evaluated arm says; any other
    name gives clean batches of all nodes.

    Args:
        split: what is drawn from, by ``name`` and ``seed``, ``batch_size`` examples of each node.
        nodes: N.
        draw: the stream's next batch.
        share_of: this rank's share of the coming step.
    """

    def __init__(
        self,
        split: NodesSplit,
        name: str,
        seed: int,
        batch_size: int,
        *,
        nodes: int,
        draw: Draw,
        share_of: Share,
        **rest: Any,
    ) -> None:
        super().__init__(split, name, seed, batch_size, **rest)
        self._draw, self._share = draw, share_of
        self.batches_per_epoch = max(1, -(-len(split) // (nodes * batch_size)))

    def __next__(self) -> NodesBatch:
        batch = self._draw(self)
        self.drawn += 1
        return batch

    def share(self, batch_number: int) -> float:
        """World size where this rank has nodes in the coming step, else 0: ranks have nodes, not rows, of their own."""
        return self._share(self)


Draw = Callable[[NodeStream], NodesBatch]
Share = Callable[[NodeStream], float]


class NodesSplit(TensorSplit):
    """A training split in memory whose streams give batches of nodes; the arguments are those of `NodeStream`."""

    def __init__(self, fields: Mapping[str, Tensor], nodes: int, draw: Draw, share_of: Share) -> None:
        super().__init__(fields)
        self._nodes, self._draw, self._share = nodes, draw, share_of

    def stream(self, name: str, seed: int, batch_size: int, **rest: Any) -> NodeStream:
        """See `NodeStream`."""
        return NodeStream(
            self, name, seed, batch_size, nodes=self._nodes, draw=self._draw, share_of=self._share, **rest
        )


def collected(split: Split) -> dict[str, Tensor]:
    """Every tensor field of a split, in memory, in order."""
    if isinstance(split, TensorSplit):
        return dict(split.fields)
    parts = list(in_order(split, COLLECT))
    names = [name for name, value in parts[0].items() if isinstance(value, Tensor)]
    return {name: torch.cat([part[name] for part in parts]) for name in names}
