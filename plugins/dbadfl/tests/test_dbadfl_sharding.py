"""Nodes over two processes give what one process gives."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from plait_authoring.together import together
from plait_dbadfl.defences import make_defence
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import make_mixing
from plait_dbadfl.sharding import NodeShards, bounds
from plait_dbadfl.topologies import make_topology

GRAPHS = [("ring", 9), ("watts-strogatz", 20), ("exponential", 12), ("complete", 7)]
ROUNDS = 4


def models(n: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(n))


def step(x: Tensor, nodes: Tensor) -> Tensor:
    """A stand-in for local training that differs between nodes."""
    return x - 0.1 * (x - nodes[:, None].float())


def one_rank(rank: int, folder: Path) -> None:
    """What each of two ranks computes of every graph: own models, their median, and everybody's."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name, n in GRAPHS:
        mixing = make_mixing(make_topology(name, n, seed=1))
        for exchange in ("neighbours", "gather"):
            shards = NodeShards(mixing, rank, 2, exchange=exchange)  # type: ignore[arg-type]
            own, nodes = shards.take(models(n)).clone(), torch.arange(n)[shards.start : shards.stop]
            for _ in range(ROUNDS):
                own = shards.mix(step(own, nodes))
            own = step(own, nodes)
            everything = torch.cat([own, shards.exchange(own)])
            median = make_defence("median")(everything, shards.local_mixing()).models[: shards.size]
            torch.save((own, median, shards.gather(own)), folder / f"{name}-{exchange}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    ended = together(lambda rank: one_rank(rank, tmp_path), limit=60)
    assert [rank.code for rank in ended] == [0, 0], ended
    for name, n in GRAPHS:
        mixing = make_mixing(make_topology(name, n, seed=1))
        x, nodes = models(n), torch.arange(n)
        for _ in range(ROUNDS):
            x = mixing.mixed(step(x, nodes))
        x = step(x, nodes)
        median = make_defence("median")(x, mixing).models
        for exchange in ("neighbours", "gather"):
            parts = [torch.load(tmp_path / f"{name}-{exchange}-{rank}.pt") for rank in range(2)]
            torch.testing.assert_close(torch.cat([p[0] for p in parts]), x, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(torch.cat([p[1] for p in parts]), median, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(parts[0][2], x, rtol=1e-6, atol=1e-6)
            assert torch.equal(parts[0][2], parts[1][2])


def test_who_needs_whom() -> None:
    mixing = make_mixing(make_topology("ring", 9))
    shards = [NodeShards(mixing, rank, 3) for rank in range(3)]
    assert [bounds(9, rank, 3) for rank in range(3)] == [(0, 3), (3, 6), (6, 9)]
    assert [s.halo.tolist() for s in shards] == [[3, 8], [2, 6], [0, 5]]
    assert {r: nodes.tolist() for r, nodes in shards[0].sends.items()} == {1: [2], 2: [0]}
    assert {r: places.tolist() for r, places in shards[0].receives.items()} == {1: [0], 2: [1]}
    for a in range(3):
        for b in range(3):
            if a != b:
                sent = shards[a].sends.get(b, torch.tensor([], dtype=torch.int64)) + shards[a].start
                received = shards[b].halo[shards[b].receives.get(a, torch.tensor([], dtype=torch.int64))]
                assert torch.equal(sent, received)
    assert not shards[0].gathers
    assert NodeShards(make_mixing(make_topology("complete", 9)), 0, 3).gathers
    # A ring that is cut into contiguous blocks needs two rows per rank, however long it is.
    assert len(NodeShards(make_mixing(make_topology("ring", 1000)), 1, 4).halo) == 2


def test_one_rank_needs_nobody() -> None:
    mixing = make_mixing(make_topology("watts-strogatz", 12))
    shards = NodeShards(mixing, 0, 1, exchange="neighbours")
    x = models(12)
    torch.testing.assert_close(shards.mix(x), mixing.mixed(x))


@pytest.mark.parametrize(
    ("rank", "world", "message"), [(2, 2, "rank 2"), (0, 13, "13 ranks for 12 nodes"), (-1, 2, "rank -1")]
)
def test_bad_ranks(rank: int, world: int, message: str) -> None:
    mixing = make_mixing(make_topology("ring", 12))
    with pytest.raises(DbadflError, match=message):
        NodeShards(mixing, rank, world)
    with pytest.raises(DbadflError, match="owns 6 nodes"):
        NodeShards(mixing, 0, 2).exchange(models(12))
    with pytest.raises(DbadflError, match="exchange 'none'"):
        NodeShards(mixing, 0, 2, exchange="none")  # type: ignore[arg-type]
