"""Finding groups, and exactness of physical removal."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from plait_chase.channels import ChannelGroup, group_slots, rounded_alive
from plait_chase.errors import ChaseError
from plait_chase.groups import find_channel_groups
from plait_chase.residual import SmallResNet
from plait_chase.shrink import apply_shrink, bn_recalibrate, check_groups, shrink_plan, slice_tensor
from plait_chase.vgg import bn_vgg


class FlattenNet(nn.Module):
    """Convolutions with biases and no norm, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 3, padding=1)
        self.c2 = nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(5 * 4 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.relu(self.c2(x))
        out: Tensor = self.fc(x.view(x.size(0), -1))
        return out


class Undeclared(nn.Module):
    """Hides a model's channel_groups()."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Non-trivial norms and biases, so that a leak of a dead channel would show."""
    g = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.ndim == 1:
            tensor.data = torch.rand(tensor.shape, generator=g) + 0.5
        elif "running" not in name and tensor.ndim > 1:
            tensor.data = torch.randn(tensor.shape, generator=g) / tensor[0].numel() ** 0.5
    return model.eval()


def masked_and_shrunk(
    model: nn.Module, groups: tuple[ChannelGroup, ...], x: Tensor
) -> tuple[Tensor, Tensor, nn.Module]:
    g = torch.Generator().manual_seed(1)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    masked = deepcopy(model)
    parameters = dict(masked.named_parameters())
    alive = {}
    for group in groups:
        width = shapes[f"{group.producer}.weight"][0]
        keep = torch.rand(width, generator=g) < 0.5
        keep[int(torch.randint(width, (1,), generator=g))] = True
        alive[group.producer] = keep
        for slot in group_slots(group, shapes):
            if slot.tensor.rpartition(".")[0] not in group.all_norms:
                dead = (~keep).repeat_interleave(slot.repeat).nonzero()[:, 0]
                parameters[slot.tensor].data.index_fill_(slot.dim, dead, 0.0)
    small = deepcopy(masked)
    apply_shrink(small, shrink_plan(small, groups, alive))
    with torch.no_grad():
        return masked(x), small(x), small


@pytest.mark.parametrize(
    ("build", "shape", "residual", "count"),
    [
        (lambda: bn_vgg(), (1, 14, 14), False, 5),
        (lambda: SmallResNet("basic"), (1, 14, 14), False, 6),
        (lambda: SmallResNet("bottleneck"), (1, 14, 14), False, 12),
        (lambda: SmallResNet("basic"), (1, 14, 14), True, 9),
        (lambda: SmallResNet("bottleneck"), (1, 14, 14), True, 15),
        (lambda: torchvision.models.resnet18(num_classes=5), (3, 32, 32), True, 12),
        (lambda: torchvision.models.resnet50(num_classes=5), (3, 32, 32), False, 32),
    ],
)
def test_shrink_is_exact(build: Any, shape: tuple[int, ...], residual: bool, count: int) -> None:
    model = shake(build())
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    groups = find_channel_groups(model, x, prune_residual=residual)
    assert len(groups) == count
    assert any(g.members for g in groups) == residual
    masked, shrunk, small = masked_and_shrunk(model, groups, x)
    assert (masked - shrunk).abs().max() < 1e-5 * max(1.0, float(masked.abs().max()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == tuple(module.weight.shape[:2])
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.running_mean.numel() == module.weight.numel()


def test_flattened_linear_consumer_with_biases() -> None:
    model = shake(FlattenNet())
    x = torch.randn(2, 1, 8, 8)
    assert [g.producer for g in find_channel_groups(model, x)] == ["c1"]
    groups = find_channel_groups(model, x, into_linear=True)
    assert groups == (ChannelGroup("c1", None, ("c2",)), ChannelGroup("c2", None, ("fc",)))
    masked, shrunk, small = masked_and_shrunk(model, groups, x)
    assert (masked - shrunk).abs().max() < 1e-5
    assert small.fc.in_features == 16 * small.c2.out_channels


def test_tracing_finds_what_models_declare() -> None:
    for model in (bn_vgg(), SmallResNet("basic"), SmallResNet("bottleneck")):
        declared = find_channel_groups(model)
        traced = find_channel_groups(Undeclared(model))
        assert [(f"inner.{g.producer}", f"inner.{g.norm}") for g in declared] == [(g.producer, g.norm) for g in traced]


class Branches(nn.Module):
    """Everything that must be left alone, and one plain chain (a -> b)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.c = nn.Conv2d(8, 4, 1)
        self.group = nn.Conv2d(8, 8, 1, groups=2)
        self.gn = nn.GroupNorm(2, 8)
        self.d, self.e = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.stem(x))
        x = torch.cat([self.b(F.gelu(self.a(x))), self.c(x)], 1)
        x = self.e(self.gn(self.d(self.group(x))))
        x = self.twice(torch.softmax(self.twice(x), 1))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def test_everything_else_is_left_alone() -> None:
    x = torch.randn(2, 1, 5, 5)
    assert [g.producer for g in find_channel_groups(Branches(), x)] == ["a"]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = bn_vgg((8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        out: Tensor = self.net(x)
        return out


def test_untraceable_models_use_the_dependency_graph() -> None:
    with pytest.raises(ChaseError, match="cannot trace Untraceable"):
        find_channel_groups(Untraceable())
    model = Untraceable().train()
    before = deepcopy(model.state_dict())
    groups = find_channel_groups(model, torch.randn(2, 1, 8, 8))
    assert {g.producer for g in groups} == {"net.features.0", "net.features.3"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and model.training


def test_wrong_groups_are_refused() -> None:
    model = bn_vgg((8, 8, 6))
    x = torch.randn(2, 1, 8, 8)
    model.channel_groups = lambda: [
        ("features.0", "features.1", ("features.6",)),
        ("features.3", None, ("classifier",)),
    ]
    with pytest.raises(ChaseError, match="in_channels=6"):
        find_channel_groups(model)
    # Forgetting a reader is caught by running the model.
    model.channel_groups = lambda: [("features.0", "features.1", ("features.6",))]
    with pytest.raises(ChaseError):
        find_channel_groups(model, x)
    model.channel_groups = lambda: ["features.0"]
    with pytest.raises(ChaseError, match="is not"):
        find_channel_groups(model)
    with pytest.raises(ChaseError, match="no prunable channel group"):
        find_channel_groups(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ChaseError, match="example_input"):
        find_channel_groups(SmallResNet(), prune_residual=True)
    resnet = SmallResNet()
    leak = ChannelGroup("stem", "norm", ("blocks.0.conv1",))
    with pytest.raises(ChaseError):
        check_groups(resnet, [leak], torch.randn(2, 1, 8, 8))


def test_plan_refusals() -> None:
    model = bn_vgg((4, 4))
    groups = find_channel_groups(model)
    with pytest.raises(ChaseError, match="shape"):
        shrink_plan(model, groups, {"features.0": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ChaseError, match="no channel"):
        shrink_plan(model, groups, {"features.0": torch.zeros(4, dtype=torch.bool)})
    assert shrink_plan(model, groups, {"features.0": torch.ones(4, dtype=torch.bool)}) == {}
    tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    tied[1].weight = tied[0].weight
    with pytest.raises(ChaseError, match="tied"):
        shrink_plan(tied, [ChannelGroup("0", None, ("1",))], {"0": torch.tensor([True, False, True, True])})


def test_slices_keep_gradients_and_plan_fits_masks() -> None:
    model = bn_vgg((4, 4, 4))
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    keep = torch.tensor([True, False, False, True])
    plan = shrink_plan(model, find_channel_groups(model), {"features.0": keep})
    old = model.features[3].weight
    replaced = apply_shrink(model, plan)
    new = model.features[3].weight
    assert replaced["features.3.weight"][0] is old and replaced["features.3.weight"][1] is new
    assert torch.equal(new, old[:, keep]) and torch.equal(new.grad, old.grad[:, keep])
    assert torch.equal(slice_tensor(old, plan["features.3.weight"]), new)


def test_rounded_shrink_keeps_zero_channels_and_stays_exact() -> None:
    model = shake(bn_vgg((16, 16, 8)))
    groups = find_channel_groups(model)
    alive = {"features.0": torch.arange(16) < 5, "features.3": torch.arange(16) < 11}
    for group in groups:
        model.get_submodule(group.producer).weight.data[~alive[group.producer]] = 0
        model.get_submodule(group.consumers[0]).weight.data[:, ~alive[group.producer]] = 0
    small = deepcopy(model)
    apply_shrink(small, shrink_plan(small, groups, rounded_alive(alive, 8)))
    assert [small.features[i].out_channels for i in (0, 3)] == [8, 16]
    x = torch.randn(2, 1, 8, 8)
    assert (small(x) - model(x)).abs().max() < 1e-5


def test_recalibration_updates_statistics() -> None:
    model = bn_vgg((4, 4))
    data = [(torch.randn(16, 1, 8, 8) + 3, torch.zeros(16)) for _ in range(3)]
    bn_recalibrate(model, data)
    with torch.no_grad():
        first = torch.cat([model.features[0](x) for x, _ in data])
    assert torch.allclose(model.features[1].running_mean, first.mean((0, 2, 3)), atol=1e-4)
