"""Bounds of the surrogates, penalties by hand, and the hypergradient against finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plait_fairprune.errors import FairpruneError
from plait_fairprune.hypergradient import hypergradient
from plait_fairprune.options import FairpruneOptions
from plait_fairprune.relaxation import GapPenalty, kappa, penalised, signals

pytestmark = pytest.mark.smoke

BOUNDS = ("hinge", "exponential", "logistic")


def examples(seed: int, n: int = 40, classes: int = 2, groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % classes
    group = (torch.arange(n) // classes) % groups
    return outputs, labels, group


def exact(outputs: Tensor, labels: Tensor, groups: Tensor, measure: str) -> list[float]:
    """Signed gaps by counting, from predicted classes."""
    positive, right = outputs[:, 1] > outputs[:, 0], outputs.argmax(1) == labels
    hits, members = {
        "accuracy": (right, [torch.ones_like(right)]),
        "dp": (positive, [torch.ones_like(right)]),
        "eo": (positive, [labels == 1]),
        "eodds": (positive, [labels == 1, labels == 0]),
    }[measure]
    rates = [[hits[m & (groups == g)].double().mean() for g in (0, 1)] for m in members]
    return [float(one - zero) for zero, one in rates]


@given(st.floats(-8, 8), st.sampled_from(BOUNDS))
@settings(max_examples=200, deadline=None)
def test_kappa_is_above_and_delta_below_the_indicator(u: float, surrogate: str) -> None:
    value = torch.tensor(u, dtype=torch.float64)
    indicator = float(u > 0)
    assert float(kappa(value, surrogate)) >= indicator - 1e-12
    assert 1 - float(kappa(-value, surrogate)) <= indicator + 1e-12


@given(st.integers(0, 10_000), st.sampled_from(BOUNDS), st.sampled_from(("accuracy", "dp", "eo", "eodds")))
@settings(max_examples=120, deadline=None)
def test_the_relaxed_gap_bounds_the_gap(seed: int, surrogate: str, measure: str) -> None:
    outputs, labels, groups = examples(seed)
    wanted = exact(outputs, labels, groups, measure)
    for penalty in ("absolute", "hinge"):
        options = FairpruneOptions(surrogate=surrogate, penalty=penalty, measure=measure)
        value = float(GapPenalty.of(options, labels, groups, 2, 2)(outputs, labels, groups))
        assert value >= sum(map(abs, wanted)) - 1e-5
    signed = FairpruneOptions(surrogate=surrogate, penalty="signed", measure=measure)
    assert float(GapPenalty.of(signed, labels, groups, 2, 2)(outputs, labels, groups)) >= sum(wanted) - 1e-5


def test_the_paper_s_formula_by_hand() -> None:
    """F_A = 1/N sum u(s y f) / P(S = s) - 1 with u the hinge, of four examples."""
    difference = torch.tensor([0.5, -2.0, 3.0, -0.25])
    outputs = torch.stack([torch.zeros(4), difference], 1)
    labels, groups = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 0, 0, 1])
    options = FairpruneOptions(surrogate="hinge", penalty="signed")
    y, s = 2 * labels - 1, 2 * groups - 1
    share = torch.tensor([0.75, 0.75, 0.75, 0.25])
    wanted = ((1 + s * y * difference).clamp(min=0) / share).mean() - 1
    assert float(GapPenalty.of(options, labels, groups, 2, 2)(outputs, labels, groups)) == pytest.approx(float(wanted))


def test_sigmoid_gap_is_the_difference_of_group_means() -> None:
    outputs, labels, groups = examples(3)
    margin = signals(outputs, labels, "accuracy")[0][0]
    means = [torch.sigmoid(margin / 2)[groups == g].mean() for g in (0, 1)]
    options = FairpruneOptions(temperature=2.0)
    penalty = GapPenalty.of(options, labels, groups, 2, 2)
    assert float(penalty(outputs, labels, groups)) == pytest.approx(float((means[1] - means[0]).abs()), abs=1e-6)


def test_penalties_by_hand() -> None:
    upper, lower = torch.tensor(0.3), torch.tensor(-0.5)
    assert float(penalised(upper, lower, "signed")) == pytest.approx(0.3)
    assert float(penalised(upper, lower, "absolute", 0.1)) == pytest.approx(0.4)
    assert float(penalised(upper, lower, "hinge", 0.1)) == pytest.approx(0.2 + 0.4)


def test_several_groups_and_classes() -> None:
    outputs, labels, groups = examples(5, 60, classes=3, groups=3)
    penalty = GapPenalty.of(FairpruneOptions(), labels, groups, 3, 3)
    margin = signals(outputs, labels, "accuracy")[0][0]
    assert ((margin > 0) == (outputs.argmax(1) == labels)).all()
    means = [float(torch.sigmoid(margin[groups == g]).mean()) for g in range(3)]
    assert float(penalty(outputs, labels, groups)) == pytest.approx(max(means) - min(means), abs=1e-6)
    for options in ({"surrogate": "hinge"}, {"penalty": "signed"}):
        with pytest.raises(FairpruneError, match="surrogate = 'sigmoid' with penalty = 'absolute'"):
            GapPenalty.of(FairpruneOptions(**options), labels, groups, 3, 3)
    with pytest.raises(FairpruneError, match="needs two classes, not 3"):
        GapPenalty.of(FairpruneOptions(measure="eo"), labels, groups, 3, 3)


def test_a_batch_without_a_group_costs_nothing_and_gives_no_nan() -> None:
    outputs, labels, groups = examples(1)
    for surrogate in ("sigmoid", *BOUNDS):
        penalty = GapPenalty.of(FairpruneOptions(surrogate=surrogate), labels, groups, 2, 2)
        leaf = outputs.clone().requires_grad_(True)
        value = penalty(leaf, labels, torch.zeros_like(groups))
        value.backward()
        assert float(value) == 0
        assert bool(torch.isfinite(leaf.grad).all())
        assert not leaf.grad.any()


def test_what_the_data_cannot_give_is_refused() -> None:
    _, labels, groups = examples(1)
    with pytest.raises(FairpruneError, match="group 2 has no training example"):
        GapPenalty.of(FairpruneOptions(), labels, groups, 2, 3)
    with pytest.raises(FairpruneError, match="group 1 has no training example with label 1"):
        GapPenalty.of(FairpruneOptions(measure="eo"), labels * (groups == 0), groups, 2, 2)
    with pytest.raises(FairpruneError, match="1 group: a gap needs two"):
        GapPenalty.of(FairpruneOptions(), labels, groups * 0, 2, 1)


def test_parts_on_processes_give_the_gradient_of_the_whole() -> None:
    outputs, labels, groups = examples(8, 30)
    whole = outputs.clone().requires_grad_(True)
    options = FairpruneOptions()
    GapPenalty.of(options, labels, groups, 2, 2)(whole, labels, groups).backward()
    parts, shares = [slice(0, 10), slice(10, 30)], [10 / 15, 20 / 15]
    pieces: list[list[Tensor]] = []
    for part, share in zip(parts, shares, strict=True):
        mine: list[Tensor] = []

        def counted(tensor: Tensor, mine: list[Tensor] = mine) -> Tensor:
            mine.append(tensor)
            both = torch.bincount(groups, minlength=2).to(tensor.dtype)
            return both if len(mine) == 1 else tensor

        GapPenalty.of(options, labels, groups, 2, 2, total=counted, world=2)(
            outputs[part], labels[part], groups[part], share
        )
        pieces.append(mine)
    totals = [sum(together) for together in zip(*pieces, strict=True)]
    averaged = torch.zeros_like(outputs)
    for part, share in zip(parts, shares, strict=True):
        leaf = outputs[part].clone().requires_grad_(True)
        rest = iter(totals)
        penalty = GapPenalty.of(options, labels, groups, 2, 2, total=lambda _, rest=rest: next(rest), world=2)
        # a run multiplies the loss of a process by its share, and averages gradients over the processes
        (share * penalty(leaf, labels[part], groups[part], share)).backward()
        averaged[part] = leaf.grad / 2
    assert torch.allclose(averaged, whole.grad, atol=1e-7)


def test_the_direct_term_against_finite_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 2
    theta = [p.detach().clone() for p in model.parameters()]
    masks = [(torch.rand_like(t) > 0.4).to(t) for t in theta]

    def upper(factors: list[Tensor]) -> Tensor:
        named = dict(
            zip(dict(model.named_parameters()), (t * m for t, m in zip(theta, factors, strict=True)), strict=True)
        )
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    leaves = [(t * m).requires_grad_(True) for t, m in zip(theta, masks, strict=True)]
    named = dict(zip(dict(model.named_parameters()), leaves, strict=True))
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, named, (x,)), y)
    gu = torch.autograd.grad(loss, leaves)
    given = hypergradient(theta, gu)
    for tensor, (mask, g) in enumerate(zip(masks, given, strict=True)):
        for i in range(0, mask.numel(), 3):
            ends = []
            for sign in (1, -1):
                moved = [m.clone() for m in masks]
                moved[tensor].view(-1)[i] += sign * 1e-6
                ends.append(float(upper(moved)))
            assert float(g.view(-1)[i]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_the_implicit_term_against_a_lower_problem_that_is_solved() -> None:
    """F_l linear in z has no Hessian: theta*(m) = -(1/gamma) m c, and dF_u(m theta*(m))/dm is known by differences."""
    generator = torch.Generator().manual_seed(1)
    c, target, m = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.2 for _ in range(3))
    gamma = 2.0

    def upper(mask: Tensor) -> Tensor:
        return (mask * (-mask * c / gamma) - target).square().sum()

    theta = -m * c / gamma
    gu = 2 * (m * theta - target)
    (given,) = hypergradient([theta], [gu], [m], [c], gamma)
    for i in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[i] = 1e-6
        assert float(given[i]) == pytest.approx(float(upper(m + step) - upper(m - step)) / 2e-6, rel=1e-6)
