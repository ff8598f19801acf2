"""The library: exact sparsity at every step, weights that come back, a resumed training, a network that learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait_fairprune.bifp import BiFP
from plait_fairprune.errors import FairpruneError
from plait_fairprune.presets import BASELINES
from plait_fairprune.schedule import Schedule
from plait_fairprune.units import prunable_weights

pytestmark = pytest.mark.smoke


def points(n: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    group = (torch.rand(n, generator=generator) < 0.3).long()
    label = (x[:, 0] + 0.5 * x[:, 1] * group > 0).long()
    return x, label, group


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)
    )


def pruner(model: nn.Module, total: int = 40, **options: Any) -> BiFP:
    _, label, group = points()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    example = torch.zeros(2, 6)
    return BiFP(model, optimizer, labels=label, groups=group, total_steps=total, example=example, **options)


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(256, (64,), generator=generator)
    x, label, group = points()
    return x[rows], label[rows], group[rows]


def train(bifp: BiFP, first: int, last: int) -> None:
    for step in range(first, last):
        bifp.step(batch(step), batch(1000 + step))


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "fpgm"])
def test_sparsity_is_exact_after_every_step_and_pruned_weights_stay_zero(baseline: str) -> None:
    if baseline == "lagrangian":
        pytest.importorskip("cooper")
    model = network()
    dense = baseline in ("dense", "fair-dense")
    bifp = pruner(model, baseline=baseline, mask_every=2, **({} if dense else {"sparsity": 0.8}))
    schedule: Schedule = bifp.engine.schedule
    for step in range(40):
        bifp.step(batch(step), batch(1000 + step))
        latest = max((event for event in schedule.events if event <= step), default=None)
        alive = schedule.size if latest is None else schedule.kept(latest)
        masks = bifp.masks.mask
        assert sum(int(mask.sum()) for mask in masks.values()) == alive
        for name, parameter in model.named_parameters():
            if name in masks:
                pruned = masks[name] == 0
                assert not parameter[pruned].any()
                assert not parameter.grad[pruned].any()
                assert not bifp.optimizer.state[parameter]["momentum_buffer"][pruned].any()
    changed = [entry[2] for entry in bifp.engine.history]
    assert sum(changed) > 0 or dense
    assert all(entry[0] <= schedule.freeze for entry in bifp.engine.history)


def test_a_weight_that_comes_back_has_the_value_that_it_left_with() -> None:
    model = network()
    bifp = pruner(model, sparsity=0.7, density="constant", mask_every=1, mask_rate=1.0, dense_share=0.0)
    left: dict[tuple[int, int], float] = {}
    seen = 0
    before = [mask.clone() for mask in bifp.engine.masks]
    for step in range(12):
        weights = [weight.clone() for weight in bifp.engine.weights]
        if bifp.engine.due(step):
            bifp._select(batch(step), batch(1000 + step))
        for number, (mask, old) in enumerate(zip(bifp.engine.masks, before, strict=True)):
            for place in ((old == 1) & (mask == 0)).flatten().nonzero().flatten().tolist():
                left[number, place] = float(weights[number].flatten()[place])
            for place in ((old == 0) & (mask == 1)).flatten().nonzero().flatten().tolist():
                seen += 1
                assert float(bifp.engine.weights[number].flatten()[place]) == left[number, place]
        before = [mask.clone() for mask in bifp.engine.masks]
        bifp.engine.due = lambda step: False  # type: ignore[method-assign]
        bifp.step(batch(step))
        del bifp.engine.due
    assert seen > 0


@pytest.mark.parametrize("options", [{}, {"scores": "random"}, {"hypergradient": "random"}, {"structure": "channels"}])
@pytest.mark.parametrize("at", [5, 14, 30])
def test_a_resumed_training_has_the_same_bits(options: dict[str, Any], at: int) -> None:
    options = {"sparsity": 0.5, "mask_every": 2, **options}
    whole, first, second = network(), network(), network()
    train(pruner(whole, **options), 0, 40)
    bifp = pruner(first, **options)
    train(bifp, 0, at)
    again = pruner(second, **options)
    second.load_state_dict(first.state_dict())
    again.optimizer.load_state_dict(bifp.optimizer.state_dict())
    again.load_state_dict(bifp.state_dict())
    train(again, at, 40)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_mask_step_leaves_statistics_alone() -> None:
    model = network()
    bifp = pruner(model, sparsity=0.5, dense_share=0.0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    bifp._select(batch(0), batch(1))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_without_strength_and_mask_it_is_gradual_magnitude_pruning() -> None:
    """Masks against sorting the remembered weights by hand, and weights against a loop without this library."""
    ours, theirs = network(), network()
    train(pruner(ours, baseline="magnitude", sparsity=0.75, dense_share=0.5), 0, 40)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    names = prunable_weights(theirs)
    parameters = dict(theirs.named_parameters())
    masks = {name: torch.ones_like(parameters[name]) for name in names}
    for step in range(40):
        if step == 20:
            flat = torch.cat([parameters[name].detach().flatten() for name in names]).abs()
            threshold = flat.sort(descending=True).values[round(0.25 * len(flat)) - 1]
            with torch.no_grad():
                for name in names:
                    masks[name] = (parameters[name].abs() >= threshold).float()
                    parameters[name].mul_(masks[name])
                    optimizer.state[parameters[name]]["momentum_buffer"].mul_(masks[name])
        x, y, _ = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        for name in names:
            parameters[name].grad.mul_(masks[name])
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_penalty_lowers_the_gap() -> None:
    x, label, group = points()
    gaps = []
    for strength in (0.0, 5.0):
        model = network()
        train(pruner(model, 200, sparsity=0.5, strength=strength), 0, 200)
        right = (model.eval()(x).argmax(1) == label).double()
        gaps.append(abs(float(right[group == 0].mean() - right[group == 1].mean())))
    assert gaps[1] < gaps[0]


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(FairpruneError, match="there is nothing to prune"):
        prunable_weights(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))
    with pytest.raises(FairpruneError, match="include = 'head\\*' matches no parameter"):
        prunable_weights(network(), ("head*",))
    with pytest.raises(FairpruneError, match="fewer than the"):
        pruner(network(), sparsity=0.995, layer_floor=0.1)
    _, label, group = points()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FairpruneError, match="needs example="):
        BiFP(model, optimizer, labels=label, groups=group, total_steps=9, structure="channels")
    model = network()
    bifp = pruner(model, sparsity=0.5, dense_share=0.0)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(FairpruneError, match="scores are not finite"):
        bifp.step(batch(0))


def test_degradation_needs_and_uses_the_dense_network() -> None:
    x, label, group = points()
    options = {"sparsity": 0.5, "protocol": "paper", "measure": "degradation"}
    with pytest.raises(FairpruneError, match="call remember_dense before pruning begins, after step 8"):
        train(pruner(network(), **options), 0, 40)
    model = network()
    bifp = pruner(model, **options)
    train(bifp, 0, 8)
    bifp.remember_dense(x, label, group)
    assert model.training
    model.eval()
    margin = (model(x)[:, 1] - model(x)[:, 0]) * (2 * label - 1)
    wanted = [float(torch.sigmoid(margin[group == g]).mean().detach()) for g in (0, 1)]
    assert bifp.penalty.reference.tolist() == pytest.approx(wanted, abs=1e-6)
    # the dense network itself has lost nothing
    assert float(bifp.penalty(model(x), label, group).detach()) == pytest.approx(0, abs=1e-6)
    model.train()
    train(bifp, 8, 40)
