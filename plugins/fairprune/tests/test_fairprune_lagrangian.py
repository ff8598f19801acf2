"""Lambda by dual ascent: by hand, against cooper's own optimizer on a whole problem, and without cooper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plait
from plait_fairprune.bifp import BiFP
from plait_fairprune.errors import FairpruneError
from plait_fairprune.lagrangian import DualAscent
from plait_fairprune.options import FairpruneOptions
from plait_fairprune.relaxation import GapPenalty

pytestmark = pytest.mark.smoke

CPU = torch.device("cpu")


def test_the_multiplier_by_hand() -> None:
    pytest.importorskip("cooper")
    ascent = DualAscent(0.5, 0.1, CPU)
    x = torch.tensor(2.0, requires_grad=True)
    term = ascent.term(x - 1)
    assert float(term.detach()) == 0.5
    term.backward()
    assert float(x.grad) == 0.5  # lambda times the derivative, and none through lambda
    ascent.step()
    assert ascent.value == pytest.approx(0.6)
    ascent.step()  # nothing was seen since
    assert ascent.value == pytest.approx(0.6)
    ascent.term(torch.tensor(-100.0))
    ascent.step()
    assert ascent.value == 0.0  # an inequality


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 5, generator=generator)
    group = (torch.rand(128, generator=generator) < 0.4).long()
    return x, (x[:, 0] + x[:, 1] * group > 0).long(), group


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def test_a_training_is_that_of_cooper_s_own_optimizer() -> None:
    """The same network trained by cooper from end to end: SimultaneousOptimizer over problem, weights and lambda."""
    cooper = pytest.importorskip("cooper")
    x, label, group = data()
    options = {"sparsity": 0.0, "strength": 0.2, "dual_rate": 0.5, "tolerance": 0.05}
    ours, theirs = network(), network()
    bifp = BiFP(ours, torch.optim.SGD(ours.parameters(), lr=0.1), labels=label, groups=group, total_steps=30, **options)
    gap = GapPenalty.of(FairpruneOptions(strength=0.2), label, group, 2, 2)

    class Problem(cooper.ConstrainedMinimizationProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            multiplier = cooper.multipliers.DenseMultiplier(init=torch.tensor([0.2]))
            self.gap = cooper.Constraint(cooper.ConstraintType.INEQUALITY, multiplier=multiplier)

        def compute_cmp_state(self) -> Any:
            outputs = theirs(x)
            violation = (gap(outputs, label, group) - 0.05).reshape(1)
            loss = nn.functional.cross_entropy(outputs, label)
            return cooper.CMPState(loss, {self.gap: cooper.ConstraintState(violation=violation)})

    problem = Problem()
    whole = cooper.optim.SimultaneousOptimizer(
        problem,
        torch.optim.SGD(theirs.parameters(), lr=0.1),
        torch.optim.SGD(problem.dual_parameters(), lr=0.5, maximize=True),
    )
    values = []
    for _ in range(30):
        bifp.step((x, label, group))
        whole.roll()
        values.append(float(problem.gap.multiplier().detach()))
        assert bifp.ascent is not None
        assert bifp.ascent.value == pytest.approx(values[-1], abs=1e-6)
    assert min(values) != max(values)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_lambda_is_resumed_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("cooper")
    x, label, group = data()
    first, second = network(), network()
    runs = [
        BiFP(m, torch.optim.SGD(m.parameters(), lr=0.1), labels=label, groups=group, total_steps=20, dual_rate=1.0)
        for m in (first, second)
    ]
    for _ in range(12):
        runs[0].step((x, label, group))
    second.load_state_dict(first.state_dict())
    runs[1].load_state_dict(runs[0].state_dict())
    for bifp in runs:
        bifp.step((x, label, group))
    assert runs[0].ascent.value == runs[1].ascent.value != 1.0
    settings = {"data.classes": 2, "data.train": 64, "train.batch_size": 16}
    chosen = {"fairprune": {"baseline": "lagrangian", "sparsity": 0.6, "dual_rate": 1.0}}
    run = plait.run(
        plugins=chosen, data="tiny-images", model="tiny-cnn", steps=8, settings=settings, out=tmp_path / "r"
    )
    said = [event["values"] for event in run.directory.events() if "values" in event]
    course = [values["fairprune/multiplier"] for values in said if "fairprune/multiplier" in values]
    assert len(course) > 1
    assert min(course) >= 0


def test_without_cooper_it_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cooper", None)
    with pytest.raises(FairpruneError, match=r"cooper-optim: pip install 'plait-fairprune\[cooper\]'"):
        DualAscent(0.0, 0.1, CPU)
    with pytest.raises(plait.BadInput, match="cooper-optim") as caught:
        plait.run(plugins={"fairprune": {"baseline": "lagrangian", "sparsity": 0.6}}, data="tiny-images",
                  model="tiny-cnn", steps=4, settings={"data.classes": 2}, out=tmp_path / "run")  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
