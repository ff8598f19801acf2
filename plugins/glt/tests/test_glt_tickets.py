"""Tickets: whole on disk, refused when damaged or foreign, planted, moved to other layers and other graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from plait_glt.errors import GLTError
from plait_glt.graphs import clean_edges
from plait_glt.masked import MaskedGNN
from plait_glt.models import GAT, GCN
from plait_glt.tickets import Ticket, transfer
from plait_glt.tiny_graphs import karate_graph


def ticket_of(network: nn.Module, *, tied: bool = True) -> Ticket:
    gnn = MaskedGNN(network, karate_graph().edge_index, 34, tied=tied)
    rng = torch.Generator().manual_seed(0)
    return Ticket(
        edge_kept=torch.rand(gnn.edge_mask.shape, generator=rng) < 0.6,
        pairs=gnn.pairs,
        weight_kept={name: torch.rand(w.shape, generator=rng) < 0.3 for name, w in gnn.weights().items()},
        initial={name: value.clone() for name, value in network.state_dict().items()},
        num_nodes=34,
        graph_hash=gnn.hash,
        tied=tied,
        notes={"round": 3, "accuracy": 81.5},
    )


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_through_a_file(tmp_path: Path, tied: bool) -> None:
    ticket = ticket_of(GCN(34, 4, hidden=7), tied=tied)
    ticket.save(tmp_path / "ticket.safetensors")
    back = Ticket.load(tmp_path / "ticket.safetensors")
    assert torch.equal(back.edge_kept, ticket.edge_kept) and torch.equal(back.pairs, ticket.pairs)
    for ours, theirs in ((back.weight_kept, ticket.weight_kept), (back.initial, ticket.initial)):
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (back.num_nodes, back.graph_hash, back.tied, back.notes) == (34, ticket.graph_hash, tied, ticket.notes)
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.safetensors"]


def test_edges_of_a_ticket() -> None:
    ticket, edges = ticket_of(GCN(34, 4)), karate_graph().edge_index
    gnn = MaskedGNN(GCN(34, 4), edges, 34)
    gnn.compact(ticket.edge_kept)
    assert torch.equal(ticket.edge_index, gnn.kept_index)
    ticket.check_graph(gnn.hash)
    with pytest.raises(GLTError, match="belongs to the graph with hash"):
        ticket.check_graph(MaskedGNN(GCN(34, 4), ticket.edge_index, 34).hash)


def test_planting_rewinds_and_prunes() -> None:
    ticket, network = ticket_of(GCN(34, 4, hidden=8)), GCN(34, 4, hidden=8)
    ticket.plant(network)
    for name, weight in network.named_parameters():
        assert torch.equal(weight.detach(), ticket.initial[name] * ticket.weight_kept[name])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    with pytest.raises(GLTError, match="no ticket at"):
        Ticket.load(path)
    ticket_of(GCN(34, 4)).save(path)
    whole = path.read_bytes()
    for broken in (whole[:-20], whole[:5], b"", b"not a ticket at all"):
        path.write_bytes(broken)
        with pytest.raises(GLTError, match="no ticket, or a damaged one"):
            Ticket.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(GLTError, match="no ticket, or a damaged one"):
        Ticket.load(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"ticket": '{"format": "other"}'})
    with pytest.raises(GLTError, match="format 'other'"):
        Ticket.load(path)


def test_transfer_keeps_hidden_layers_and_leaves_the_ends_fresh() -> None:
    torch.manual_seed(0)
    ticket, target = ticket_of(GCN(34, 4, hidden=8, layers=3)), GCN(20, 5, hidden=8, layers=3)
    own = {name: w.detach().clone() for name, w in target.named_parameters()}
    moved = transfer(ticket, target)
    first, hidden, last = (f"convs.{k}.lin.weight" for k in range(3))
    assert moved.carried == (hidden,) and moved.fresh == (first, last)
    weights = dict(target.named_parameters())
    assert torch.equal(weights[first].detach(), own[first]) and torch.equal(weights[last].detach(), own[last])
    assert torch.equal(weights[hidden].detach(), ticket.initial[hidden] * ticket.weight_kept[hidden])
    assert torch.equal(moved.weight_kept[hidden], ticket.weight_kept[hidden])
    assert bool(moved.weight_kept[first].all()) and moved.weight_kept[first].shape == (8, 20)
    assert moved.edge_kept is None


def test_transfer_carries_common_edges() -> None:
    """A later snapshot: some edges went, three came."""
    ticket = ticket_of(GCN(34, 4))
    source = karate_graph().edge_index
    new = torch.tensor([[0, 14, 26], [9, 16, 10]])
    later = MaskedGNN(GCN(34, 4), clean_edges(torch.cat([source[:, 30:], new], 1), 34), 34)
    moved = transfer(ticket, later.network, pairs=later.pairs, num_nodes=34)
    known = {tuple(pair): bool(kept) for pair, kept in zip(ticket.pairs.T.tolist(), ticket.edge_kept, strict=True)}
    assert moved.edge_kept is not None
    want = [known.get(tuple(pair), True) for pair in later.pairs.T.tolist()]
    assert moved.edge_kept.tolist() == want
    assert (
        moved.common_edges == sum(tuple(pair) in known for pair in later.pairs.T.tolist()) == later.pairs.shape[1] - 3
    )
    with pytest.raises(GLTError, match="equal node sets"):
        transfer(ticket, later.network, pairs=later.pairs, num_nodes=35)


def test_transfers_that_cannot_be_are_refused() -> None:
    deep = ticket_of(GCN(34, 4, hidden=8, layers=3))
    for target, message in (
        (GCN(34, 4, hidden=8, layers=2), "another architecture"),
        (GAT(34, 4, hidden=8), "another architecture"),
        (GCN(34, 4, hidden=9, layers=3), r"hidden layer .* is \(9, 9\) in the network and \(8, 8\)"),
    ):
        with pytest.raises(GLTError, match=message):
            transfer(deep, target)
    with pytest.raises(GLTError, match="nothing would be carried"):
        transfer(ticket_of(GCN(34, 4)), GCN(20, 5))
