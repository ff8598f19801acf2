"""MaskedGNN: tied masks, exact zeros, compaction, fixed masks cost nothing, export, refusals; MACs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv

from plait_glt.errors import GLTError
from plait_glt.macs import column_nonzeros, inference_macs, propagations, saving
from plait_glt.masked import MaskedGNN
from plait_glt.models import GAT, GCN, GIN, UGSGIN
from plait_glt.tiny_graphs import karate_graph, path_edges, two_triangles_edges


class Plain(nn.Module):
    """PyG's own GCN layers; the last may ignore edge weights."""

    def __init__(self, features: int, classes: int, *, last: type[nn.Module] = GCNConv) -> None:
        super().__init__()
        self.first = GCNConv(features, 8, bias=False)
        self.last = last(8, classes)
        self.weightless = last is SAGEConv

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        h = self.first(x, edge_index, edge_weight).relu()
        out: Tensor = self.last(h, edge_index) if self.weightless else self.last(h, edge_index, edge_weight)
        return out


def karate(network: type[nn.Module] = Plain, **options: bool) -> tuple[MaskedGNN, Tensor, Tensor]:
    graph = karate_graph()
    torch.manual_seed(0)
    return MaskedGNN(network(34, 4), graph.edge_index, 34, **options), graph.x, graph.edge_index


def test_masks_of_one_change_nothing() -> None:
    gnn, x, edges = karate()
    torch.testing.assert_close(gnn(x, edges), gnn.network(x, edges))
    assert gnn.edge_mask.shape == (78,) and edges.shape == (2, 156)
    assert set(gnn.names) == {"first.lin.weight", "last.lin.weight"}


@pytest.mark.parametrize("kind", ["gcn", "gin", "gat"])
def test_a_tied_mask_scales_both_directions(kind: str) -> None:
    torch.manual_seed(1)
    network = {
        "gcn": GCN(6, 2, hidden=8),
        "gin": GIN(6, 2, hidden=8),
        "gat": GAT(6, 2, hidden=8, attention_mask="before"),
    }[kind].eval()
    edges, x = two_triangles_edges(), torch.rand(6, 6)
    gnn = MaskedGNN(network, edges, 6)
    gnn.probe(x)
    with torch.no_grad():
        gnn.edge_mask.uniform_(0.2, 1.0)
        gnn.weight_mask(gnn.names[0]).uniform_(0.2, 1.0)
    low, high = edges.amin(0), edges.amax(0)
    weight = torch.stack(
        [gnn.edge_mask[(gnn.pairs == torch.tensor([[a], [b]])).all(0)] for a, b in zip(low, high, strict=True)]
    )[:, 0]
    network_copy, _ = gnn.export()
    torch.testing.assert_close(gnn(x, edges), network_copy(x, edges, weight))


def test_directed_masks_are_one_per_entry() -> None:
    gnn, x, edges = karate(tied=False)
    assert gnn.edge_mask.shape == (156,)
    with torch.no_grad():
        gnn.edge_mask[5] = 0
    weight = torch.ones(156)
    weight[5] = 0
    torch.testing.assert_close(gnn(x, edges), gnn.network(x, edges, weight))


def test_masks_get_the_gradient_of_edge_weights() -> None:
    gnn, x, edges = karate()
    gnn(x, edges).square().sum().backward()
    weight = torch.ones(156, requires_grad=True)
    (directed,) = torch.autograd.grad(gnn.network(x, edges, weight).square().sum(), weight)
    torch.testing.assert_close(gnn.edge_mask.grad, torch.zeros(78).index_add_(0, gnn.edge_id, directed))
    w = gnn.weights()["first.lin.weight"]
    # with masks of one, d/ds = W * d/dW (the chain rule of W * s)
    torch.testing.assert_close(gnn.weight_mask("first.lin.weight").grad, w.detach() * w.grad)


def test_compaction_equals_edges_of_weight_zero_and_is_not_fooled_by_clipped_masks() -> None:
    gnn, x, edges = karate()
    kept = torch.rand(78, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        gnn.edge_mask.mul_(kept)
        gnn.edge_mask[int(kept.nonzero()[0])] = 0.0  # clipped, not pruned
    want = gnn(x, edges)
    gnn.compact(kept)
    assert gnn.kept_index.shape[1] == 2 * int(kept.sum())
    torch.testing.assert_close(gnn(x, edges), want)
    gnn(x, edges).square().sum().backward()
    gradient = gnn.edge_mask.grad
    assert gradient is not None and bool((gradient[~kept] == 0).all()) and bool((gradient[kept] != 0).any())
    assert gradient[int(kept.nonzero()[0])] != 0
    gnn.expand()
    torch.testing.assert_close(gnn(x, edges), want)


def test_removed_edges_are_gone_for_the_pass() -> None:
    gnn, x, edges = karate()
    gone = torch.zeros(78, dtype=torch.bool)
    gone[3:20] = True
    left = edges[:, ~gone[gnn.edge_id]]
    gnn.removed = gone
    torch.testing.assert_close(gnn(x, edges), gnn.network(x, left))
    gnn.soft_masks(False)
    torch.testing.assert_close(gnn(x, edges), gnn.network(x, left))
    gnn.removed = None
    torch.testing.assert_close(gnn(x, edges), gnn.network(x, edges))


def test_fixed_masks_train_the_plain_network_bit_for_bit() -> None:
    gnn, x, edges = karate()
    kept = torch.arange(78) % 3 > 0
    with torch.no_grad():
        gnn.edge_mask.copy_(kept)
    gnn.soft_masks(False)
    not_compact = gnn(x, edges)
    gnn.compact(kept)
    assert torch.equal(gnn(x, edges), gnn.network(x, edges[:, kept[gnn.edge_id]]))
    torch.testing.assert_close(not_compact, gnn(x, edges))
    gnn(x, edges).sum().backward()
    assert gnn.edge_mask.grad is None and all(mask.grad is None for mask in gnn.weight_masks.values())
    gnn.soft_masks(True)
    gnn(x, edges).sum().backward()
    assert gnn.edge_mask.grad is not None


def test_without_edges_it_is_an_mlp() -> None:
    torch.manual_seed(2)
    gcn = GCN(6, 2, hidden=8).eval()
    gnn = MaskedGNN(gcn, path_edges(6), 6)
    gnn.compact(torch.zeros(5, dtype=torch.bool))
    x = torch.rand(6, 6)
    first, last = gnn.weights().values()
    torch.testing.assert_close(gnn(x, path_edges(6)), (x @ first.T).relu() @ last.T)
    empty = MaskedGNN(gcn, torch.empty(2, 0, dtype=torch.int64), 6)
    torch.testing.assert_close(empty(x, torch.empty(2, 0, dtype=torch.int64)), (x @ first.T).relu() @ last.T)


def test_export_folds_the_masks() -> None:
    gnn, x, edges = karate()
    kept = torch.arange(78) % 2 == 0
    with torch.no_grad():
        gnn.edge_mask.copy_(kept)
        for mask in gnn.weight_masks.values():
            mask.copy_(torch.rand(mask.shape) < 0.5)
    network, left = gnn.export()
    assert left.shape[1] == 78 and type(network) is Plain
    torch.testing.assert_close(network(x, left), gnn(x, edges))
    assert bool(
        (dict(network.named_parameters())["first.lin.weight"][gnn.weight_mask("first.lin.weight") == 0] == 0).all()
    )


def test_another_graph_needs_weights() -> None:
    gnn, x, edges = karate()
    with pytest.raises(GLTError, match="hash"):
        gnn(x, edges[:, :-2])
    weight = torch.rand(154)
    torch.testing.assert_close(gnn(x, edges[:, :-2], weight), gnn.network(x, edges[:, :-2], weight))


def test_bad_graphs_are_refused() -> None:
    network = Plain(6, 2)
    edges = path_edges(6)
    for broken, message in (
        (torch.tensor([[0, 1], [1, 9]]), "9"),
        (torch.cat([edges, torch.tensor([[2], [2]])], 1), "1 self-loops"),
        (torch.cat([edges, edges[:, :1]], 1), "1 duplicate"),
        (edges[:, 1:], "no opposite direction"),
    ):
        with pytest.raises(GLTError, match=message):
            MaskedGNN(network, broken, 6)
    assert MaskedGNN(network, edges[:, 1:], 6, tied=False).edge_mask.shape == (9,)
    with pytest.raises(GLTError, match=r"no parameter 'last\.weights'"):
        MaskedGNN(network, edges, 6, prunable=["last.weights"])
    with pytest.raises(GLTError, match="compact"):
        MaskedGNN(network, edges, 6).compact(torch.ones(4, dtype=torch.bool))


def test_a_layer_that_ignores_edge_weights_is_refused() -> None:
    gnn = MaskedGNN(Plain(6, 2, last=SAGEConv), path_edges(6), 6)
    with pytest.raises(GLTError, match="ignores edge weights"):
        gnn.probe(torch.rand(6, 6))
    MaskedGNN(Plain(6, 2), path_edges(6), 6).probe(torch.rand(6, 6))


# ---- MACs --------------------------------------------------------------------------------------------------------
def test_macs_by_hand() -> None:
    """n = 4, 6 directed entries + 4 self-loops; X with 3 non-zeros; W_0 [2, 3], W_1 [2, 2]."""
    x = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 0], [0, 3, 0]])
    first, last = torch.tensor([[1, 1, 1], [0, 1, 1]]), torch.tensor([[1, 0], [1, 1]])
    assert column_nonzeros(x).tolist() == [1, 2, 0] == column_nonzeros(x.to_sparse_csr()).tolist()
    # transforms: 1*1 + 2*2 + 0*2 = 5 and 4*3 = 12; propagations: 10*2 twice
    assert inference_macs([first, last], 6, 4, x) == 5 + 12 + 40
    assert inference_macs([first, last], 6, 4) == 4 * 5 + 12 + 40
    assert saving(100, 25) == 0.75
    with pytest.raises(GLTError, match="input columns"):
        inference_macs([last], 6, 4, x)


def test_propagations_of_the_models() -> None:
    assert propagations(GCN(6, 2, hidden=8)) == [(8, True), (2, True)] == propagations(Plain(6, 2))
    assert propagations(GIN(6, 2, hidden=8)) == [(8, False), (2, False)]
    assert propagations(UGSGIN(6, 2, hidden=8)) == [(8, False), (2, False)]  # its head sums over no edge
    assert propagations(GAT(6, 2, hidden=8, heads=4)) == [(8, True), (2, True)]
    assert propagations(Plain(6, 2, last=SAGEConv)) is None and propagations(nn.Linear(2, 2)) is None
