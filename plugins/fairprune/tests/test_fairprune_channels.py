"""Whole channels: the masked and the narrowed network are one; plain, residual, depthwise, flattened."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from plait_fairprune.bifp import BiFP
from plait_fairprune.channels import Channels
from plait_fairprune.errors import FairpruneError
from plait_fairprune.importance import fairgrape, fpgm, snip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 12, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.back = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.norm2(self.wide(self.depth(x))).relu())
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def network(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    if kind == "residual":
        model: nn.Module = Residual()
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(80, 3),
        )
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():  # fresh norms hide channels that are read although they are zero
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-1, 1)
    return model, x


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("last", [False, True])
def test_the_narrowed_network_computes_what_the_masked_one_does(kind: str, last: bool) -> None:
    model, x = network(kind)
    channels = Channels.of(model, x)
    assert sorted(channels.layers.values()) == ([5, 6] if kind == "plain" else [8, 12])
    kept = torch.rand(sum(channels.layers.values()), generator=torch.Generator().manual_seed(3)) > 0.4
    parameters = dict(model.named_parameters())
    masks = [torch.ones_like(parameters[name]) for name in channels.names]
    channels.write(kept, masks, last=last)
    model.eval()
    with torch.no_grad():
        for name, mask in zip(channels.names, masks, strict=True):
            parameters[name].mul_(mask)
        wanted = model(x)
        before = sum(p.numel() for p in model.parameters())
        narrow = channels.narrowed(model, x, kept)
        assert torch.allclose(narrow(x), wanted, atol=1e-5)
    assert sum(p.numel() for p in narrow.parameters()) < before


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_hypergradient_of_a_channel_is_the_derivative_by_a_factor_on_it(kind: str) -> None:
    model, x = network(kind)
    model = model.double().eval()
    x = x.double()
    y = torch.tensor([0, 1, 2, 0])
    channels = Channels.of(model, x)
    parameters = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, [parameters[name] for name in channels.names], allow_unused=True)
    products = [
        torch.zeros_like(parameters[name]) if g is None else parameters[name].detach() * g
        for name, g in zip(channels.names, gradients, strict=True)
    ]
    given = channels.sums(products)

    def at(channel: int, factor: float) -> float:
        masks = [torch.ones_like(parameters[name]) for name in channels.names]
        kept = torch.ones(len(given), dtype=torch.float64)
        kept[channel] = factor
        channels.write(kept, masks, last=False)
        named = {name: parameters[name] * mask for name, mask in zip(channels.names, masks, strict=True)}
        return float(nn.functional.cross_entropy(torch.func.functional_call(model, named, (x,)), y).detach())

    for channel in range(0, len(given), 3):
        assert float(given[channel]) == pytest.approx((at(channel, 1 + 1e-5) - at(channel, 1 - 1e-5)) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("baseline", ["bifp", "fpgm", "magnitude"])
@pytest.mark.parametrize("frozen", [False, True])
def test_training_ends_in_a_narrower_network(baseline: str, frozen: bool) -> None:
    model, _ = network("plain")
    for parameter in model[0].parameters():
        parameter.requires_grad_(not frozen)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 8, 8, generator=generator)
    label, group = torch.arange(64) % 3, (torch.arange(64) // 3) % 2
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    bifp = BiFP(
        model, optimizer, labels=label, groups=group, total_steps=20, example=x[:2], baseline=baseline,
        structure="channels", sparsity=0.5, mask_every=2,
    )  # fmt: skip
    for _ in range(20):
        bifp.step((x, label, group))
    small = bifp.export()
    assert sum(bifp.engine.kept) == round(0.5 * 11)
    assert small[0].out_channels + small[3].out_channels == round(0.5 * 11)
    with torch.no_grad():
        assert torch.allclose(small(x), model.eval()(x), atol=1e-5)


def test_networks_without_removable_channels_are_refused() -> None:
    with pytest.raises(FairpruneError, match="no channel that can be removed"):
        Channels.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.rand(2, 1, 8, 8))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no forward")

    with pytest.raises(FairpruneError, match="torch-pruning cannot follow Broken: no forward"):
        Channels.of(Broken(), torch.rand(2, 1, 8, 8))


def test_scores_of_the_rivals_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])]
    gradients = [[torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])], [torch.tensor([[3.0, -3.0]]), torch.tensor([0.0])]]
    assert snip(weights, gradients).tolist() == [2.0, 2.0, 3.0]
    # on a line at 0, 1, 5: distances 6, 5, 9, of mean 20/3
    assert torch.allclose(fpgm([torch.tensor([[0.0], [1.0], [5.0]])]), torch.tensor([0.9, 0.75, 1.35]))


def test_fairgrape_keeps_the_groups_shares() -> None:
    """Two groups with equal importance in all: the first two selected serve one group each."""
    weights = [torch.ones(4)]
    of_first = [[torch.tensor([3.0, 1.0, 0.0, 0.0])]]
    of_second = [[torch.tensor([0.0, 0.0, 1.0, 3.0])]]
    ranks = fairgrape(weights, [of_first, of_second], [4])
    assert set(ranks.argsort(descending=True)[:2].tolist()) == {0, 3}
    # one group alone is plain importance
    assert fairgrape(weights, [[[torch.tensor([1.0, 4.0, 2.0, 3.0])]]], [4]).tolist() == [1, 4, 2, 3]
