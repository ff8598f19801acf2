"""The README's code runs, a model learns."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from plait_fairsam.errors import FairsamError
from plait_fairsam.gradients import ModelGradients
from plait_fairsam.groups import check_outputs
from plait_fairsam.sam import FairSAM
from plait_fairsam.weights import AdaptiveWeights, TableWeights

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]


def test_the_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_model_width_is_checked():
    check_outputs(torch.zeros(4, 2), 2)
    with pytest.raises(FairsamError, match="last layer must have width 3"):
        check_outputs(torch.zeros(4, 2), 3)


@pytest.mark.parametrize("mode", ["weighted", "plain", "ascent_only", "per_group", "per_group_whole"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_small_problem_is_learned_in_every_mode(mode, adaptive):
    g = torch.Generator().manual_seed(0)
    x, s = torch.randn(256, 6, generator=g), (torch.rand(256, generator=g) < 0.2).long()
    y = (x[:, 0] * (1 - 2 * s) + 0.3 * x[:, 1] > 0).long()  # the groups' rules are opposite
    x = torch.cat([x, s[:, None].float(), x[:, :1] * s[:, None]], 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    step = FairSAM(model.parameters(), optimizer, perturbation=mode)
    weights = AdaptiveWeights(torch.bincount(s)) if adaptive else TableWeights.from_data(s, y)
    gradients = ModelGradients(model, nn.CrossEntropyLoss(reduction="none"))
    for _ in range(60):
        report = step.step(gradients.on(x, y, groups=s, weights=weights(s, y)), groups=s)
        if isinstance(weights, AdaptiveWeights):
            weights.update(report.per_example, s)
    correct = (model(x).argmax(1) == y).float()
    assert correct[s == 0].mean() > 0.9 and correct[s == 1].mean() > 0.85
