"""Weights that are no weights, or are not trained: left alone, counted right, or refused before training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import plait
from plait.errors import PlaitError
from plait.run import execute
from plait.storage import places
from plait_glt.config import GLTConfig
from plait_glt.errors import GLTError
from plait_glt.macs import Propagation, inference_macs
from plait_glt.masked import MaskedGNN
from plait_glt.models import GAT, GCN, GIN, ResGCN, weight_names
from plait_glt.models.propagation import neighbour_sum
from plait_glt.models.weights import seen_alone
from plait_glt.pyg import GCNConv
from plait_glt.rounds import GraphLotteryTickets, find_ticket
from plait_glt.tickets import Ticket, transfer
from plait_glt.tiny_graphs import karate_graph

FIRST, LAST = "convs.0.lin.weight", "convs.1.lin.weight"
SHORT: dict[str, Any] = {"rounds": 1, "p_g": 0.3, "p_theta": 0.5, "mask_epochs": 3, "fix_epochs": 2, "warmup": 0}
GRAPH = karate_graph()
SPLITS = torch.arange(0, 34, 2), torch.arange(1, 34, 4), torch.arange(3, 34, 4)


class Halved(nn.Module):
    """A stranger's parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean()


class Odd(nn.Module):
    """A two-layer network whose second weight is odd."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.odd = odd
        self.first, self.last = nn.Linear(34, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.low = nn.Parameter(torch.randn(4, 2)) if odd == "rank" else None
        self.rank = nn.Parameter(torch.randn(2, 6)) if odd == "rank" else None
        self.unused = nn.Linear(6, 3) if odd == "unused" else None
        if odd == "buffer":
            self.register_buffer("ones", torch.ones(4, 6))
        if odd == "hook":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nn.utils.weight_norm(self.last)

    def weight(self) -> Tensor:
        weight: Tensor = self.last.weight
        if self.odd == "standard":
            return weight - weight.mean(1, keepdim=True)
        if self.odd == "buffer":
            return weight * self.ones
        if self.low is not None and self.rank is not None:
            return weight + self.low @ self.rank
        return 2 * weight.double().float().t().contiguous().t() / 3 if self.odd == "multiple" else weight

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        weight = torch.ones(edge_index.shape[1], dtype=x.dtype) if edge_weight is None else edge_weight
        h = neighbour_sum(self.first(x), edge_index, weight).relu()
        h = self.last(h) if self.odd == "hook" else nn.functional.linear(h, self.weight())
        return neighbour_sum(h, edge_index, weight)


def parametrized(kind: str, network: GCN) -> GCN:
    layer = network.convs[1].lin
    if kind == "stranger":
        parametrize.register_parametrization(layer, "weight", Halved())
    else:
        getattr(parametrizations, kind)(layer)
    return network


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "stranger"])
def test_parametrized_layers_are_left_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = parametrized(kind, GCN(34, 4, 8, layers=3))
    names = [FIRST, "convs.2.lin.weight"]
    assert weight_names(network) == names
    search = GraphLotteryTickets(network, GRAPH, *SPLITS, GLTConfig(**SHORT))
    results = search.run()
    assert search.model.names == names
    assert any("convs.1.lin.parametrizations.weight" in line for line in search.model.remarks)
    owned, kept = 34 * 8 + 8 * 4, list(search.weight_kept.values())
    assert sum(mask.numel() for mask in kept) == owned and results[-1].weight_sparsity == 0.5
    entries = search.model.kept_index.shape[1]
    by_hand = inference_macs([kept[0], torch.ones(8, 8), kept[1]], entries, 34, GRAPH.x)
    assert results[-1].macs == by_hand
    hidden = next(name for name, _ in network.named_parameters() if "parametrizations" in name)
    with pytest.raises(GLTError, match="parametrized"):
        MaskedGNN(network, GRAPH.edge_index, 34, prunable=[hidden])


def test_weights_that_hooks_compute_are_left_alone_and_stale_ones_refused() -> None:
    network = Odd("hook")
    assert weight_names(network) == ["first.weight"]
    search = GraphLotteryTickets(network, GRAPH, *SPLITS, GLTConfig(**SHORT))
    search.run()
    assert search.model.names == ["first.weight"]
    alone, edges = search.model.export()
    wanted = search.model.eval()(GRAPH.x, GRAPH.edge_index)
    torch.testing.assert_close(alone.eval()(GRAPH.x, edges), wanted)
    assert [tuple(mask.shape) for mask in search.model.effective(search.weight_kept)] == [(6, 34), (4, 6)]
    stale = GCN(34, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(stale.convs[0].lin)
    with pytest.raises(GLTError, match=r"weight_g.*parametrizations instead"):
        GraphLotteryTickets(stale, GRAPH, *SPLITS, GLTConfig(**SHORT))


@pytest.mark.parametrize(
    ("odd", "alone"),
    [
        ("", {}),
        ("multiple", {}),
        ("standard", {"last.weight"}),
        ("buffer", {"last.weight"}),
        ("rank", {"last.weight", "low", "rank"}),
        ("unused", {"unused.weight"}),
    ],
)
def test_what_a_pass_shows(odd: str, alone: set[str]) -> None:
    network = Odd(odd)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    search = GraphLotteryTickets(network, GRAPH, *SPLITS, GLTConfig(**SHORT, l1_weights=0.01))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())
    assert set(search.model.alone) == set(alone)
    assert set(search.model.names) == {n for n, p in network.named_parameters() if p.dim() == 2} - set(alone)
    search.run()
    for name in alone:
        assert bool((network.get_parameter(name) != 0).all()), name
    if odd == "unused":
        assert torch.equal(network.state_dict()["unused.weight"], before["unused.weight"])
        search.model = MaskedGNN(network, GRAPH.edge_index, 34, prunable=["unused.weight"])
        search.model.probe(GRAPH.x)
        assert search.model.names == ["unused.weight"]  # asked for
    elif alone:
        with pytest.raises(GLTError, match="no weight of the network"):
            MaskedGNN(network, GRAPH.edge_index, 34, prunable=["last.weight"]).probe(GRAPH.x)


@pytest.mark.parametrize(
    "network", [GCN(34, 4, 8), GIN(34, 4, 8, mlp_layers=2, batch_norm=True), GAT(34, 4, 8, heads=2)]
)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_pass_finds_nothing_odd_in_plain_networks(network: nn.Module, sparse: bool) -> None:
    x = GRAPH.x.to_dense().to_sparse_csr() if sparse else GRAPH.x.to_dense()
    assert seen_alone(network, x, GRAPH.edge_index) == {}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_finds_nothing_odd_in_a_deep_network(recompute: bool) -> None:
    network = ResGCN(34, 4, 8, layers=3, recompute=recompute)
    assert seen_alone(network, GRAPH.x.to_dense(), GRAPH.edge_index) == {}


def test_frozen_weights_are_never_owned_unless_asked_for() -> None:
    network = GCN(34, 4, 8)
    frozen = network.convs[0].lin.weight.requires_grad_(False)
    before = frozen.clone()
    assert weight_names(network) == [LAST]
    result = find_ticket(network, GRAPH, *SPLITS, GLTConfig(**SHORT))
    assert torch.equal(frozen, before) and list(result.ticket.weight_kept) == [LAST]
    assert result.remarks == (f"{FIRST!r} left alone (frozen)",)
    entries, kept = int(result.ticket.edge_kept.sum()), result.ticket.weight_kept[LAST]
    expected = inference_macs([torch.ones(8, 34), kept], entries, 34, GRAPH.x)
    assert result.results[-1].macs == expected
    assert expected == inference_macs(
        [kept], entries, 34, None, propagated=[Propagation(8, True), Propagation(4, True)]
    ) + (int((GRAPH.x.to_dense() != 0).sum()) * 8)
    assert MaskedGNN(network, GRAPH.edge_index, 34, prunable=[FIRST]).names == [FIRST]


def test_nothing_to_prune_or_to_train_is_refused_before_training() -> None:
    network = GCN(34, 4, 8)
    network.convs.requires_grad_(False)
    network.register_parameter("shift", nn.Parameter(torch.zeros(1)))
    with pytest.raises(
        GLTError, match=r"no weight that can be pruned: 'convs.0.lin.weight' and 1 more left alone .frozen"
    ):
        GraphLotteryTickets(network, GRAPH, *SPLITS, GLTConfig(**SHORT))
    network.requires_grad_(False)
    with pytest.raises(GLTError, match="nothing to train"):
        GraphLotteryTickets(network, GRAPH, *SPLITS, GLTConfig(**SHORT, weight_ranking="keep"))


def test_wrapped_networks_are_taken_out_of_their_wrappers() -> None:
    plain = GCN(34, 4, 8)
    compiled = torch.compile(plain, backend="eager")
    for wrapped in (compiled, nn.DataParallel(plain), nn.DataParallel(compiled)):
        assert isinstance(wrapped, nn.Module)
        search = GraphLotteryTickets(wrapped, GRAPH, *SPLITS, GLTConfig(**SHORT))
        assert search.model.network is plain and search.model.names == [FIRST, LAST]
        assert set(search.ticket().initial) == {FIRST, LAST}
        search.ticket().plant(wrapped)
        assert transfer(search.ticket(), wrapped).carried == (FIRST, LAST)


def test_networks_that_cannot_be_masked_are_refused_in_words() -> None:
    class Lazy(GCN):
        def __init__(self) -> None:
            super().__init__(34, 4, 8)
            self.convs[0] = GCNConv(-1, 8)

    with pytest.raises(GLTError, match="lazy layer"):
        MaskedGNN(Lazy(), GRAPH.edge_index, 34)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(34, 4))
    with pytest.raises(GLTError, match="scripted"):
        MaskedGNN(scripted, GRAPH.edge_index, 34)


# ---- in a run -------------------------------------------------------------------------------------------------------
class Listening(GCN):
    """A user's network, which says that it takes edge weights."""

    provides = ("model:edge-weights",)

    def __init__(self, layers: int = 2) -> None:
        super().__init__(34, 4, 8, layers)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return super().forward(x, edge_index, edge_weight) + self.shift


def frozen_network() -> GCN:
    """A GCN whose first layer is frozen."""
    network = Listening()
    network.convs[0].requires_grad_(False)
    return network


def normed_network() -> GCN:
    """A GCN with weight norm on a layer."""
    return parametrized("weight_norm", Listening(layers=3))


def frozen_whole() -> GCN:
    """A GCN with a single trained vector."""
    network = Listening()
    network.convs.requires_grad_(False)
    return network


def wholly_frozen() -> GCN:
    """Nothing to train."""
    return Listening().requires_grad_(False)


def run(out: Path, model: Any, **glt: Any) -> plait.Run:
    plan = plait.plan(
        plugins={"glt": {**SHORT, **glt}}, data="karate", model=f"{__name__}:{model.__name__}", settings={"seed": 1}
    )
    return execute(plan, places.at(out), artifacts=False)


def test_a_run_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", frozen_network, l1_edges=0.01)
    assert trained.metrics["glt/kept_weights"] == 16 and trained.metrics["glt/weight_sparsity"] == 0.5
    ticket = Ticket.load(trained.export / "ticket.safetensors")
    assert torch.equal(trained.model.network.state_dict()[FIRST], ticket.initial[FIRST])
    assert "left alone (frozen)" in (tmp_path / "run" / "metrics.jsonl").read_text()
    moved = run(tmp_path / "moved", frozen_network, ticket=str(trained.export / "ticket.safetensors"))
    assert moved.metrics["glt/kept_weights"] == 16


def test_a_run_leaves_parametrized_weights_alone(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", normed_network)
    assert trained.metrics["glt/kept_weights"] == (34 * 8 + 8 * 4) / 2
    again = plait.load_run(trained.path).model
    assert torch.equal(again(GRAPH.x, GRAPH.edge_index), trained.model(GRAPH.x, GRAPH.edge_index))


def test_a_run_without_a_weight_to_prune_is_refused(tmp_path: Path) -> None:
    with pytest.raises((PlaitError, GLTError), match="no weight that can be pruned"):
        run(tmp_path / "run", frozen_whole)
    with pytest.raises((PlaitError, GLTError), match=r"nothing to train|frozen"):
        run(tmp_path / "frozen", wholly_frozen)
    assert run(tmp_path / "edges", frozen_whole, weight_ranking="keep").metrics["glt/kept_weights"] == 0
