"""CL, TCL and TCCL: values by hand, loops as oracles, identities, gradients, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plait_flamefinder.errors import FlamefinderError
from plait_flamefinder.losses import (
    CentreLoss,
    MetricLosses,
    TripletCentreLoss,
    TripletCosineCentreLoss,
    cosine_distances,
    half_squared_distances,
)

pytestmark = pytest.mark.smoke

Z = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
Y = torch.tensor([0, 1])
C = torch.tensor([[1.0, 0.0], [0.0, 4.0]])


def drawn(n: int = 9, d: int = 5, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z, c = torch.randn(n, d, generator=g).double(), torch.randn(classes, d, generator=g).double()
    return z, torch.randint(classes, (n,), generator=g), c


def test_values_by_hand() -> None:
    # D(z0, c0) = 2, D(z0, c1) = (9 + 16) / 2 = 12.5; D(z1, c1) = 2, D(z1, c0) = (1 + 4) / 2 = 2.5
    assert CentreLoss()(Z, Y, C).tolist() == [2, 2]
    assert TripletCentreLoss(5)(Z, Y, C).tolist() == [0, 4.5]
    assert TripletCentreLoss(11)(Z, Y, C).tolist() == [0.5, 10.5]
    # z0 lies along c0 and across c1: S = 0 and 1; z1 the other way round
    assert TripletCosineCentreLoss(0.5)(Z, Y, C).tolist() == [0, 0]
    assert TripletCosineCentreLoss(1.25)(Z, Y, C).tolist() == [0.25, 0.25]
    diagonal = torch.tensor([[1.0, 1.0]])
    # at 45 degrees to both centres the two distances are equal, so the margin stays
    torch.testing.assert_close(TripletCosineCentreLoss(0.5)(diagonal, Y[:1], C), torch.tensor([0.5]))
    torch.testing.assert_close(cosine_distances(diagonal, C), torch.full((1, 2), 1 - math.sqrt(0.5)))


def test_weights_by_hand() -> None:
    w = torch.tensor([2.0, 0.5])
    assert half_squared_distances(Z, C, w).tolist() == [[4, 9 + 4], [1 + 1, 1]]
    # sqrt(w) z = (3 sqrt 2, 0), sqrt(w) c1 = (0, 4 sqrt .5): still at right angles
    torch.testing.assert_close(cosine_distances(Z, C, w), torch.eye(2).flip(0))
    each = torch.tensor([[2.0, 0.5], [1.0, 3.0]])
    assert half_squared_distances(Z, C, each).tolist() == [[4, 13], [0.5 + 6, 6]]


@pytest.mark.parametrize("weighted", [False, True])
def test_against_loops(weighted: bool) -> None:
    z, y, c = drawn()
    w = torch.rand(5, generator=torch.Generator().manual_seed(1)).double() + 0.1 if weighted else torch.ones(5).double()
    given = w if weighted else None

    def half(a: Tensor, b: Tensor) -> float:
        return sum(float(w[j]) * float(a[j] - b[j]) ** 2 for j in range(5)) / 2

    def cosine(a: Tensor, b: Tensor) -> float:
        a, b = w.sqrt() * a, w.sqrt() * b
        return 1 - float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)

    losses = (
        CentreLoss()(z, y, c, given),
        TripletCentreLoss(2)(z, y, c, given),
        TripletCosineCentreLoss()(z, y, c, given),
    )
    for i in range(len(z)):
        own = int(y[i])
        others = [j for j in range(3) if j != own]
        wanted = (
            half(z[i], c[own]),
            max(0.0, half(z[i], c[own]) + 2 - min(half(z[i], c[j]) for j in others)),
            max(0.0, cosine(z[i], c[own]) + 0.5 - min(cosine(z[i], c[j]) for j in others)),
        )
        for loss, value in zip(losses, wanted, strict=True):
            assert float(loss[i]) == pytest.approx(value, abs=1e-12)


def test_identities() -> None:
    z, y, c = drawn()
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)).double())
    for loss in (CentreLoss(), TripletCentreLoss(5), TripletCosineCentreLoss(0.5)):
        torch.testing.assert_close(loss(z @ turn, y, c @ turn), loss(z, y, c))  # a rotation changes nothing
        torch.testing.assert_close(loss(z, y, c, torch.ones(5).double()), loss(z, y, c))
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(loss(z, order.argsort()[y], c[order]), loss(z, y, c))  # names of classes neither
    torch.testing.assert_close(TripletCosineCentreLoss()(7 * z, y, 3 * c), TripletCosineCentreLoss()(z, y, c))
    torch.testing.assert_close(CentreLoss()(z + 4, y, c + 4), CentreLoss()(z, y, c))
    torch.testing.assert_close(half_squared_distances(z, c), torch.cdist(z, c).square() / 2)


@pytest.mark.parametrize("loss", [CentreLoss(), TripletCentreLoss(5), TripletCosineCentreLoss(1.0)])
def test_gradients_against_differences(loss: torch.nn.Module) -> None:
    z, y, c = drawn()
    w = torch.rand(5, generator=torch.Generator().manual_seed(1)).double() + 0.1
    given = (z.requires_grad_(), c.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b, v: loss(a, y, b, v), given)


def test_gradients_are_finite_where_roots_have_none() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    c = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    w = torch.zeros(3, requires_grad=True)
    for loss in (CentreLoss(), TripletCentreLoss(), TripletCosineCentreLoss()):
        loss(z, torch.tensor([0, 1]), c, w).sum().backward()
        for given in (z, c, w):
            assert given.grad is not None
            assert bool(given.grad.isfinite().all())
    assert cosine_distances(torch.zeros(1, 3), torch.eye(3)).tolist() == [[1, 1, 1]]


def test_a_batch_of_one_class_has_all_centres() -> None:
    z, _, c = drawn()
    y = torch.zeros(9, dtype=torch.int64)
    loss = TripletCentreLoss(5)(z, y, c)
    nearest = half_squared_distances(z, c)[:, 1:].amin(1)
    torch.testing.assert_close(loss, (half_squared_distances(z, c)[:, 0] + 5 - nearest).clamp_min(0))


def test_other_distances() -> None:
    """As those of pytorch-metric-learning: squared Euclidean ones, and an inverted one, a similarity."""
    z, y, c = drawn()
    squared = TripletCentreLoss(10, distance=lambda a, b: torch.cdist(a, b).square())
    torch.testing.assert_close(squared(z, y, c), 2 * TripletCentreLoss(5)(z, y, c))

    class Cosine:
        is_inverted = True

        def __call__(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T

    torch.testing.assert_close(TripletCentreLoss(0.5, Cosine())(z, y, c), TripletCosineCentreLoss(0.5)(z, y, c))
    with pytest.raises(FlamefinderError, match="takes no weights"):
        squared(z, y, c, torch.ones(5).double())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9, 5), (9,), (1, 5)), "K >= 2"),
        (((9, 5), (9,), (3, 4)), "do not fit"),
        (((9, 5), (8,), (3, 5)), "do not fit"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    z, y, c = torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64), torch.zeros(shapes[2])
    with pytest.raises(FlamefinderError, match=message):
        CentreLoss()(z, y, c)


def test_a_margin_below_zero() -> None:
    with pytest.raises(FlamefinderError, match="margin = -1 must be >= 0"):
        TripletCentreLoss(-1)


@pytest.mark.parametrize("classes", [2, 5])
def test_all_three_in_one_function(classes: int) -> None:
    """Values and gradients of the modules, each taken backward by autograd; a vector of zeros is among them."""
    z, _, centres = drawn(16, 6, classes)
    z[3] = 0
    labels = torch.arange(16) % classes
    modules = (CentreLoss(), TripletCentreLoss(0.5), TripletCosineCentreLoss(0.3))
    margins = torch.tensor([[0.5], [0.3]], dtype=z.dtype)
    upstream = torch.randn(3, 16, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    upstream[:, 3] = 0  # the cosine of zero has no gradient of any use
    z.requires_grad_(), centres.requires_grad_()
    wanted = torch.stack([module(z, labels, centres) for module in modules])
    together = MetricLosses.apply(z, labels, centres, margins)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(together, wanted)
    assert 0 < int((wanted[1:] == 0).sum()) < 32  # some hinges act and some do not
    for own, other in zip(*(torch.autograd.grad(v, (z, centres), upstream) for v in (together, wanted)), strict=True):
        torch.testing.assert_close(own, other)
