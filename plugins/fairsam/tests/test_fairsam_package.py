"""Imports stay light, public names exist, the README's code runs, a model learns."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import plait_fairsam
from plait_fairsam import AdaptiveWeights, FairSAM, FairsamError, ModelGradients, TableWeights
from plait_fairsam.groups import check_outputs

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_no_torch():
    code = "import sys, plait_fairsam, plait_fairsam.errors; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_every_public_name_resolves_and_others_do_not():
    for name in plait_fairsam.__all__:
        assert getattr(plait_fairsam, name) is not None
        assert name in dir(plait_fairsam)
    assert set(plait_fairsam._HOME_OF) == set(plait_fairsam.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = plait_fairsam.nonsense


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
