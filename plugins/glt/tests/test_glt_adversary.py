"""The maximising player: which edges go, the projected ascent, the implicit term against finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from plait_glt.adversary import ascend, delta_removed, implicit_term, unclipped
from plait_glt.errors import GLTError
from plait_glt.masked import MaskedGNN
from plait_glt.models import GCN
from plait_glt.tiny_graphs import karate_graph

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)


@calm
@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 10**6))
def test_delta_takes_the_largest_positive_gains_of_kept_edges(n: int, rho: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    gradient, mask = torch.randn(n, generator=rng), torch.rand(n, generator=rng)
    kept = torch.rand(n, generator=rng) < 0.7
    removed = delta_removed(gradient, mask * kept, kept, rho)
    gains = [(-float(mask[e] * gradient[e]), e) for e in range(n) if kept[e]]
    best = sorted(gains, reverse=True)[: round(rho * int(kept.sum()))]
    assert set(removed.nonzero().squeeze(1).tolist()) == {e for gain, e in best if gain > 0}


def test_delta_by_hand() -> None:
    gradient, mask = torch.tensor([-4.0, -1.0, -9.0, 5.0, -2.0]), torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
    kept = torch.tensor([True, True, False, True, True])
    assert delta_removed(gradient, mask, kept, 0.5).tolist() == [True, False, False, False, True]
    assert not bool(delta_removed(gradient, mask, kept, 0.0).any())
    assert not bool(delta_removed(gradient.abs(), mask, kept, 0.9).any())  # every removal would help
    with pytest.raises(GLTError, match="rho=1"):
        delta_removed(gradient, mask, kept, 1.0)
    with pytest.raises(GLTError, match="differ in shape"):
        delta_removed(gradient[:3], mask, kept, 0.1)


def test_delta_finds_the_edge_whose_removal_hurts() -> None:
    """First order against the loss itself: the gains order the true changes of the loss well."""
    graph = karate_graph()
    torch.manual_seed(0)
    gnn = MaskedGNN(GCN(34, 4, dropout=0.0), graph.edge_index, 34)

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(gnn(graph.x, graph.edge_index), graph.y)

    optimizer = torch.optim.Adam(gnn.network.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    start = loss()
    (gradient,) = torch.autograd.grad(start, gnn.edge_mask)
    removed = delta_removed(gradient, gnn.edge_mask.detach(), torch.ones(78, dtype=torch.bool), 0.05)
    assert int(removed.sum()) == 4
    change = torch.empty(78)
    for e in range(78):
        gnn.removed = torch.arange(78) == e
        change[e] = (loss() - start).detach()
    assert float(change[removed].min()) > float(change.quantile(0.7))
    gnn.removed = removed
    assert float(loss().detach()) > float(start.detach())


def test_ascent_is_projected() -> None:
    mask, gradient = torch.tensor([0.5, 0.99, 0.01, 0.5, 0.7]), torch.tensor([1.0, 5.0, -5.0, 2.0, 0.0])
    kept = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(ascend(mask, gradient, kept, 0.1), torch.tensor([0.6, 1.0, 0.0, 0.0, 0.7]))
    assert unclipped(mask, gradient, kept, 0.1).tolist() == [True, False, False, False, True]


def test_implicit_term_is_the_gradient_through_the_ascent_step() -> None:
    """d/dTheta of L(m^{t+1}(Theta), .) with m^{t+1} = clip(m + eta dL/dm(m, Theta)), by finite differences, float64."""
    graph = karate_graph()
    torch.manual_seed(1)
    gnn = MaskedGNN(GCN(34, 4, hidden=6, dropout=0.0).double(), graph.edge_index, 34)
    x, name = graph.x.double(), "network.convs.0.lin.weight"
    rng = torch.Generator().manual_seed(2)
    mask = 0.05 + 0.95 * torch.rand(78, generator=rng, dtype=torch.float64)
    theta = dict(gnn.named_parameters())[name].detach().clone()
    kept, step = torch.ones(78, dtype=torch.bool), 0.5

    def loss(edges: Tensor, weight: Tensor) -> Tensor:
        logits = functional_call(gnn, {"edge_mask": edges, name: weight}, (x, graph.edge_index))
        return torch.nn.functional.cross_entropy(logits, graph.y)

    def ascended(weight: Tensor) -> Tensor:
        leaf = mask.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, weight), leaf)
        return ascend(mask, gradient, kept, step)

    leaf, weight = mask.clone().requires_grad_(), theta.clone().requires_grad_()
    (before,) = torch.autograd.grad(loss(leaf, weight), leaf, create_graph=True)
    free = unclipped(mask, before, kept, step)
    moved = ascended(theta).requires_grad_()
    (after,) = torch.autograd.grad(loss(moved, theta), moved)
    (implicit,) = torch.autograd.grad(implicit_term(before, after, free, alpha=1.0, step=step), weight)
    direction = torch.randn(theta.shape, generator=rng, dtype=torch.float64)
    h = 1e-5
    through = (loss(ascended(theta + h * direction), theta) - loss(ascended(theta - h * direction), theta)) / (2 * h)
    assert float((implicit * direction).sum()) == pytest.approx(float(through), rel=1e-4)
    half = implicit_term(before.detach(), after, free, alpha=0.5, step=step)
    assert float(half) == pytest.approx(0.5 * step * float((after * before.detach())[free].sum()))
