"""The step against plain PyTorch: composed loss, sub-batches, accumulation, probes, frozen statistics, noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait.data import Data, DataInfo, TensorSplit
from plait.declare.recipe import Recipe
from plait.distributed.world import World
from plait.errors import BadInput, RunFailed
from plait.planning.plan import make_plan
from plait.storage import progress
from plait.storage.directory import RunDirectory
from plait.storage.recorder import Recorder
from plait.training.trainer import Trainer


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.drop(torch.relu(self.norm(self.linear(x)))))


def toy(n: int = 40) -> Data:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)
    group = torch.arange(n) % 2
    split = lambda: TensorSplit({"input": x, "label": y, "group": group})
    return Data(
        DataInfo("classification", (5,), 3, 2, frozenset({"input", "label", "group", "index"})),
        split(),
        split(),
        split(),
    )


def trainer_for(path: Path, model: nn.Module, plugins: tuple[str, ...] = (), **table: Any) -> Trainer:
    values = {
        "data": {"name": "x:y"},
        "model": {"name": "x:y"},
        "device": "cpu",
        "plugins": {p: {} for p in plugins},
        **table,
    }
    recipe = Recipe.parse(values)
    directory = RunDirectory(path / "run")
    directory.create()
    plan = make_plan(recipe)
    recorder = Recorder(directory, progress.Silent())
    trainer = Trainer(recipe, plan.plugins, plan.composed, World(torch.device("cpu")), recorder)
    torch.manual_seed(0)
    trainer.build(toy(), model)
    return trainer


class Weigh(plait.Plugin):
    name, contract = "weigh", plait.CONTRACT_VERSION

    @plait.hookimpl
    def example_weights(self, batch: Any) -> Tensor:
        return 1.0 + batch["group"].float()


class Halve(plait.Plugin):
    name, contract = "halve", plait.CONTRACT_VERSION

    @plait.hookimpl
    def example_weights(self, batch: Any) -> Tensor:
        return torch.full((batch.size,), 0.5)


class Decay(plait.Plugin):
    name, contract = "decay", plait.CONTRACT_VERSION

    @plait.hookimpl
    def loss_terms(self, trainer: Any) -> dict[str, Tensor]:
        return {"l2": 0.1 * trainer.model.head.weight.pow(2).sum()}


class Bad(plait.Plugin):
    name, contract = "bad", plait.CONTRACT_VERSION

    @plait.hookimpl
    def objective(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.mean()


class Explode(plait.Plugin):
    name, contract = "explode", plait.CONTRACT_VERSION

    @plait.hookimpl
    def loss_terms(self, trainer: Any) -> dict[str, Tensor]:
        return {"boom": trainer.model.head.weight.sum() * (float("nan") if trainer.step > 2 else 0.0)}


def manual(model: nn.Module, batch: Any, weights: Tensor | float = 1.0) -> list[Tensor]:
    loss = (functional.cross_entropy(model(batch["input"]), batch["label"], reduction="none") * weights).mean()
    return list(torch.autograd.grad(loss, list(model.parameters())))


def grads(trainer: Trainer) -> list[Tensor]:
    return [p.grad.clone() for p in trainer.parameters]  # type: ignore[union-attr]


class Uniform(plait.Plugin):
    """A term that is weighted like the objective, and keeps what it was given."""

    name, contract = "uniform", plait.CONTRACT_VERSION
    seen: ClassVar[list[Tensor]] = []

    @plait.hookimpl
    def loss_terms(self, per_example: Tensor, weights: Tensor) -> dict[str, Tensor]:
        self.seen.append(weights)
        return {"square": (weights * per_example.square()).mean()}


def test_a_term_is_given_the_weights_of_its_pass(tmp_path: Path, install: Callable[..., None]) -> None:
    install(Weigh, Halve, Uniform)
    trainer = trainer_for(tmp_path, Net(), ("weigh", "halve", "uniform"))
    batch = next(trainer.train_stream)
    group = batch["group"].float()
    rows = torch.tensor([0, 3, 5])
    Uniform.seen.clear()
    for options, wanted in (
        ({}, 0.5 * (1 + group)),
        ({"without": ("weigh",)}, torch.full_like(group, 0.5)),
        ({"without": ("weigh", "halve")}, torch.ones_like(group)),
        ({"rows": rows}, 0.5 * (1 + group[rows])),
    ):
        report = trainer.gradients(batch, **options)
        assert torch.equal(Uniform.seen[-1], wanted)
        losses = report.per_example
        torch.testing.assert_close(report.loss, (wanted * (losses + losses.square())).mean())


def test_weights_multiply_and_terms_add(tmp_path: Path, install: Callable[..., None]) -> None:
    install(Weigh, Halve, Decay)
    trainer = trainer_for(tmp_path, Net(), ("weigh", "halve", "decay"))
    batch = next(trainer.train_stream)
    report = trainer.gradients(batch)
    weights = 0.5 * (1 + batch["group"])
    per_example = functional.cross_entropy(trainer.model(batch["input"]), batch["label"], reduction="none")
    total = (per_example * weights).mean() + 0.1 * trainer.model.head.weight.pow(2).sum()
    expected = torch.autograd.grad(total, list(trainer.model.parameters()))
    for got, want in zip(grads(trainer), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert set(report.terms) == {"decay/l2"}
    torch.testing.assert_close(report.per_example, per_example.detach())
    without = trainer.gradients(batch, without=("weigh",), probe=True)
    assert without.gradients is not None and not torch.equal(without.gradients[0], trainer.parameters[0].grad)  # type: ignore[arg-type]


def test_probe_leaves_gradients_and_is_the_same_gradient(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, Net())
    first, second = next(trainer.train_stream), next(trainer.train_stream)
    trainer.gradients(first)
    before = grads(trainer)
    probe = trainer.gradients(second, probe=True, freeze_statistics=True)
    assert all(torch.equal(a, b) for a, b in zip(before, grads(trainer), strict=True))
    trainer.gradients(second, freeze_statistics=True)
    assert probe.gradients is not None
    assert all(torch.equal(a, b) for a, b in zip(probe.gradients, grads(trainer), strict=True))  # type: ignore[arg-type]


def test_rows_scale_and_accumulate(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, Net())
    batch = next(trainer.train_stream)
    parts = [torch.arange(0, 10), torch.arange(10, 40)]
    for number, rows in enumerate(parts):
        trainer.gradients(batch, rows=rows, scale=0.5, accumulate=number > 0)
    expected = [manual(trainer.model, batch.take(rows)) for rows in parts]
    for got, a, b in zip(grads(trainer), *expected, strict=True):
        torch.testing.assert_close(got, 0.5 * a + 0.5 * b)


def test_accumulated_parts_equal_the_whole_batch_without_batchnorm(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    trainer = trainer_for(tmp_path, model, train={"accumulate": 3, "batch_size": 40})
    batch = next(trainer.train_stream)
    report = trainer.gradients(batch)
    for got, want in zip(grads(trainer), manual(model, batch), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(report.loss, functional.cross_entropy(model(batch["input"]), batch["label"]).detach())
    assert report.per_example.shape == (40,)


def test_frozen_statistics_change_no_buffer_but_use_batch_statistics(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, Net())
    batch = next(trainer.train_stream)
    before = {k: v.clone() for k, v in trainer.model.named_buffers()}
    trainer.gradients(batch, freeze_statistics=True)
    frozen = grads(trainer)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.named_buffers())
    trainer.gradients(batch)
    assert all(torch.equal(a, b) for a, b in zip(frozen, grads(trainer), strict=True))
    after = dict(trainer.model.named_buffers())
    assert after["norm.num_batches_tracked"] == 1 and not torch.equal(
        after["norm.running_mean"], before["norm.running_mean"]
    )
    assert trainer.model.norm.momentum == 0.1 and trainer.model.norm.track_running_stats


def test_replay_repeats_dropout(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, Net(0.5))
    batch = next(trainer.train_stream)
    first = trainer.gradients(batch, probe=True)
    again = trainer.gradients(batch, probe=True, replay=first)
    other = trainer.gradients(batch, probe=True)
    assert torch.equal(first.per_example, again.per_example)
    assert not torch.equal(first.per_example, other.per_example)


def test_objective_that_is_one_number_is_refused_by_name(tmp_path: Path, install: Callable[..., None]) -> None:
    install(Bad)
    trainer = trainer_for(tmp_path, Net(), ("bad",))
    with pytest.raises(BadInput, match=r"'bad'.*one number"):
        trainer.gradients(next(trainer.train_stream))


def test_nan_stops_with_step_and_plugin_and_keeps_the_last_checkpoint(
    tmp_path: Path, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Explode)
    (tmp_path / "own_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"checkpoint.every_steps": 1}
    with pytest.raises(RunFailed, match=r"step 3: the loss is nan, first seen in explode/boom"):
        plait.run(
            plugins=["explode"],
            data="tiny-images",
            model="own_nets:build",
            steps=5,
            settings=settings,
            out=tmp_path / "r",
        )
    directory = RunDirectory(tmp_path / "r")
    assert directory.saved_checkpoints()[-1].stem == "step-000000002"
    assert directory.events()[-1]["event"] == "failed"


NET = """
from torch import nn


def build(num_classes):
    net = nn.Sequential(nn.Flatten())
    net.add_module("head", nn.Linear(64, num_classes))
    return net
"""


def test_stacked_replicas_get_the_gradient_of_their_own_mean(tmp_path: Path, install: Callable[..., None]) -> None:
    """A model with a leading replica axis, losses [N, B], one backward: each replica as if trained alone (dbadfl)."""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,nik->nbk", x, self.weight)

    class PerReplica(plait.Plugin):
        name, contract = "per-replica", plait.CONTRACT_VERSION

        @plait.hookimpl
        def objective(self, outputs: Tensor, batch: Any) -> Tensor:
            label = batch["label"].expand(outputs.shape[0], -1)
            return functional.cross_entropy(outputs.transpose(1, 2), label, reduction="none")

    install(PerReplica)
    trainer = trainer_for(tmp_path, Stacked(), ("per-replica",))
    batch = next(trainer.train_stream)
    report = trainer.gradients(batch)
    assert report.per_example.shape == (4, batch.size)
    for replica in range(4):
        alone = trainer.model.weight[replica].detach().clone().requires_grad_()
        functional.cross_entropy(batch["input"] @ alone, batch["label"]).backward()
        torch.testing.assert_close(trainer.parameters[0].grad[replica], alone.grad)  # type: ignore[index]
