"""Real, short training runs: exact budgets, resume, slicing while training, baselines and refusals."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from plait_chase.channels import ChannelGroup
from plait_chase.chase import Chase, initialise
from plait_chase.config import ChaseConfig
from plait_chase.engine import ChaseEngine
from plait_chase.errors import ChaseError
from plait_chase.groups import find_channel_groups
from plait_chase.presets import BASELINES
from plait_chase.residual import SmallResNet
from plait_chase.vgg import bn_vgg

STEPS = 48
WIDTHS = (8, 8, "M", 16, 16)


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=dtype)[:, None] / 8 - 1, torch.tensor(data.target)


def make(
    model: nn.Module | None = None,
    sgd: bool = True,
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
    **options: Any,
) -> Chase:
    torch.manual_seed(0)
    model = (bn_vgg(WIDTHS) if model is None else model).to(dtype)
    initialise(model, generator=torch.Generator().manual_seed(3))
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        if sgd
        else torch.optim.AdamW(model.parameters(), 0.003)
    )
    options = {"exploration_interval": 4, "channel_interval": 8, **options}
    return Chase(model, optimizer, steps, **options)


def train(chase: Chase, first: int, last: int, data: tuple[Tensor, Tensor], clip: bool = False) -> None:
    images, labels = data
    for step in range(first, last):
        pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:32]
        chase.optimizer.zero_grad()
        F.cross_entropy(chase.model(images[pick]), labels[pick]).backward()
        if clip:
            chase.before_step()
            nn.utils.clip_grad_norm_(chase.model.parameters(), 1.0)
        chase.optimizer.step()
        chase.step()


def masked_zero(chase: Chase) -> bool:
    parameters = dict(chase.model.named_parameters())
    for name, mask in chase.masks.items():
        p = parameters[name]
        for t in (p, *chase.optimizer.state[p].values()):
            if isinstance(t, Tensor) and t.shape == p.shape and bool(t[mask == 0].any()):
                return False
    return True


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_ends_with_exact_counts(name: str) -> None:
    chase = make(**{"density": 0.1, **BASELINES[name]})
    engine = chase.engine
    train(chase, 0, STEPS, digits())
    nnz = sum(engine.nnz().values())
    assert nnz == engine.budget == (engine.total if name == "dense" else int(engine.total / 10))
    wanted = 16 if engine.config.channel_sparsity else 0
    assert engine.alive_channels == (wanted or engine.channels)
    assert masked_zero(chase)
    small = chase.shrink().eval()
    x = digits()[0][:64]
    chase.model.eval()
    with torch.no_grad():
        assert (small(x) - chase.model(x)).abs().max() < 1e-4
    if wanted:
        assert sum(small.get_submodule(g.producer).out_channels for g in engine.groups) == wanted


def test_it_learns_and_reports() -> None:
    chase = make(density=0.3, example_input=torch.zeros(2, 1, 8, 8), channel_sparsity=0.5, steps=200)
    data = digits()
    train(chase, 0, 200, data)
    chase.model.eval()
    accuracy = (chase.model(data[0]).argmax(1) == data[1]).double().mean().item()
    # chance is 0.1. Eight initialisations gave 0.80 to 0.90 here; which of them this one is depends on torch's version,
    # so the bound only tells learning from not learning. What accuracy is worth, the claims say.
    assert accuracy > 0.7
    report = chase.report()
    assert report["channel_sparsity"] == 0.5 and report["channels_alive"] == 16
    assert report["nnz"] == sum(row["nnz"] for row in report["layers"])
    assert report["density_inside"] > report["density"]
    assert report["macs_shrunk"] < report["macs_dense"]


def test_a_full_network_says_so() -> None:
    chase = make(density=0.6, channel_sparsity=0.6)
    train(chase, 0, STEPS, digits())
    report = chase.report()
    assert report["nnz"] == sum(chase.engine.layout.capacity().values()) < report["budget"]
    assert any("full" in note for note in report["notes"])


def test_dead_channels_never_come_back() -> None:
    chase = make(density=0.3)
    dead: dict[str, Tensor] = {n: ~a for n, a in chase.engine.alive.items()}
    for step in range(STEPS):
        train(chase, step, step + 1, digits())
        for group in chase.engine.groups:
            now = ~chase.engine.alive[group.producer]
            assert bool(now[dead[group.producer]].all())
            dead[group.producer] = now.clone()
            assert not chase.masks[f"{group.producer}.weight"][now].any()
            assert not chase.masks[f"{group.consumers[0]}.weight"][:, now].any()


def test_the_bound_is_kept_in_phase_a() -> None:
    chase = make(channel_sparsity=0.0, death_rate=0.05)
    engine = chase.engine
    for step in range(1, STEPS + 1):
        train(chase, step - 1, step, digits())
        if step % 4 == 0 and step < round(0.8 * STEPS):
            share = 0.1 + 0.05 * (1 + math.cos(math.pi * step / round(0.8 * STEPS))) / 2
            assert sum(engine.nnz().values()) == math.floor(share * engine.total)
        elif step >= 40:
            assert sum(engine.nnz().values()) == engine.budget


@pytest.mark.parametrize("shrink_during", [False, True])
@pytest.mark.parametrize("options", [{}, {"score": "random", "growth": "random"}])
def test_resume_is_bit_equal(shrink_during: bool, options: dict[str, Any]) -> None:
    data = digits()
    whole = make(shrink_during=shrink_during, **options)
    train(whole, 0, STEPS, data)
    first = make(shrink_during=shrink_during, **options)
    train(first, 0, 21, data)
    saved = deepcopy((first.state_dict(), first.model.state_dict(), first.optimizer.state_dict()))
    assert all(isinstance(v, (Tensor, int, float, str, bool)) for v in saved[0].values())
    second = make(shrink_during=shrink_during, **options)
    second.load_state_dict(saved[0])
    second.model.load_state_dict(saved[1])
    second.optimizer.load_state_dict(saved[2])
    train(second, 21, STEPS, data)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for name, mask in whole.masks.items():
        assert torch.equal(mask, second.masks[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sgd": False},
        {"score": "random", "growth": "random"},
        {"score": "umm-layer", "scope": "layer"},
        {"score": "kernel-density"},
        {"model": "resnet"},
    ],
)
def test_sliced_training_equals_masked_training(options: dict[str, Any]) -> None:
    data = digits(torch.float64)
    results = []
    for during in (False, True):
        kwargs = dict(options)
        if kwargs.pop("model", None):
            kwargs.update(
                model=SmallResNet(widths=(8, 12)),
                example_input=torch.zeros(2, 1, 8, 8, dtype=torch.float64),
                prune_residual=True,
                density=0.2,
            )
            kwargs["model"].double()
        chase = make(shrink_during=during, dtype=torch.float64, **kwargs)
        train(chase, 0, STEPS, data, clip=True)
        if during:
            small = chase.model
            assert all(bool(a.all()) for a in chase.engine.alive_now().values())
            removed = chase.engine.channels - chase.engine.alive_channels
            assert removed == chase.engine.channels // 2
        else:
            small = chase.shrink()
        results.append((small.state_dict(), chase.engine.alive, sum(chase.engine.nnz().values())))
    (masked, alive_a, nnz_a), (sliced, alive_b, nnz_b) = results
    assert nnz_a == nnz_b
    assert all(torch.equal(alive_a[n], alive_b[n]) for n in alive_a)
    for name, tensor in masked.items():
        assert tensor.shape == sliced[name].shape, name
        assert torch.allclose(tensor, sliced[name], atol=1e-8), name


def test_rounded_widths() -> None:
    chase = make(model=bn_vgg((16, 16, "M", 32, 32)), round_channels=4)
    train(chase, 0, STEPS, digits())
    assert all(int(a.sum()) % 4 == 0 for a in chase.engine.alive.values())
    assert 32 <= chase.engine.alive_channels < 32 + 3 * 4  # of 64; rounding keeps fewer than four more in a group


def test_biases_of_dead_channels_stay_zero() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    chase = make(model, density=0.3)
    train(chase, 0, STEPS, digits())
    dead = ~chase.engine.alive["0"]
    assert int(dead.sum()) == 4 and not model[0].bias[dead].any() and model[0].bias[~dead].all()
    assert chase.engine.total == sum(p.numel() for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("shrink_during", [False, True])
def test_removed_channels_are_compared_with_what_their_layer_held(shrink_during: bool) -> None:
    data = digits()
    chase = make(score="random", density=0.3, shrink_during=shrink_during)
    wanted = 0
    for step in range(STEPS):
        before = {name: mask.flatten(1).sum(1) for name, mask in chase.masks.items() if mask.ndim > 1}
        alive = {name: kept.clone() for name, kept in chase.engine.alive.items()}
        now = {name: kept.clone() for name, kept in chase.engine.alive_now().items()}
        train(chase, step, step + 1, data)
        for name, after in chase.engine.alive.items():
            held = torch.zeros(len(after))
            held[alive[name]] = before[f"{name}.weight"][now[name]].float()
            for channel in (alive[name] & ~after).nonzero()[:, 0]:
                others = held[alive[name]] - held[channel]
                wanted += int((others > 0).sum() > (others < 0).sum())
    gone = chase.engine.channels - chase.engine.alive_channels
    assert gone and chase.engine.removed_sparser == wanted / gone
    assert math.isnan(make().engine.removed_sparser)
    by_density = make(score="connection-density", density=0.3)
    train(by_density, 0, STEPS, data)
    assert by_density.engine.removed_sparser > max(0.7, chase.engine.removed_sparser)


def test_needs_gradient_only_when_growing() -> None:
    masks = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    config = ChaseConfig(density=0.5, channel_sparsity=0.0, exploration_interval=5, channel_interval=5)
    engine = ChaseEngine(config, 20, masks)
    engine.start()
    asked: list[int] = []
    for step in range(1, 21):

        def gradient(name: str, step: int = step) -> Tensor:
            asked.append(step)
            return torch.ones(4, 4)

        engine.update(step, {k: torch.randn(4, 4) for k in masks}, gradient)
    assert sorted(set(asked)) == [t for t in range(1, 21) if engine.needs_gradient(t)] == [5, 10, 15]


def test_non_finite_is_refused_by_name_and_changes_nothing() -> None:
    chase = make(density=0.3)
    train(chase, 0, 3, digits())
    before = {n: m.clone() for n, m in chase.masks.items()}
    for poison in ("weight", "gradient"):
        broken = {n: p.detach().clone() for n, p in chase.model.named_parameters()}
        grads = {n: torch.ones_like(p) for n, p in broken.items()}
        (broken if poison == "weight" else grads)["features.3.weight"].view(-1)[7] = float("nan")
        with pytest.raises(ChaseError, match=f"{poison} 'features.3.weight'"):
            chase.engine.update(4, broken, grads.__getitem__)
    assert all(torch.equal(before[n], m) for n, m in chase.masks.items()) and chase.engine.step == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0.0"),
        ({"density": 1.5}, "density=1.5"),
        ({"channel_sparsity": 1.0}, "channel_sparsity=1.0"),
        ({"channel_sparsity": -0.1}, "channel_sparsity=-0.1"),
        ({"min_layer_factor": 0.0}, "min_layer_factor=0.0"),
        ({"min_layer_factor": 1.1}, "min_layer_factor=1.1"),
        ({"exploration_interval": 0}, "exploration_interval=0"),
        ({"exploration_interval": STEPS + 1}, "exploration_interval=49"),
        ({"channel_interval": 0}, "channel_interval=0"),
        ({"channel_interval": STEPS + 1}, "channel_interval=49"),
        ({"removal_end": 1.01}, "removal_end=1.01"),
        ({"score": "best"}, "score='best'"),
        ({"growth": "up"}, "growth='up'"),
        ({"scope": "world"}, "scope='world'"),
        ({"distribution": "flat"}, "distribution='flat'"),
        ({"channel_sparsity": 0.99}, "at most 0.9"),
        ({"colour": 1}, "unknown option colour"),
        ({"exclude": ("nothing.weight",)}, "nothing.weight"),
        ({"model": nn.Linear(4, 2)}, "no prunable channel group"),
        ({"groups": ()}, "no prunable channel group"),
        ({"groups": (ChannelGroup("features.0", None, ("features.10",)),)}, "in_channels=16"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChaseError, match=message):
        make(**options)


def test_resume_refusals_and_order() -> None:
    state = make(density=0.1).state_dict()
    with pytest.raises(ChaseError, match="budget"):
        make(density=0.2).load_state_dict(state)
    with pytest.raises(ChaseError, match="total="):
        make(bn_vgg((8, 8, "M", 16, 12))).load_state_dict(state)
    chase = make()
    weights = dict(chase.model.named_parameters())
    chase.engine.update(3, weights)
    with pytest.raises(ChaseError, match="step=3"):
        chase.engine.update(3, weights)
    with pytest.raises(ChaseError, match="dense gradients"):
        chase.engine.update(4, weights)


def test_missing_gradient_is_explained() -> None:
    chase = make(channel_sparsity=0.0)
    train(chase, 0, 3, digits())
    chase.optimizer.zero_grad()
    with pytest.raises(ChaseError, match="before zero_grad"):
        chase.step()


def test_rigl_and_set_drop_and_grow_the_same_number_per_layer() -> None:
    for name in ("rigl", "set"):
        chase = make(**{"density": 0.2, **BASELINES[name]})
        start = chase.engine.nnz()
        train(chase, 0, 3, digits())
        before = {n: m.clone() for n, m in chase.masks.items()}
        train(chase, 3, 4, digits())
        assert chase.engine.nnz() == start
        rate = 0.3 if name == "set" else 0.3 * (1 + math.cos(math.pi * 4 / STEPS)) / 2
        for layer, mask in chase.masks.items():
            left = int(((before[layer] != 0) & (mask == 0)).sum())
            assert left <= math.ceil(rate * start[layer])
        assert any(bool((before[n] != m).any()) for n, m in chase.masks.items())


def test_embedded_model_has_the_cards_numbers() -> None:
    model = bn_vgg()
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == 287_264
    groups = find_channel_groups(model)
    assert sum(model.get_submodule(g.producer).out_channels for g in groups) == 320
    chase = Chase(model, torch.optim.SGD(model.parameters(), 0.1), 600)
    assert chase.engine.budget == 28_726
    assert (chase.engine.schedule.exploration_interval, chase.engine.schedule.channel_interval) == (25, 50)


@pytest.mark.parametrize(("settings", "short"), [({}, False), ({"channel_interval": 48}, True)])
def test_a_shortfall_after_the_last_growth_is_noted(settings: dict[str, Any], short: bool) -> None:
    chase = make(removal_end=1.0, channel_sparsity=0.5, **settings)
    train(chase, 0, STEPS, digits())
    assert chase.engine.alive_channels == 16
    report = chase.report()
    assert report["nnz"] <= report["budget"]
    assert (report["nnz"] < report["budget"]) is short
    assert any("after the last growth" in note for note in report["notes"]) is short
