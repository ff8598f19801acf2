"""GroupDRO and the penalty against their formulas; presets are valid options."""

import math

import pytest
import torch

from plait_fairsam.baselines import GroupDRO, group_gap_penalty
from plait_fairsam.errors import FairsamError
from plait_fairsam.presets import BASELINES
from plait_fairsam.sam import PERTURBATIONS, FairSAM
from plait_fairsam.weights import WEIGHTS


def test_groupdro_is_algorithm_one():
    dro = GroupDRO([6, 2], eta_q=0.1)
    losses = torch.tensor([1.0, 3.0, 4.0], requires_grad=True)
    groups = torch.tensor([0, 0, 1])
    total = dro.loss(losses, groups)
    a, b = math.exp(0.2), math.exp(0.4)
    q = [a / (a + b), b / (a + b)]
    assert dro.q.tolist() == pytest.approx(q)
    assert float(total.detach()) == pytest.approx(2 * q[0] + 4 * q[1])
    total.backward()
    assert losses.grad.tolist() == pytest.approx([q[0] / 2, q[0] / 2, q[1]])
    with pytest.raises(FairsamError, match=r"must be \[B\]"):
        dro.loss(losses, groups[:2])


def test_groupdro_weights_give_the_same_objective_over_the_training_set():
    dro = GroupDRO([6, 2], eta_q=0.5)
    losses, groups = torch.rand(8), torch.tensor([0] * 6 + [1] * 2)
    dro.update(losses, groups)
    objective = dro.q[0] * losses[:6].mean() + dro.q[1] * losses[6:].mean()
    assert float((dro(groups) * losses).mean()) == pytest.approx(float(objective), rel=1e-6)


def test_groupdro_moves_q_to_the_worst_group_and_ignores_absent_ones():
    dro = GroupDRO([5, 5, 5], eta_q=0.5)
    for _ in range(200):
        dro.update(torch.tensor([0.1, 1.0, 0.2]), torch.tensor([0, 1, 2]))
    assert float(dro.q[1]) > 0.999
    ratio = float(dro.q[0] / dro.q[2])
    dro.update(torch.tensor([1.0]), torch.tensor([1]))
    assert float(dro.q[0] / dro.q[2]) == pytest.approx(ratio, rel=1e-5)


def test_penalty_is_the_gap_and_differentiable():
    losses = torch.tensor([1.0, 2.0, 5.0, 9.0], requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1])
    gap = group_gap_penalty(losses, groups)
    assert float(gap.detach()) == 5.5
    gap.backward()
    assert losses.grad.tolist() == [-0.5, -0.5, 0.5, 0.5]
    losses = losses.detach()
    assert float(group_gap_penalty(losses, 1 - groups)) == 5.5
    assert float(group_gap_penalty(losses, torch.tensor([0, 1, 1, 2]))) == 8.0
    assert float(group_gap_penalty(losses, torch.tensor([0, 0, 2, 2]), num_groups=3)) == 5.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_gap_of_many_examples_is_exact_in_every_dtype(dtype):
    """Counts above 2048 and sums above 65504 are beyond half precision."""
    losses = (torch.rand(70_001, generator=torch.Generator().manual_seed(0)) + 3 * (torch.arange(70_001) % 2)).to(dtype)
    groups = torch.arange(70_001) % 2
    wanted = losses[groups == 1].double().mean() - losses[groups == 0].double().mean()
    assert float(group_gap_penalty(losses, groups)) == pytest.approx(float(wanted), rel=1e-5)


def test_penalty_of_one_group_or_of_equal_groups_is_flat():
    for groups in (torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 1, 0])):
        losses = torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
        gap = group_gap_penalty(losses, groups, 2)
        gap.backward()
        assert float(gap.detach()) == 0 and losses.grad.tolist() == [0.0] * 4


def test_presets_cover_the_card_and_build():
    assert {"sgd", "reweighing", "kamiran", "sam", "asam", "groupdro", "penalty", "fairsam"} <= set(BASELINES)
    assert {preset["perturbation"] for name, preset in BASELINES.items() if "fairsam" in name} == set(PERTURBATIONS)
    for preset in BASELINES.values():
        assert preset["weights"] in (*WEIGHTS, "groupdro")
        step = {key: preset[key] for key in ("rho", "perturbation", "asam", "eta")}
        FairSAM([torch.zeros(2, requires_grad=True)], None, **step)
    with pytest.raises(TypeError):
        BASELINES["sam"]["rho"] = 1.0
