"""The auxiliary loss: check values of the card, POT as the oracle, the draw, skipped classes, gradients' reach."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait_glt.auxiliary import auxiliary_loss, draw_rows
from plait_glt.errors import GLTError
from plait_glt.masked import MaskedGNN
from plait_glt.models import GCN
from plait_glt.tiny_graphs import path_edges

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(seed: int, n: int, classes: int) -> Tensor:
    return torch.randn(n, classes, generator=generator(seed), dtype=torch.float64).mul(2).softmax(1)


def test_check_values_of_the_card() -> None:
    """Section 3. With two classes each distance is counted for both, so the loss is minus twice the value."""
    two = auxiliary_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), samples=0)
    assert float(two.loss) == pytest.approx(-2 * math.sqrt(2), abs=1e-5)
    four = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.49999, 0.50001]])
    for samples in (0, 2, 256):
        loss = auxiliary_loss(four, samples=samples, generator=generator())
        torch.testing.assert_close(loss.distances, torch.tensor([0.565685, 0.565685]), atol=3e-5, rtol=0)


def test_all_nodes_against_pot() -> None:
    ot = pytest.importorskip("ot", reason="POT is the oracle")
    z = outputs(1, 60, 4)
    loss = auxiliary_loss(z, samples=0)
    blurred = auxiliary_loss(z, samples=0, eps=0.002, max_iterations=20000, tolerance=1e-7)
    predicted = z.argmax(1)
    for c in range(4):
        inside, outside = z[predicted == c].numpy(), z[predicted != c].numpy()
        exact = ot.emd2([], [], ot.dist(inside, outside, metric="euclidean"))
        assert float(loss.distances[c]) == pytest.approx(exact, rel=1e-9)
        assert exact <= float(blurred.distances[c]) <= exact + 0.003
    assert float(loss.loss) == pytest.approx(-float(loss.distances.sum()))


def test_samples_of_everything_are_all_nodes() -> None:
    z = outputs(2, 50, 3)
    options = {"eps": 0.05, "max_iterations": 3000, "tolerance": 1e-10}
    whole = auxiliary_loss(z, samples=0, **options)  # type: ignore[arg-type]
    drawn = auxiliary_loss(z, samples=50, generator=generator(), **options)  # type: ignore[arg-type]
    blocked = auxiliary_loss(z, samples=0, block_entries=64, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(drawn.distances, whole.distances, atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(blocked.distances, whole.distances, atol=1e-8, rtol=1e-7)


def test_blocks_give_the_same_gradient() -> None:
    gradients = []
    for entries in (64, 1 << 24):
        z = outputs(3, 40, 3).requires_grad_()
        options = {"block_entries": entries, "tolerance": 1e-9, "max_iterations": 2000}
        auxiliary_loss(z, samples=0, eps=0.05, **options).loss.backward()  # type: ignore[arg-type]
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-8, rtol=1e-6)


def test_gradient_pushes_the_classes_apart() -> None:
    z = outputs(4, 40, 3)
    before = auxiliary_loss(z.requires_grad_(), samples=0)
    (gradient,) = torch.autograd.grad(before.loss, z)
    after = auxiliary_loss((z - 0.05 * gradient / gradient.norm()).detach(), samples=0)
    assert bool(after.loss < before.loss)


@calm
@given(st.integers(2, 40), st.integers(2, 6), st.integers(1, 50), st.integers(0, 10**6))
def test_draw_is_without_replacement_from_the_right_side(n: int, classes: int, samples: int, seed: int) -> None:
    predicted = torch.randint(0, classes, (n,), generator=generator(seed))
    sizes = torch.bincount(predicted, minlength=classes)
    wanted = ((sizes > 0) & (sizes < n)).nonzero().squeeze(1)
    if not len(wanted):
        return
    inside, a, outside, b = draw_rows(predicted.unsqueeze(1) == wanted, samples, generator(seed + 1))
    for k, c in enumerate(wanted.tolist()):
        for index, weight, member, size in (
            (inside[k], a[k], True, int(sizes[c])),
            (outside[k], b[k], False, n - int(sizes[c])),
        ):
            drawn = index[weight > 0]
            assert len(drawn) == min(samples, size) == len(set(drawn.tolist()))
            assert bool(((predicted[drawn] == c) == member).all())
            assert float(weight.sum()) == pytest.approx(1.0, abs=1e-5)


def test_draw_is_uniform() -> None:
    predicted = torch.tensor([0, 0, 0, 0, 1, 1])
    times = torch.zeros(6)
    rng = generator(5)
    for _ in range(3000):
        inside, _, outside, _ = draw_rows(predicted.unsqueeze(1) == 0, 1, rng)
        times[inside[0]] += 1
        times[outside[0]] += 1
    torch.testing.assert_close(times[:4], torch.full((4,), 750.0), atol=110, rtol=0)
    torch.testing.assert_close(times[4:], torch.full((2,), 1500.0), atol=140, rtol=0)


def test_one_predicted_class_is_skipped() -> None:
    """Card, trap 10 and "Edge cases"."""
    same = torch.tensor([[0.9, 0.05, 0.05]]).repeat(5, 1).requires_grad_()
    for samples in (0, 4):
        loss = auxiliary_loss(same, samples=samples, generator=generator())
        assert float(loss.loss) == 0.0 and not bool(loss.counted.any())
        loss.loss.backward()
    two = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    assert auxiliary_loss(two, samples=0).counted.tolist() == [True, True, False]


def test_same_generator_same_loss() -> None:
    z = outputs(6, 90, 3)
    first, again, other = (auxiliary_loss(z, samples=8, generator=generator(s)).loss for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_input() -> None:
    z = outputs(7, 10, 3)
    with pytest.raises(GLTError, match="eps=0"):
        auxiliary_loss(z, samples=0, eps=0.0)
    with pytest.raises(GLTError, match=r"needs a torch\.Generator"):
        auxiliary_loss(z)
    with pytest.raises(GLTError, match="1 of 10 nodes are not finite"):
        auxiliary_loss(torch.cat([z[:9], torch.full((1, 3), torch.nan)]), samples=0)
    with pytest.raises(GLTError, match="wd_samples=-1"):
        auxiliary_loss(z, samples=-1)


def test_reach_of_the_gradient_on_a_path_of_six() -> None:
    """Card, section 3: node 0 labelled, 2-layer GCN, directed masks."""
    edges = path_edges(6)
    for seed in range(20):  # first weights with which both classes are predicted
        torch.manual_seed(seed)
        gnn = MaskedGNN(GCN(6, 2, hidden=64, dropout=0.0), edges, 6, tied=False)
        logits = gnn(torch.eye(6), edges)
        if len(logits.argmax(1).unique()) == 2:
            break
    ce = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([0]))
    (gradient,) = torch.autograd.grad(ce, gnn.edge_mask, retain_graph=True)
    reached = {(int(s), int(t)) for s, t in edges.T[gradient != 0]}
    assert reached == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 2)}
    auxiliary = auxiliary_loss(logits.softmax(1), samples=0)
    assert bool(auxiliary.counted.any())
    (gradient,) = torch.autograd.grad(ce + 0.1 * auxiliary.loss, gnn.edge_mask)
    assert bool((gradient != 0).all())


# ---- classes of another kind ----------------------------------------------------------------------------------------
def test_classes_may_be_given_and_may_overlap() -> None:
    """Given the predicted classes nothing changes; a node may be in many classes, or in none."""
    z = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    predicted = torch.nn.functional.one_hot(z.argmax(1), 4).bool()
    for samples in (0, 6):
        ours = auxiliary_loss(z, predicted, samples=samples, generator=torch.Generator().manual_seed(1))
        default = auxiliary_loss(z, samples=samples, generator=torch.Generator().manual_seed(1))
        assert torch.equal(ours.loss, default.loss) and torch.equal(ours.distances, default.distances)
    # two labels in one dimension each, exactly: means of |z_i - z_j| over the one coupling there is
    points = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.1, 0.6]])
    loss = auxiliary_loss(points, points > 0.5, samples=0, eps=1e-3, max_iterations=500)
    first = ((points[2] - points[0]).norm() + (points[2] - points[1]).norm()) / 2
    second = ((points[0] - points[1]).norm() + (points[0] - points[2]).norm()) / 2
    torch.testing.assert_close(loss.distances, torch.stack([first, second]), rtol=1e-4, atol=1e-4)
    none = auxiliary_loss(points, torch.zeros(3, 2, dtype=torch.bool), samples=0)
    assert float(none.loss) == 0 and not none.counted.any()
    with pytest.raises(GLTError, match=r"must be bool .3, classes."):
        auxiliary_loss(points, torch.zeros(2, 2, dtype=torch.bool), samples=0)
