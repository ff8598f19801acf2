"""Weighted convolutions against dense formulas, PyG's own layers and identities, gradients included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from plait.data import DataInfo
from plait.errors import BadInput
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph, clean_edges, make_graph
from plait_glt.masked import MaskedGNN
from plait_glt.model_options import GatOptions, GcnOptions, GinOptions, ResGcnOptions, UgsGinOptions
from plait_glt.models import (
    GAT,
    GCN,
    GIN,
    UGSGIN,
    GATConv,
    GCNConv,
    GINConv,
    ResGCN,
    build,
    gcn_norm,
    neighbour_sum,
    probe_edge_weight,
    weight_names,
)
from plait_glt.models.propagation import _plans

N, F, C = 12, 7, 3


def random_graph(seed: int, n: int = N, entries: int = 30, directed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges that leave the last node isolated, weights in (0, 1); float64."""
    generator = torch.Generator().manual_seed(seed)
    edges = clean_edges(torch.randint(n - 1, (2, entries), generator=generator), n, undirected=not directed)
    weight = torch.rand(edges.shape[1], generator=generator, dtype=torch.float64)
    return torch.randn(n, F, generator=generator, dtype=torch.float64), edges, weight


def adjacency(edges: Tensor, weight: Tensor, n: int = N) -> Tensor:
    """Dense A with A[target, source] = weight, differentiable."""
    return torch.zeros(n, n, dtype=weight.dtype).index_put((edges[1], edges[0]), weight)


def dense_gcn(x: Tensor, a: Tensor, *weights: Tensor) -> Tensor:
    """The card's formula, section 1."""
    hat = a + torch.eye(len(a), dtype=a.dtype)
    scale = torch.diag(hat.sum(1) ** -0.5)
    p = scale @ hat @ scale
    for number, weight in enumerate(weights):
        x = p @ (x.relu() if number else x) @ weight.t()
    return x


def dense_gat(x: Tensor, a: Tensor, present: Tensor, conv: GATConv) -> Tensor:
    """Attention by the dense softmax over present edges and self-loops; concat of heads."""
    n, eye = len(a), torch.eye(len(a), dtype=a.dtype)
    h = (x @ conv.lin.weight.t()).view(n, conv.heads, -1)
    out = []
    for k in range(conv.heads):
        sent, received = h[:, k] @ conv.att_src[0, k], h[:, k] @ conv.att_dst[0, k]
        logits = nn.functional.leaky_relu(received[:, None] + sent[None], 0.2)
        shown = present.bool() | eye.bool()
        if conv.mask == "before":
            attention = (logits + (a + eye).log()).masked_fill(~shown, -torch.inf).softmax(1)
        else:
            attention = logits.masked_fill(~shown, -torch.inf).softmax(1) * (a + eye)
        out.append(attention @ h[:, k])
    return torch.cat(out, 1) + conv.bias


def same_gradients(first: Tensor, second: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(first, second)
    mix = torch.randn(first.shape, dtype=first.dtype, generator=torch.Generator().manual_seed(9))
    of_sum = torch.autograd.grad((first * mix).sum(), inputs)
    two = torch.autograd.grad((second * mix).sum(), inputs)
    for a, b in zip(of_sum, two, strict=True):
        torch.testing.assert_close(a, b)


# ---- the neighbour sum ----------------------------------------------------------------------------------------------
def test_neighbour_sum_is_the_dense_product_with_exact_derivatives_of_two_orders() -> None:
    x, edges, weight = random_graph(0, directed=True)
    torch.testing.assert_close(neighbour_sum(x, edges, weight), adjacency(edges, weight) @ x)
    small = (torch.randn(N, 2, dtype=torch.float64, requires_grad=True), weight.clone().requires_grad_())
    assert gradcheck(lambda a, w: neighbour_sum(a, edges, w), small)
    assert gradgradcheck(lambda a, w: neighbour_sum(a, edges, w), small)


def test_neighbour_sum_under_function_transforms_and_in_half_precision() -> None:
    x, edges, weight = random_graph(1)
    plain = torch.func.grad(lambda w: neighbour_sum(x, edges, w).square().sum())(weight)
    w = weight.clone().requires_grad_()
    (fast,) = torch.autograd.grad(neighbour_sum(x, edges, w).square().sum(), w)
    torch.testing.assert_close(plain, fast)
    half = neighbour_sum(x.bfloat16(), edges, weight.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), neighbour_sum(x, edges, weight), rtol=0.05, atol=0.1)


def test_the_sorted_edges_are_kept_with_their_tensor_and_noticed_when_it_changes() -> None:
    x, edges, weight = random_graph(2)
    before = len(_plans)
    neighbour_sum(x, edges, weight)
    assert len(_plans) == before + 1
    edges[:] = edges.flip(1)
    torch.testing.assert_close(neighbour_sum(x, edges, weight), adjacency(edges, weight) @ x)
    del edges
    assert len(_plans) == before


# ---- convolutions against dense formulas and PyG --------------------------------------------------------------------
@pytest.mark.parametrize("directed", [False, True])
def test_gcn_equals_the_cards_formula(directed: bool) -> None:
    x, edges, weight = random_graph(3, directed=directed)
    weight.requires_grad_()
    model = GCN(F, C, hidden=5).double().eval()
    weights = [conv.lin.weight for conv in model.convs]
    assert [name for name, _ in model.named_parameters()] == weight_names(model)  # no bias
    expected = dense_gcn(x, adjacency(edges, weight), *weights)
    same_gradients(model(x, edges, weight), expected, [weight, *weights])


def test_gcn_norm_and_layer_equal_pygs() -> None:
    x, edges, weight = random_graph(4)
    weight.requires_grad_()
    index, values = pyg.conv.gcn_conv.gcn_norm(edges, weight, N)
    ours, loops = gcn_norm(edges, weight, N)
    assert torch.equal(index[:, : edges.shape[1]], edges)
    torch.testing.assert_close(torch.cat([ours, loops]), values)
    layer = GCNConv(F, C).double()
    published = pyg.GCNConv(F, C, bias=False).double()
    published.load_state_dict(layer.state_dict())
    same_gradients(layer(x, edges, weight), published(x, edges, weight), [weight])
    torch.testing.assert_close(layer(x, edges), published(x, edges))


def test_a_node_whose_masked_degree_is_not_positive_stays_finite() -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    weight = torch.tensor([-2.0, 1.0], requires_grad=True)
    edge, loop = gcn_norm(edges, weight, 2)
    torch.testing.assert_close(loop, torch.tensor([0.5, 0.0]))
    assert edge.tolist() == [0.0, 0.0]
    (grad,) = torch.autograd.grad((edge + loop).sum(), weight)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("layers", [1, 2])
def test_gin_equals_the_dense_sum_and_pygs_layer(layers: int) -> None:
    x, edges, weight = random_graph(5)
    weight.requires_grad_()
    mlp = nn.Sequential(nn.Linear(F, 4), *([nn.ReLU(), nn.Linear(4, C)] if layers == 2 else [])).double()
    layer, published = GINConv(mlp), pyg.GINConv(mlp)
    expected = mlp(x + adjacency(edges, weight) @ x)
    same_gradients(layer(x, edges, weight), expected, [weight, *mlp.parameters()])
    torch.testing.assert_close(layer(x, edges), published(x, edges))


def test_ugs_gin_equals_a_dense_mean_over_the_whole_graph() -> None:
    """The card's words, with dense matrices: masked entries weigh nothing and still count in the mean."""
    x, edges, weight = random_graph(5)
    weight[::3] = 0
    weight.requires_grad_()
    network = UGSGIN(F, C, 4, dropout=0.0).double()
    network.eps.data.copy_(torch.tensor([0.3, -0.2]))
    ones = adjacency(edges, torch.ones_like(weight))
    mean = adjacency(edges, weight) / ones.sum(1, keepdim=True).clamp(min=1)
    first, second = network.layers
    own = [(1 + eps) * torch.eye(N) for eps in network.eps]
    h0 = first((own[0] + mean) @ x).relu()
    h1 = second((own[1] + mean) @ h0).relu()
    expected = (h0 @ network.head.weight.T + h1) / 2
    same_gradients(network(x, edges, weight), expected, [weight, *network.parameters()])


def test_ugs_gin_on_the_kept_edges_of_a_graph_that_it_has_seen_equals_masked_edges() -> None:
    x, edges, weight = random_graph(8)
    kept = weight > weight.median()
    network = UGSGIN(F, C, 4, dropout=0.0).double()
    masked = network(x, edges, kept.double())
    assert not torch.allclose(network(x, edges[:, kept]), masked)  # another mean
    network.see_graph(edges, N)
    torch.testing.assert_close(network(x, edges[:, kept]), masked)
    with_masks = MaskedGNN(UGSGIN(F, C, 4, dropout=0.0), edges, N, tied=False)
    torch.testing.assert_close(with_masks.network.degree, torch.bincount(edges[1], minlength=N).float())
    assert "degree" not in str(list(with_masks.state_dict()))


@pytest.mark.parametrize("mask", ["after", "before"])
def test_gat_equals_the_dense_attention(mask: Any) -> None:
    x, edges, weight = random_graph(6)
    weight.requires_grad_()
    layer = GATConv(F, 2, heads=3, mask=mask).double()
    expected = dense_gat(x, adjacency(edges, weight), adjacency(edges, torch.ones_like(weight)), layer)
    same_gradients(layer(x, edges, weight), expected, [weight, layer.lin.weight, layer.att_src, layer.att_dst])


@pytest.mark.parametrize("concat", [True, False])
def test_gat_without_weights_is_pygs_layer(concat: bool) -> None:
    x, edges, weight = random_graph(7)
    layer = GATConv(F, 2, heads=3, concat=concat).double()
    published = pyg.GATConv(F, 2, heads=3, concat=concat).double()
    published.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x, edges), published(x, edges))
    torch.testing.assert_close(layer(x, edges, torch.ones_like(weight)), published(x, edges))
    torch.testing.assert_close(layer(x * 1e4, edges), published(x * 1e4, edges))  # large logits do not overflow


# ---- identities of whole models -------------------------------------------------------------------------------------
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {
        "gcn": GCN(F, C, 8),
        "gcn-3": GCN(F, C, 8, layers=3),
        "gcn-1": GCN(F, C, layers=1),
        "gin": GIN(F, C, 8),
        "gin-mlp-bn": GIN(F, C, 8, mlp_layers=2, batch_norm=True),
        "gat-after": GAT(F, C, 8, heads=2),
        "gat-before": GAT(F, C, 8, heads=2, attention_mask="before"),
        "resgcn": ResGCN(F, C, 8, layers=4),
        "ugs-gin": UGSGIN(F, C, 8),
    }
    return {name: model.double().eval() for name, model in networks.items()}


@pytest.mark.parametrize("name", list(models()))
def test_identities(name: str) -> None:
    model = models()[name]
    x, edges, weight = random_graph(8)
    out = model(x, edges, weight)
    assert out.shape == (N, C)
    torch.testing.assert_close(model(x, edges), model(x, edges, torch.ones_like(weight)))
    # renaming the nodes renames the outputs
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(N))
    torch.testing.assert_close(model(x[order], place[edges], weight), out[order])
    # the order of the entries does not matter
    torch.testing.assert_close(model(x, edges.flip(1), weight.flip(0)), out)
    # the last node is isolated: its output depends on its own features only
    alone = model(x[-1:], edges[:, :0], weight[:0])
    torch.testing.assert_close(out[-1:], alone)
    # without edges every node is alone
    torch.testing.assert_close(model(x, edges[:, :0]), torch.cat([model(row[None], edges[:, :0]) for row in x]))
    # sparse features are the same features
    torch.testing.assert_close(model(x.to_sparse_csr(), edges, weight), out)


@pytest.mark.parametrize("name", [name for name in models() if name != "gat-after"])
def test_a_weight_of_zero_takes_the_edge_away(name: str) -> None:
    model = models()[name]
    x, edges, weight = random_graph(9)
    if isinstance(model, UGSGIN):
        model.see_graph(edges, N)  # the mean counts them all
    kept = torch.rand(len(weight), generator=torch.Generator().manual_seed(2)) < 0.5
    torch.testing.assert_close(model(x, edges, weight * kept), model(x, edges[:, kept], weight[kept]))
    torch.testing.assert_close(model(x, edges, weight * 0), model(x, edges[:, :0]))


def test_masking_attention_after_the_softmax_is_not_taking_the_edge_away() -> None:
    """Against the card's "or equivalently": the places differ, also for 0/1 masks; a 0/1 mask before it is removal."""
    x, edges, _ = random_graph(10)
    kept = torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(3)) < 0.5
    networks = models()
    after, before = networks["gat-after"], networks["gat-before"]
    before.load_state_dict(after.state_dict())
    mask = kept.double()
    assert (after(x, edges, mask) - before(x, edges, mask)).abs().max() > 1e-3
    torch.testing.assert_close(after(x, edges[:, kept]), before(x, edges, mask))


def test_the_cards_reach_of_the_gradient() -> None:
    """Path of 6, node 0 labelled: which directed entries have a gradient (card, section 3)."""
    edges = clean_edges(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]), 6)
    weight = torch.ones(edges.shape[1], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    model = GCN(6, 2, 16).double().eval()
    out = model(torch.eye(6, dtype=torch.float64), edges, weight)
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(out[:1], torch.tensor([0])), weight)
    reached = {tuple(pair) for pair in edges[:, grad != 0].t().tolist()}
    assert reached == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 2)}


def test_recomputing_blocks_changes_no_number() -> None:
    x, edges, weight = random_graph(11)
    torch.manual_seed(0)
    model = ResGCN(F, C, 8, layers=4, dropout=0.3).double()
    grads = []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(5)
        w = weight.clone().requires_grad_()
        model.zero_grad()
        model(x, edges, w).square().sum().backward()
        grads.append([w.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_acts_while_training_only() -> None:
    x, edges, weight = random_graph(12)
    for name, model in models().items():
        if name == "gcn-1":
            continue
        assert torch.equal(model(x, edges, weight), model(x, edges, weight))
        model.train()
        assert not torch.equal(model(x, edges, weight), model(x, edges, weight)), name


# ---- probes and factories -------------------------------------------------------------------------------------------
class Mixed(nn.Module):
    """The first layer ignores the weights, the second one does not."""

    def __init__(self, convs: list[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        for conv in self.convs:
            takes = isinstance(conv, pyg.GCNConv)
            x = conv(x, edge_index, edge_weight) if takes else conv(x, edge_index)
        return x


def test_probe_finds_models_that_ignore_edge_weights() -> None:
    x, edges, _ = random_graph(13)
    graph = Graph(x=x.float(), edge_index=edges)
    for name, model in models().items():
        model.float().train()
        modes = [module.training for module in model.modules()]
        assert probe_edge_weight(model, graph), name
        assert [module.training for module in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())
    assert probe_edge_weight(Mixed([pyg.GCNConv(F, 4), pyg.GCNConv(4, C)]), graph)  # PyG's own layers
    assert not probe_edge_weight(Mixed([pyg.GATConv(F, 4), pyg.GATConv(4, C)]), graph)
    assert not probe_edge_weight(Mixed([pyg.GATConv(F, 4), pyg.GCNConv(4, C)]), graph)
    assert not probe_edge_weight(Mixed([pyg.GCNConv(F, 4), pyg.SAGEConv(4, C)]), graph)
    assert not probe_edge_weight(pyg.GraphSAGE(F, 4, 2, C), graph)  # its forward takes and drops them
    assert not probe_edge_weight(nn.Linear(F, C), graph)  # takes no edges at all
    sparse = Graph(x=x.float().to_sparse_csr(), edge_index=edges)
    assert probe_edge_weight(GCN(F, C), sparse)


def test_weight_names_leave_out_biases_norms_and_attention_vectors() -> None:
    assert weight_names(GCN(F, C)) == ["convs.0.lin.weight", "convs.1.lin.weight"]
    assert weight_names(GAT(F, C)) == ["convs.0.lin.weight", "convs.1.lin.weight"]
    names = weight_names(GIN(F, C, mlp_layers=2, batch_norm=True))
    assert names == [f"convs.{conv}.nn.{layer}.weight" for conv in (0, 1) for layer in (0, 2)]
    deep = weight_names(ResGCN(F, C, layers=3))
    assert len(deep) == 5 and not any("norm" in name or "bias" in name for name in deep)


def test_factories() -> None:
    info = DataInfo(input_shape=(F,), num_classes=C, fields=frozenset({"graph", "node", "label", "index"}))
    x, edges, weight = random_graph(14)
    for make, options in (
        (build.gcn, GcnOptions(hidden=8)),
        (build.gin, GinOptions(hidden=8, mlp_layers=2, batch_norm=True)),
        (build.ugs_gin, UgsGinOptions(hidden=8)),
        (build.gat, GatOptions(hidden=8, heads=4, attention_mask="before")),
        (build.resgcn, ResGcnOptions(hidden=8, layers=3)),
    ):
        model = make(options, info)  # type: ignore[operator]
        assert model(x.float(), edges, weight.float()).shape == (N, C)
    with pytest.raises(BadInput, match="hidden = 10 must be a multiple of heads = 4"):
        build.gat(GatOptions(hidden=10, heads=4), info)
    with pytest.raises(GLTError, match="multiple"):
        GAT(F, C, 10, heads=4)
    with pytest.raises(BadInput, match="needs a graph"):
        build.gcn(GcnOptions(), DataInfo(input_shape=(1, 8, 8), num_classes=C))


def test_csr_features_give_the_same_training_step() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(40, 60, generator=generator) < 0.05).float()
    graph = make_graph(x, torch.randint(40, (2, 80), generator=generator), torch.zeros(40, dtype=torch.int64))
    model = GCN(60, C, 8).eval()
    weight = list(model.parameters())
    same_gradients(model(x, graph.edge_index), model(x.to_sparse_csr(), graph.edge_index), weight)
