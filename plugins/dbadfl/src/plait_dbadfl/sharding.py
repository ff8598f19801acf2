"""Nodes over processes: each holds a block and receives the models of neighbours elsewhere. Card, scale."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing, full

__all__ = ["NodeShards"]


def bounds(n: int, rank: int, world: int) -> tuple[int, int]:
    """First node of a rank's block, and one past its last; blocks differ by one node at most."""
    return rank * n // world, (rank + 1) * n // world


class NodeShards:
    """One rank's part of the federation: nodes ``start..stop-1``.

    Every rank must make it from the same mixing. `exchange` and `mix` are collective: all ranks call them, in one
    order.

    Args:
        mixing: W of all N nodes.
        rank, world: of the process group.
        exchange: ``neighbours``: rows go only between ranks that own adjacent nodes (``batch_isend_irecv``);
            ``gather``: every rank receives all models (``all_gather``); ``auto``: gather where a rank needs at least
                half of all rows.

    Attributes:
        start, stop: the block.
        halo: int64 [h], the other ranks' nodes whose models are received, ascending.
        sends: rank -> own nodes (numbered from ``start``) whose models that rank needs.
        receives: rank -> places in ``halo`` that it fills.

    Raises:
        DbadflError: a rank outside the world, or more ranks than nodes.
    """

    def __init__(
        self, mixing: Mixing, rank: int, world: int, *, exchange: Literal["auto", "neighbours", "gather"] = "auto"
    ) -> None:
        if not 0 <= rank < world:
            raise DbadflError(f"sharding: rank {rank} is not one of 0..{world - 1}")
        if world > mixing.n:
            raise DbadflError(f"sharding: {world} ranks for {mixing.n} nodes; every rank needs one")
        if exchange not in ("auto", "neighbours", "gather"):
            raise DbadflError(f"sharding: exchange {exchange!r} is not 'auto', 'neighbours' or 'gather'")
        self.mixing, self.rank, self.world = mixing, rank, world
        self.edges = torch.tensor([bounds(mixing.n, r, world)[0] for r in range(world)] + [mixing.n])
        self.start, self.stop = bounds(mixing.n, rank, world)
        needed = [self._needed(r) for r in range(world)]
        self.halo = needed[rank]
        owner = torch.bucketize(self.halo, self.edges[1:], right=True)
        self.receives = {r: torch.nonzero(owner == r).flatten() for r in torch.unique(owner).tolist()}
        self.sends: dict[int, Tensor] = {}
        for other, nodes in enumerate(needed):
            mine = nodes[(nodes >= self.start) & (nodes < self.stop)]
            if other != rank and len(mine):
                self.sends[other] = mine - self.start
        # The same on every rank, or the collectives would not meet.
        most = max(len(nodes) for nodes in needed)
        self.gathers = exchange == "gather" or (exchange == "auto" and 2 * most >= mixing.n)
        self._local: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def size(self) -> int:
        """Own nodes."""
        return self.stop - self.start

    def _needed(self, rank: int) -> Tensor:
        start, stop = int(self.edges[rank]), int(self.edges[rank + 1])
        senders = self.mixing.senders[int(self.mixing.indptr[start]) : int(self.mixing.indptr[stop])]
        foreign: Tensor = torch.unique(senders[(senders < start) | (senders >= stop)])
        return foreign

    def take(self, models: Tensor) -> Tensor:
        """The own rows of something [N, ...]."""
        rows: Tensor = models[self.start : self.stop]
        return rows

    def exchange(self, models: Tensor) -> Tensor:
        """The halo's models [h, P] of own models [size, P]. Collective."""
        if len(models) != self.size:
            raise DbadflError(f"sharding: rank {self.rank} owns {self.size} nodes, got models {tuple(models.shape)}")
        if self.gathers:
            return self.gather(models)[self.halo]
        received = {r: models.new_empty(len(places), models.shape[1]) for r, places in self.receives.items()}
        sent = {r: models[nodes].contiguous() for r, nodes in self.sends.items()}
        operations = [dist.P2POp(dist.isend, rows, r) for r, rows in sent.items()]
        operations += [dist.P2POp(dist.irecv, rows, r) for r, rows in received.items()]
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        halo = models.new_empty(len(self.halo), models.shape[1])
        for r, rows in received.items():
            halo[self.receives[r]] = rows
        return halo

    def gather(self, models: Tensor) -> Tensor:
        """All models [N, P] on every rank. Collective."""
        sizes = self.edges.diff().tolist()
        # all_gather wants equal shapes, so the smaller blocks are padded.
        padded = models.new_zeros(max(sizes), models.shape[1])
        padded[: self.size] = models
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @torch.no_grad()
    def mix(self, models: Tensor) -> Tensor:
        """W X, own rows [size, P], of own models [size, P]. Collective."""
        exact = full(torch.cat([models, self.exchange(models)]))
        return (self._matrix(exact) @ exact).to(models.dtype)

    def local_mixing(self) -> Mixing:
        """The exchange as one rank sees it: own nodes first, then the halo, which keeps its models.

        A defence of `plait_dbadfl.defences` called with it on own models and halo gives the own nodes' new models in
        its first ``size`` rows.
        """
        place = torch.full((self.mixing.n,), -1)
        place[self.start : self.stop] = torch.arange(self.size)
        place[self.halo] = self.size + torch.arange(len(self.halo))
        part = slice(int(self.mixing.indptr[self.start]), int(self.mixing.indptr[self.stop]))
        own = torch.cat([self.take(self.mixing.own), torch.ones(len(self.halo), dtype=torch.float64)])
        return Mixing(
            self.size + len(self.halo),
            self.mixing.receivers[part] - self.start,
            place[self.mixing.senders[part]],
            self.mixing.weights[part],
            own,
        )

    def _matrix(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._local:
            local = self.local_mixing()
            own = local.dense()[: self.size] if local.dense_is_faster else local.csr(self.size)
            self._local[key] = own.to(like.device, like.dtype)
        placed: Tensor = self._local[key]
        return placed
