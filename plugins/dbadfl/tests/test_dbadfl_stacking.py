"""N participants as one module: every implementation against N networks of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.training.frozen import evaluating
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.norms import group_count, with_group_norm
from plait_dbadfl.stacking import Stacked, flatten, unflatten_, usual_implementation

N, B, K = 4, 6, 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, K))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, bias=False),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K),
    )  # fmt: skip


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, K))


class Residual(nn.Module):
    """What zoo networks do between layers: arithmetic with numbers, sums, means over maps, functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, K)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.stem(images - 0.5))
        maps = functional.max_pool2d(maps + self.inner(maps), 2)
        logits: Tensor = self.head(self.dropout(maps).mean((2, 3)))
        return logits


BUILDERS: list[Callable[[], nn.Module]] = [mlp, cnn, Residual]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def different(build: Callable[[], nn.Module], implementation: str, norm: str = "group") -> Stacked:
    def network(i: int) -> nn.Module:
        torch.manual_seed(i)
        return build().double()

    stack = Stacked(
        build().double(), N, implementation=implementation, norm=norm, init="different", builder=network  # type: ignore[arg-type]
    )  # fmt: skip
    stack.eval()
    return stack


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(N, B, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(K, (N, B), generator=generator)


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


@pytest.mark.parametrize("implementation", ["vmap", "loop", "grouped"])
@pytest.mark.parametrize("build", BUILDERS)
def test_one_backward_gives_every_participant_its_own_gradient(
    build: Callable[[], nn.Module], implementation: str
) -> None:
    stacked, (images, labels) = different(build, implementation), batch()
    losses(stacked(images), labels).mean(-1).sum().backward()
    named = dict(stacked.stacked.named_parameters())
    for i in range(N):
        alone = stacked.replica(i)
        losses(alone(images[i]), labels[i]).mean().backward()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(named[name].grad[i], parameter.grad, rtol=1e-10, atol=1e-12)  # type: ignore[index]


@pytest.mark.parametrize("implementation", ["vmap", "loop", "grouped"])
def test_chosen_participants_and_shared_inputs(implementation: str) -> None:
    stacked, (images, _) = different(cnn, implementation), batch()
    nodes = torch.tensor([2, 0, 2])
    expected = torch.stack([stacked.replica(i)(images[j]) for j, i in enumerate([2, 0, 2])])
    torch.testing.assert_close(stacked(images[:3], nodes), expected)
    everybody = torch.stack([stacked.replica(i)(images[1]) for i in range(N)])
    torch.testing.assert_close(stacked(images[1], shared=True), everybody)
    torch.testing.assert_close(stacked(images[1], slice(1, 3), shared=True), everybody[1:3])


@pytest.mark.parametrize("implementation", ["vmap", "loop", "grouped"])
def test_momentum_sgd_on_the_stack_is_separate_optimizers(implementation: str) -> None:
    stacked, (images, labels) = different(mlp, implementation), batch()
    alone = [stacked.replica(i) for i in range(N)]
    arguments = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    together = torch.optim.SGD(stacked.parameters(), **arguments)
    separate = [torch.optim.SGD(module.parameters(), **arguments) for module in alone]
    for _ in range(4):
        together.zero_grad()
        losses(stacked(images), labels).mean(-1).sum().backward()
        together.step()
        for i, (module, optimizer) in enumerate(zip(alone, separate, strict=True)):
            optimizer.zero_grad()
            losses(module(images[i]), labels[i]).mean().backward()
            optimizer.step()
    for i, module in enumerate(alone):
        expected = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(stacked.flat()[i], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("implementation", ["vmap", "loop", "grouped"])
def test_batch_norm_keeps_statistics_per_participant(implementation: str) -> None:
    stacked, (images, _) = different(batch_normed, implementation, norm="batch"), batch()
    stacked.train()
    alone = [stacked.replica(i) for i in range(N)]
    for _ in range(2):
        outputs = stacked(images)
        expected = torch.stack([module(images[i]) for i, module in enumerate(alone)])
        torch.testing.assert_close(outputs, expected)
    stacked(images[:2], torch.tensor([3, 1]))
    alone[3](images[0]), alone[1](images[1])
    for i, module in enumerate(alone):
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(dict(stacked.stacked.named_buffers())[name][i], buffer)
    assert dict(stacked.stacked.named_buffers())["1.num_batches_tracked"].tolist() == [2, 3, 2, 3]


def test_batch_norm_becomes_group_norm_by_default() -> None:
    base = batch_normed()
    nn.init.normal_(base[1].weight)  # type: ignore[index]
    stacked = Stacked(base, N)
    assert [type(m).__name__ for m in stacked.base] == ["Conv2d", "GroupNorm", "ReLU", "Flatten", "Linear"]  # type: ignore[arg-type]
    assert not list(stacked.buffers())
    assert torch.equal(dict(stacked.stacked.named_parameters())["1.weight"][2], base[1].weight)  # type: ignore[index]
    assert [group_count(c) for c in (1, 3, 4, 8, 20, 64, 512)] == [1, 1, 1, 2, 5, 16, 32]
    inner = with_group_norm(nn.Sequential(nn.Sequential(nn.BatchNorm1d(8))))
    assert isinstance(inner[0][0], nn.GroupNorm)  # type: ignore[index]


def test_group_norm_on_vectors() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, K))

    images, _ = batch()
    results = [different(build, name)(images) for name in ("loop", "vmap", "grouped")]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_dropout_differs_between_participants() -> None:
    images, _ = batch()
    for implementation in ("vmap", "grouped", "loop"):
        stacked = Stacked(Residual().double(), N, implementation=implementation)  # type: ignore[arg-type]
        same = images[:1].expand(N, -1, -1, -1, -1)
        rows = stacked(same)
        assert not torch.allclose(rows[0], rows[1])
        stacked.eval()
        rows = stacked(same)
        torch.testing.assert_close(rows[0], rows[1])


def test_names_replicas_and_flat() -> None:
    stacked = Stacked(mlp(), N)
    assert [n for n, _ in stacked.named_parameters()] == [
        "stacked.1.weight", "stacked.1.bias", "stacked.3.weight", "stacked.3.bias",
    ]  # fmt: skip
    assert stacked.replicas == N
    assert stacked.parameter_count == 64 * 12 + 12 + 12 * K + K
    models = torch.randn(N, stacked.parameter_count)
    stacked.unflat(models)
    assert torch.equal(stacked.flat(), models)
    parameters = list(stacked.parameters())
    unflatten_(parameters, flatten(parameters).flip(0))
    assert torch.equal(stacked.flat(), models.flip(0))
    stacked.load_replica(0, stacked.replica(3))
    assert torch.equal(stacked.flat()[0], models[0])
    again = copy.deepcopy(stacked)
    again.load_state_dict(stacked.state_dict())
    assert torch.equal(again.flat(), stacked.flat())
    with pytest.raises(DbadflError, match=r"differs from the stacked network at '0.bias'"):
        stacked.load_replica(0, cnn())
    with pytest.raises(DbadflError, match="participant 4 is not one of"):
        stacked.replica(4)
    with pytest.raises(DbadflError, match="do not fit"):
        stacked.unflat(models[:, 1:])


def test_the_same_or_different_first_weights() -> None:
    base = mlp()
    first = torch.cat([p.detach().flatten() for p in base.parameters()])
    assert torch.equal(Stacked(base, N).flat(), first.expand(N, -1))
    before = torch.get_rng_state()
    drawn = Stacked(base, N, init="different", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(torch.unique(drawn.flat(), dim=0)) == N
    assert torch.equal(drawn.flat(), Stacked(base, N, init="different", seed=3).flat())


def test_frozen_parameters_stay_frozen() -> None:
    base = mlp()
    base[1].weight.requires_grad_(False)  # type: ignore[index]
    assert [p.requires_grad for p in Stacked(base, N).parameters()] == [False, True, True, True]


def test_auto_chooses_once_and_leaves_no_trace() -> None:
    base = nn.Sequential(batch_normed(), nn.Dropout(0.5))
    stacked, images = Stacked(base, N, norm="batch"), batch()[0].float()
    before, kept = torch.get_rng_state(), {n: b.clone() for n, b in stacked.named_buffers()}
    chosen = stacked.choose(images)
    assert chosen == stacked.implementation == min(stacked.timings, key=lambda how: stacked.timings[how])
    assert set(stacked.timings) == {"vmap", "loop", "grouped"}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in stacked.parameters())
    assert all(torch.equal(b, kept[n]) for n, b in stacked.named_buffers())


def test_auto_is_a_rule_and_measured_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    images = batch()[0].float()
    for build, pixels, want in (
        (mlp, 64, "grouped"),
        (cnn, 64, "grouped"),
        (lambda: nn.Sequential(nn.Unflatten(-1, (8, 1)), nn.Flatten(1), nn.Linear(64, K)), 64, "vmap"),
    ):
        stacked, before = Stacked(build(), N), torch.get_rng_state()
        assert stacked.settle(images) == want == usual_implementation(stacked.base, B * pixels)  # type: ignore[arg-type]
        assert not stacked.timings and torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr("plait_dbadfl.stacking.LARGE", B * 64 - 1)
    assert Stacked(cnn(), N).settle(images) == Stacked(cnn(), N).settle(images[0], shared=True) == "loop"
    trial = Stacked(mlp(), N, implementation="measured")
    trial(images)
    assert trial.implementation == min(trial.timings, key=lambda how: trial.timings[how])


@pytest.mark.parametrize("implementation", ["vmap", "grouped", "loop"])
def test_the_template_follows_modes_that_are_set_module_by_module(implementation: str) -> None:
    base = nn.Sequential(mlp(), nn.Dropout(0.5), nn.Dropout(0.5))
    base[2].eval()
    stacked, images = Stacked(base, N, implementation=implementation), batch()[0].float()  # type: ignore[arg-type]
    with evaluating(stacked):
        calm = stacked(images)
        assert torch.equal(calm, stacked(images))
    dropped = stacked(images)
    assert not torch.equal(dropped, calm) and stacked.base[1].training and not stacked.base[2].training  # type: ignore[index]
    # the second dropout is off, as its builder left it: what the first one keeps is twice as large, not four times
    kept = dropped != 0
    assert 0.2 < float(kept.float().mean()) < 0.8
    torch.testing.assert_close(dropped[kept], 2 * calm[kept])
    assert not stacked.eval().replica(0)[1].training and stacked.train().replica(0)[1].training  # type: ignore[index]
    assert Stacked(base.eval(), N).train().base[1].training  # type: ignore[index]


@pytest.mark.parametrize("implementation", ["vmap", "grouped", "loop"])
@pytest.mark.parametrize(("training", "tracking"), [(True, True), (True, False), (False, True), (False, False)])
def test_batch_norm_that_was_told_not_to_track_leaves_its_statistics(
    implementation: str, training: bool, tracking: bool
) -> None:
    base = nn.Sequential(nn.BatchNorm2d(1))
    stacked = Stacked(base, N, implementation=implementation, norm="batch").train(training)  # type: ignore[arg-type]
    stacked.base[0].track_running_stats = tracking  # type: ignore[index]
    twin = nn.BatchNorm2d(1).train(training)
    twin.track_running_stats = tracking
    images = batch()[0].float() + 3
    got = stacked(images)
    torch.testing.assert_close(got[2], twin(images[2]))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(stacked.get_buffer(f"stacked.0.{name}")[2], buffer)


class Impatient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, K)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.flatten(1))
        return out if out.sum() > 0 else -out


def test_what_vmap_refuses_is_named() -> None:
    images = batch()[0].float()
    stacked = Stacked(nn.Sequential(nn.Identity(), Impatient()), N, implementation="vmap")
    with pytest.raises(DbadflError, match=r"vmap refuses layer '1' \(Impatient\): .* Use implementation='loop'"):
        stacked(images)
    auto = Stacked(nn.Sequential(nn.Identity(), Impatient()), N)
    auto(images)
    assert auto.implementation == "loop"
    measured = Stacked(nn.Sequential(nn.Identity(), Impatient()), N, implementation="measured")
    measured(images)
    assert measured.implementation == "loop" and set(measured.timings) == {"loop"}
    with pytest.raises(DbadflError, match=r"cannot take inputs \(4, 6, 1, 8, 7\)"):
        Stacked(mlp(), N, implementation="vmap")(images[..., :7])


def test_what_grouped_refuses_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("1", nn.Bilinear(2, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.get_submodule("1")(x, x)
            return y

    with pytest.raises(DbadflError, match=r"no form of layer '1' \(Bilinear\)"):
        Stacked(Odd(), N, implementation="grouped")
    with pytest.raises(DbadflError, match="Impatient cannot be traced"):
        Stacked(Impatient(), N, implementation="grouped")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2, "implementation": "fast"}, "implementation 'fast'"),
        ({"n": 2, "norm": "layer"}, "norm='layer'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        Stacked(mlp(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(DbadflError, match="no parameters"):
        Stacked(nn.ReLU(), 2)
    with pytest.raises(DbadflError, match="are for 3 participants; the model has 2"):
        Stacked(mlp(), 2)(torch.rand(3, B, 64))


def test_a_deep_network_can_be_copied() -> None:
    layers = [layer for _ in range(300) for layer in (nn.Linear(3, 3), nn.ReLU())]
    stacked = Stacked(nn.Sequential(nn.Flatten(), *layers), 2, implementation="grouped")
    x = torch.rand(2, 4, 3)
    assert torch.equal(copy.deepcopy(stacked)(x), stacked(x))
