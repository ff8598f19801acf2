"""Norms and clipping for stacked replicas, losses [N, B], and parameters with settings of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

import plait
from plait.data import Batch, Data, DataInfo, TensorSplit
from plait.data.streams import Stream
from plait.declare.recipe import Optimizer
from plait.errors import BadInput
from plait.hooks import hookimpl
from plait.loading import load_data
from plait.planning import discovery
from plait.training import optimizers, replicas


def test_norms_of_replicas_are_the_norms_of_each_network() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, 5, generator=generator), torch.randn(3, generator=generator)]
    wanted = [torch.cat([t[i].reshape(-1) for t in tensors]).norm() for i in range(3)]
    assert torch.allclose(replicas.norm(tensors, 3), torch.stack(wanted))
    assert torch.allclose(replicas.norm(tensors), torch.cat([t.reshape(-1) for t in tensors]).norm())
    factor = torch.tensor([1.0, 0.0, 2.0])
    for before, after in zip(tensors, replicas.scaled(tensors, factor), strict=True):
        assert torch.equal(after[1], torch.zeros_like(after[1])) and torch.equal(after[2], 2 * before[2])
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\) among the parameters of 4 replicas"):
        replicas.norm(tensors, 4)
    assert replicas.norm([], 2).shape == (2,)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize(
    ("dtypes", "size"),
    [
        ((torch.float16,), 1e4),
        ((torch.float16,), 1e-6),
        ((torch.bfloat16,), 3.0),
        ((torch.complex64,), 3.0),
        ((torch.float64, torch.float32, torch.bfloat16, torch.complex128), 3.0),
    ],
)
def test_norms_and_clipping_in_every_dtype(dtypes: tuple[torch.dtype, ...], size: float, count: int | None) -> None:
    """Oracle: complex double precision, each network by itself."""
    generator = torch.Generator().manual_seed(0)
    drawn = [size * torch.randn(3, 500, generator=generator, dtype=torch.complex128) for _ in dtypes]
    given = [(t if d.is_complex else t.real).to(d) for t, d in zip(drawn, dtypes, strict=True)]

    def exact(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.to(torch.complex128).reshape(count or 1, -1) for t in tensors], 1)

    norms = exact(given).norm(dim=1)
    assert torch.allclose(replicas.norm(given, count).double().reshape(-1), norms, rtol=1e-6, atol=0)
    parameters = [nn.Parameter(torch.zeros_like(t)) for t in given]
    for p, t in zip(parameters, given, strict=True):
        p.grad = t.clone()
    limit = float(norms.max()) / 2
    before = replicas.clip_norm(parameters, limit, count)
    assert torch.allclose(before.double().reshape(-1), norms, rtol=1e-5)
    gradients = [p.grad for p in parameters if p.grad is not None]
    factors = (limit / norms).clamp(max=1)[:, None]
    assert [g.dtype for g in gradients] == list(dtypes)
    low = max(torch.finfo(d).eps for d in dtypes)
    assert torch.allclose(
        exact(gradients), exact(given) * factors, rtol=2 * low + 1e-5 + 1e-6 / float(norms.min()), atol=6e-8
    )


def test_clipping_leaves_small_replicas_alone() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 1))]
    parameters[0].grad = torch.tensor([[3.0, 0, 0], [0.3, 0, 0]])
    parameters[1].grad = torch.tensor([[4.0], [0.4]])
    assert torch.allclose(replicas.clip_norm(parameters, 1.0, 2), torch.tensor([5.0, 0.5]))
    assert torch.allclose(parameters[0].grad, torch.tensor([[0.6, 0, 0], [0.3, 0, 0]]), atol=1e-6)
    assert torch.allclose(parameters[1].grad, torch.tensor([[0.8], [0.4]]), atol=1e-6)


def test_parameters_of_another_group_have_their_own_rate_and_decay() -> None:
    model = nn.Linear(3, 2)
    optimizer = optimizers.make_optimizer(
        Optimizer(name="sgd", lr=0.1, momentum=0, weight_decay=0.5), model.parameters()
    )
    optimizers.regroup(optimizer, model, ["bias"], {"lr": 1.0, "weight_decay": 0.0})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(model.weight, before["weight"] - 0.1 * (1 + 0.5 * before["weight"]))
    assert torch.allclose(model.bias, before["bias"] - 1.0)
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.1, 1.0]
    with pytest.raises(BadInput, match="no parameter 'nowhere'"):
        optimizers.regroup(optimizer, model, ["nowhere"], {"lr": 1.0})


# ---- a strategy over stacked replicas, and a readout --------------------------------------------------------------
class Stack(nn.Module):
    """Three networks as one."""

    replicas = 3

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {n.replace(".", "_"): nn.Parameter(torch.stack([p] * 3)) for n, p in network.named_parameters()}
        )
        self.network = [network.to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        """[N, B, ...] to [N, B, K]."""
        names = [n for n, _ in self.network[0].named_parameters()]
        stacked = {name: self.weights[name.replace(".", "_")] for name in names}
        return vmap(lambda w, inputs: functional_call(self.network[0], w, (inputs,)))(stacked, x)  # type: ignore[no-any-return]


class StackedBatch(Batch):
    """Fields [N, B, ...]."""


class Everybody(Stream):
    """One batch for each replica, a function of the number of the batch alone."""

    def __next__(self) -> Any:
        generator = torch.Generator().manual_seed(self.drawn)
        rows = torch.randint(len(self.split), (3, 4), generator=generator)
        self.drawn += 1
        return StackedBatch({k: v[rows] for k, v in self.split.fields.items()})  # type: ignore[attr-defined]


class TripletsPlugin(plait.Plugin):
    """Three networks in one run, for as many steps as it says itself."""

    name = "triplets"
    contract = plait.CONTRACT_VERSION

    def budget(self, steps: int, steps_per_epoch: int) -> int:
        """Two phases of the recipe's length."""
        return 2 * steps

    def breaks(self) -> frozenset[str]:
        """A parameter is a stack of three."""
        return frozenset({"parameters:single"})

    @hookimpl
    def transform_model(self, model: nn.Module) -> nn.Module:
        """Stack."""
        return Stack(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))

    @hookimpl
    def transform_data(self, data: Data) -> Data:
        """Draw a batch for each, and read their mean out when the whole is evaluated."""
        split = data.train
        split.stream = lambda name, seed, batch_size, **rest: Everybody(split, name, seed, batch_size)  # type: ignore[union-attr]
        data.forward = lambda model, batch: model(
            batch["input"] if batch["input"].ndim == 5 else batch["input"].expand(3, *batch["input"].shape)
        )
        data.readout = lambda raw, batch: raw if batch["label"].ndim == 2 else raw.mean(0)
        return data

    @hookimpl
    def loss_terms(self, raw: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """Sees all that was computed."""
        assert raw.shape == (3, 4, 4) and outputs is raw
        return {}

    @hookimpl
    def example_weights(self, batch: Batch) -> Tensor:
        """One for each example of each replica."""
        return (batch["label"] >= 0).float()

    @hookimpl
    def fit(self, trainer: plait.Trainer) -> None:
        """Twice the recipe's length, the second time from a fresh optimizer."""
        half: int = trainer.total_steps // 2
        if trainer.step < half:
            trainer.begin_phase(half)
        trainer.train_until(half)
        if trainer.step == half:
            trainer.begin_phase(half, fresh=True)
            assert trainer.best is None and not trainer.optimizer.state
        trainer.train_until(trainer.total_steps)


@pytest.fixture
def triplets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Known in this process."""
    item = discovery.examine(discovery.Installed("triplets", "test", "0"), TripletsPlugin)
    assert item.status == "ok", item.reason
    items = (*discovery.discover(), item)
    monkeypatch.setattr(discovery, "installed", lambda: items)
    return


@pytest.mark.usefixtures("triplets")
def test_stacked_replicas_train_like_separate_networks(tmp_path: Path) -> None:
    settings = {"optimizer.momentum": 0.5, "optimizer.weight_decay": 0.0, "scheduler.name": "constant"}
    settings |= {"optimizer.clip_norm": 0.5}
    trained = plait.run(
        plugins=["triplets"], data="tiny-images", model="tiny-cnn", steps=3, settings=settings, out=tmp_path / "run"
    )

    fields: Any = load_data(trained.recipe.data, 0).train
    stack: Any = trained.model
    assert isinstance(stack, Stack)
    torch.manual_seed(0)
    for replica in range(3):
        weight, bias = (_start(trained, name) for name in ("1_weight", "1_bias"))
        momentum: list[Tensor] = []
        for step in range(6):
            rows = torch.randint(len(fields), (3, 4), generator=torch.Generator().manual_seed(step))[replica]
            x, y = fields.fields["input"][rows], fields.fields["label"][rows]
            weight, bias = (t.detach().requires_grad_() for t in (weight, bias))
            loss = functional.cross_entropy(functional.linear(x.flatten(1), weight, bias), y)
            gradients = list(torch.autograd.grad(loss, [weight, bias]))
            whole = torch.cat([g.reshape(-1) for g in gradients]).norm()
            gradients = [g * (0.5 / (whole + 1e-6)).clamp(max=1) for g in gradients]
            fresh = not momentum or step == 3
            momentum = gradients if fresh else [0.5 * m + g for m, g in zip(momentum, gradients, strict=True)]
            weight, bias = (t - 0.05 * m for t, m in zip((weight, bias), momentum, strict=True))
        assert torch.allclose(stack.weights["1_weight"][replica], weight, atol=1e-6)
        assert torch.allclose(stack.weights["1_bias"][replica], bias, atol=1e-6)
    assert 0 <= trained.metrics["task/accuracy"] <= 100
    test = load_data(trained.recipe.data, 0).test.fields  # type: ignore[attr-defined]
    with torch.no_grad():
        outputs = stack(test["input"].expand(3, *test["input"].shape)).mean(0)
    right = outputs.argmax(1) == test["label"]
    assert trained.metrics["task/accuracy"] == pytest.approx(100 * float(right.double().mean()))


def _start(trained: plait.Run, name: str) -> Tensor:
    """The weights before the first step: the run's model is built again with its seed."""
    from plait.data.seeds import seed_everything
    from plait.loading import build_model

    seed_everything(0)
    info: DataInfo = load_data(trained.recipe.data, 0).info
    build_model(trained.recipe.model, info)
    stack = Stack(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    return stack.weights[name][0].detach()  # type: ignore[no-any-return,index]


@pytest.mark.usefixtures("triplets")
def test_one_network_only_is_refused_beside_stacked_ones() -> None:
    class Picky(plait.Plugin):
        name, contract = "picky", plait.CONTRACT_VERSION

        def needs(self) -> frozenset[str]:
            return frozenset({"parameters:single"})

        @hookimpl
        def loss_terms(self) -> dict[str, Tensor]:
            return {}

    items = (*discovery.installed(), discovery.examine(discovery.Installed("picky", "test", "0"), Picky))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "installed", lambda: items)
        plan = plait.plan(plugins=["picky", "triplets"], data="tiny-images", model="tiny-cnn")
        assert [r.rule for r in plan.refusals] == ["needs"]
        assert "'triplets' takes away" in plan.refusals[0].message


def test_the_conformance_kit_knows_a_batch_for_each_replica() -> None:
    from plait_authoring import problems

    batch = StackedBatch({"index": torch.zeros(3, 4, dtype=torch.int64)})
    assert problems.batch_size(batch) == 4 and problems.batch_shape(batch) == (3, 4)
    assert problems.batch_size(Batch({"index": torch.arange(5)})) == 5 and problems.batch_size({}) is None
    for good in (torch.ones(4), torch.ones(3, 4)):
        assert not list(problems.weights_problems(good, 4, (3, 4)))
    assert list(problems.weights_problems(torch.ones(3), 4, (3, 4)))
    assert list(problems.weights_problems(torch.ones(3, 4), 4, (4,)))


def test_a_field_that_is_no_tensor_goes_along_whole() -> None:
    class Graph:
        device = "cpu"

        def to(self, device: str, **_: Any) -> Graph:
            moved = Graph()
            moved.device = str(device)
            return moved

    graph = Graph()
    batch = Batch({"index": torch.arange(4), "graph": graph, "name": "cora"})
    assert batch.take(torch.tensor([1]))["graph"] is graph
    assert [len(part["index"]) for part in batch.chunks(2)] == [2, 2] and batch.chunks(2)[1]["graph"] is graph
    moved = batch.to("meta")
    assert moved["graph"].device == "meta" and moved["name"] == "cora" and moved["index"].device.type == "meta"
    split = TensorSplit({"label": torch.arange(3)})
    assert split.__getitems__([2])["label"].tolist() == [2]
