"""Centres, attention, network, decoder, decisions and the library's loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from plait import DataInfo
from plait_flamefinder.attention import DistanceWeights, FeatureGate, seeded
from plait_flamefinder.centres import Centres, class_means, decided
from plait_flamefinder.encoder import LFE, FlameNet, Head, build_backbone, build_lfe
from plait_flamefinder.errors import FlamefinderError
from plait_flamefinder.finder import FlameFinder
from plait_flamefinder.losses import cosine_distances, half_squared_distances
from plait_flamefinder.options import Attention, BackboneOptions, FlamefinderOptions, LfeOptions
from plait_flamefinder.reconstruction import Decoder
from plait_flamefinder.terms import MetricTerms

pytestmark = pytest.mark.smoke


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(attention: bool = True, classes: int = 2) -> FlameNet:
    torch.manual_seed(0)
    return FlameNet(LFE(1, (4, 8)), 8 * 2 * 2, 6, classes, attention)


PATCHES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
LABELS = torch.tensor([0, 1] * 6)


# ---- centres ---------------------------------------------------------------------------------------------------------
def test_delta_by_hand() -> None:
    centres = Centres(3, 2, "delta", 0.5, generator())
    centres.values = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    z, labels = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0, 1])
    sums, counts = centres.pulls(z, labels)
    assert sums.tolist() == [[-6, 0], [0, 2], [0, 0]]  # (1 - 3) + (1 - 5), 2 - 0, nothing
    assert counts.tolist() == [2, 1, 0]
    centres.follow(sums, counts)
    # c0 + .5 * 6 / 3 = 2, c1 - .5 * 2 / 2 = 1.5, and the absent class stays
    assert centres.values.tolist() == [[2, 0], [0, 1.5], [5, 5]]
    assert not list(centres.parameters())


def test_delta_has_the_class_mean_as_its_fixed_point() -> None:
    centres = Centres(2, 4, "delta", 0.5, generator())
    z = torch.randn(10, 4, generator=generator(1))
    for _ in range(200):
        centres.follow(*centres.pulls(z, LABELS[:10]))
    torch.testing.assert_close(centres.values, class_means(z, LABELS[:10], 2))


def test_first_centres_have_the_card_s_spread() -> None:
    values = Centres(100, 100, "gradient", 0.5, generator()).values
    assert isinstance(values, nn.Parameter)
    assert float(values.detach().std()) == pytest.approx(0.5, rel=0.02)


def test_fewer_than_two_classes() -> None:
    with pytest.raises(FlamefinderError, match="num_classes = 1"):
        Centres(1, 4, "gradient", 0.5)
    with pytest.raises(FlamefinderError, match="num_classes = 1"):
        FlameNet(nn.Flatten(), 4, None, 1)


def test_means_of_an_absent_class_are_undefined() -> None:
    means = class_means(torch.ones(2, 3), torch.tensor([0, 0]), 2)
    assert means[0].tolist() == [1, 1, 1]
    assert bool(means[1].isnan().all())


# ---- attention -------------------------------------------------------------------------------------------------------
def test_a_gate_begins_as_the_identity_and_has_mean_one() -> None:
    gate, p = FeatureGate(8), torch.randn(5, 8, generator=generator())
    torch.testing.assert_close(gate(p), p)
    with torch.no_grad():
        gate.expand.weight.normal_(generator=generator())
    weights = gate.weights(p)
    torch.testing.assert_close(weights.mean(1), torch.ones(5))
    assert float(weights.detach().std()) > 0.1
    torch.testing.assert_close(gate(p), weights * p)


@pytest.mark.parametrize("attention", ["none", "embed", "per_loss_global", "per_loss_gated", "dacl"])
def test_weights_inside_the_distances(attention: Attention) -> None:
    weights = DistanceWeights(attention, 8, 10, ("CL", "TCL", "TCCL"))
    given = weights(torch.randn(5, 8, generator=generator()), torch.randn(5, 10, generator=generator(1)))
    if attention in ("none", "embed"):
        assert not given
        assert not list(weights.parameters())
    elif attention == "dacl":
        assert given.keys() == {"CL"}
        assert given["CL"].shape == (5, 8)
        assert bool(((given["CL"] > 0) & (given["CL"] < 1)).all())
    else:
        assert given.keys() == {"CL", "TCL", "TCCL"}
        for value in given.values():  # one everywhere at the start
            torch.testing.assert_close(value, torch.ones_like(value))


def test_layers_of_a_generator_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    with seeded(generator(3)):
        first = nn.Linear(3, 3).weight
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(generator(3)):
        assert torch.equal(nn.Linear(3, 3).weight, first)


# ---- network ---------------------------------------------------------------------------------------------------------
def test_one_logit_is_binary_cross_entropy() -> None:
    head, z = Head(6, 2), torch.randn(12, 6, generator=generator())
    assert head.linear.out_features == 1
    wanted = functional.binary_cross_entropy_with_logits(head.linear(z).squeeze(1), LABELS.float(), reduction="none")
    torch.testing.assert_close(functional.cross_entropy(head(z), LABELS, reduction="none"), wanted)
    assert torch.equal(head(z).argmax(1) == 1, head.linear(z).squeeze(1) > 0)
    assert Head(6, 3)(z).shape == (12, 3)


def test_the_card_s_encoder() -> None:
    network = build_lfe(LfeOptions(), DataInfo("classification", (1, 32, 32), 2))
    latent = network.latent(torch.zeros(3, 1, 32, 32))
    assert latent.features.shape == (3, 64 * 2 * 2)
    assert latent.z.shape == (3, 32)
    assert network(torch.zeros(3, 1, 32, 32)).shape == (3, 2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sides = (32, 16, 8, 4)
    work = sum(c.weight.numel() * side**2 for c, side in zip(convolutions, sides, strict=True)) + 256 * 32
    assert work == pytest.approx(2.7e6, rel=0.05)  # multiply-adds for a patch, as the card says
    doubled = build_lfe(LfeOptions(doubled=True), DataInfo("classification", (1, 32, 32), 2))
    assert sum(isinstance(m, nn.Conv2d) for m in doubled.modules()) == 8


def test_networks_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    info = DataInfo("classification", (1, 32, 32), 2)
    for name, numbers in (("resnet18", 512), ("mobilenet_v3_small", 1024)):
        network = build_backbone(BackboneOptions(network=f"torchvision:{name}"), info)
        assert network.num_features == numbers
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        assert first.in_channels == 1
        assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
    with pytest.raises(FlamefinderError, match="resnet19"):
        build_backbone(BackboneOptions(network="torchvision:resnet19"), info)


def test_networks_of_timm() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    info = DataInfo("classification", (1, 32, 32), 2)
    network = build_backbone(BackboneOptions(network="timm:test_resnet", latent=6), info)
    assert network.latent(torch.zeros(2, 1, 32, 32)).features.shape == (2, network.num_features)
    assert network.latent_dim == 6
    patches = torch.rand(12, 1, 32, 32, generator=generator()) - 1 + LABELS.reshape(-1, 1, 1, 1)
    finder = FlameFinder(network, torch.optim.Adam(network.parameters(), 1e-3), attention="none")
    losses = [finder.step(patches, LABELS) for _ in range(8)]
    assert losses[-1]["TCL"] < 0.5 * losses[0]["TCL"]
    assert finder.detector()(patches).shape == (12, 2)
    with pytest.raises(FlamefinderError, match="timm:no_such_network'"):
        build_backbone(BackboneOptions(network="timm:no_such_network"), info)
    with pytest.raises(FlamefinderError, match=r"the encoder cannot take patches of \[1, 32, 32\]"):
        build_backbone(BackboneOptions(network="timm:vit_tiny_patch16_224"), info)


def test_decoder() -> None:
    for side in (3, 4, 8, 12, 16, 28, 32, 33, 64):
        rebuilt = Decoder(6, 3, side)(torch.randn(2, 6, generator=generator()))
        assert rebuilt.shape == (2, 3, side, side)
        assert float(rebuilt.detach().abs().max()) <= 1
    assert [m.out_channels for m in Decoder(32, 1, 32).modules() if isinstance(m, nn.ConvTranspose2d)] == [16, 8, 1]
    whole, middle = Decoder(6, 1, 32), Decoder(6, 1, 28)
    middle.load_state_dict(whole.state_dict())
    z = torch.randn(2, 6, generator=generator())
    assert torch.equal(middle(z), whole(z)[..., 2:30, 2:30])


def test_decisions() -> None:
    z, c = torch.randn(12, 6, generator=generator()), torch.randn(2, 6, generator=generator(1))
    logits = torch.randn(12, 2, generator=generator(2))
    assert decided("head", logits, z, None) is logits
    near, angle = decided("center_l2", logits, z, c), decided("center_cos", logits, z, c)
    # the card's scores: D(z, c_0) - D(z, c_1)
    distances = half_squared_distances(z, c)
    torch.testing.assert_close(near[:, 1] - near[:, 0], distances[:, 0] - distances[:, 1])
    distances = cosine_distances(z, c)
    torch.testing.assert_close(angle[:, 1] - angle[:, 0], distances[:, 0] - distances[:, 1])


def test_the_network_decides_by_what_it_is_told() -> None:
    network = small().eval()
    centres = torch.randn(2, 6, generator=generator())
    z = network.latent(PATCHES).z
    plain = network(PATCHES)
    assert torch.equal(network.decide_by("center_cos", centres)(PATCHES), -cosine_distances(z, centres))
    assert "centres" in network.state_dict()
    probability = network.flame_probability(PATCHES)
    assert torch.equal(probability > 0.5, network(PATCHES).argmax(1) == 1)
    assert torch.equal(network.decide_by("head", None)(PATCHES), plain)


# ---- the engine and the library's loop -------------------------------------------------------------------------------
def test_gradient_shares_by_hand() -> None:
    network = small(attention=False)
    options = FlamefinderOptions(l_CL=2.0, l_TCL=0.0, l_TCCL=0.0)
    terms = MetricTerms(options, 2, network, generator())
    assert terms.gradient_shares(network.latent(PATCHES), LABELS) == {"CL": 1.0}
    terms = MetricTerms(FlamefinderOptions(l_CL=3.0, l_TCCL=0.0, m=1e3), 2, network, generator())
    latent = network.latent(PATCHES)
    # d CL / dz = 3 (z - c_y) / n; with a margin that always acts, d TCL / dz = (c_other - c_y) / n
    c, z = terms.centres.values.detach(), latent.z.detach()
    pull, push = 3 * (z - c[LABELS]).norm(), (c[1 - LABELS] - c[LABELS]).norm()
    shares = terms.gradient_shares(latent, LABELS)
    assert shares["CL"] == pytest.approx(float(pull / (pull + push)), rel=1e-5)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("attention", ["none", "embed", "per_loss_global", "per_loss_gated", "dacl"])
def test_a_loop_learns(attention: Attention) -> None:
    network = small(attention == "embed")
    finder = FlameFinder(network, torch.optim.Adam(network.parameters(), 1e-2), attention=attention, l_rec=0.1)
    bright = PATCHES + 0.8 * LABELS.reshape(-1, 1, 1, 1)
    losses = [finder.step(bright, LABELS) for _ in range(40)]
    assert losses[0].keys() == {"BCE", "CL", "TCL", "TCCL", "rec"}
    assert losses[-1]["BCE"] < 0.7 * losses[0]["BCE"]
    assert losses[-1]["TCL"] < losses[0]["TCL"]
    assert torch.equal(finder.detector()(bright).argmax(1), LABELS)


def test_a_loop_without_metric_losses_is_the_plain_one() -> None:
    networks = [small(), small()]
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in networks]
    finder = FlameFinder(networks[0], optimizers[0], baseline="bce")
    assert finder.terms is None
    for _ in range(3):
        finder.step(PATCHES, LABELS)
        optimizers[1].zero_grad()
        functional.binary_cross_entropy_with_logits(networks[1](PATCHES)[:, 1], LABELS.float()).backward()
        optimizers[1].step()
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loop_that_lacks_something() -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(FlamefinderError, match="give step"):
        FlameFinder(network, optimizer, l_rec=1, rec_target="rgb").step(PATCHES, LABELS)
    with pytest.raises(FlamefinderError, match="give detector"):
        FlameFinder(network, optimizer, centers="mean").detector()
    with pytest.raises(ValueError, match="m_c"):
        FlameFinder(network, optimizer, m_c=9)


def test_three_classes_and_one_alone_in_a_batch() -> None:
    network = small(classes=3)
    finder = FlameFinder(network, torch.optim.Adam(network.parameters(), 1e-2))
    values = [finder.step(PATCHES, torch.full((12,), 2)) for _ in range(20)]
    assert values[-1]["BCE"] < values[0]["BCE"]
    assert finder.detector()(PATCHES).shape == (12, 3)


def test_the_loop_follows_its_classes_with_delta() -> None:
    network = small()
    finder = FlameFinder(network, torch.optim.SGD(network.parameters(), 0.0), center_update="delta", centers="mean")
    assert finder.terms is not None
    assert finder.own is None
    for _ in range(200):  # a still network in training mode: the centres end at its class means
        finder.step(PATCHES, LABELS)
    means = class_means(network.latent(PATCHES).z.detach(), LABELS, 2)
    torch.testing.assert_close(finder.terms.centres.values, means, rtol=1e-3, atol=1e-4)
    detector = finder.detector(PATCHES, LABELS)
    torch.testing.assert_close(detector.centres, class_means(network.latent(PATCHES).z.detach(), LABELS, 2))
