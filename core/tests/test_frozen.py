"""A frozen pass leaves every stateful layer as it was and computes what an unfrozen one does; modes survive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.data import DataInfo
from plait.training.frozen import evaluating, frozen_buffers


class Counting(nn.Module):
    """A stranger's layer: a counter in place, a buffer that is replaced, one that appears late, and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("late", None)
        self.seen = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.5 * self.mean + 0.5 * x.detach().flatten(2).mean((0, 2))
        self.late = self.mean.clone()
        self.register_buffer("made", torch.ones(2))
        self.seen[0] += 1
        return x - self.mean.reshape(1, -1, *[1] * (x.ndim - 2))

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(6),
    "BatchNorm2d, cumulative": lambda: nn.BatchNorm2d(6, momentum=None),
    "BatchNorm2d, no statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(6),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(6),
    "InstanceNorm2d, statistics": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "LayerNorm": lambda: nn.LayerNorm([6, 5, 5]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, padding=1)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(6, 6, 3, padding=1)),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1)),
    "a stranger's": Counting,
    "a subclass": lambda: type("Mine", (nn.BatchNorm2d,), {})(6),
}


def state(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy({"buffers": dict(model.named_buffers()), "seen": getattr(model, "seen", None)})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_pass_is_the_same_function_and_leaves_no_trace(name: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().train(training)
    if name == "SyncBatchNorm" and training:
        pytest.skip("SyncBatchNorm trains on a GPU only")
    x = torch.randn(4, 6, 5, 5) + 1
    with torch.no_grad():
        layer(2 * x) if training else None  # statistics that are not those of a new layer
    twin = copy.deepcopy(layer)
    before, held = state(layer), dict(layer.named_buffers())
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    with frozen_buffers(layer):
        frozen = layer(inputs[0])
        frozen.square().sum().backward()
    free = twin(inputs[1])
    free.square().sum().backward()
    assert torch.equal(frozen, free) and torch.equal(inputs[0].grad, inputs[1].grad)
    after = state(layer)
    assert after["seen"] == before["seen"] and after["buffers"].keys() == before["buffers"].keys()
    assert all(torch.equal(after["buffers"][k], v) for k, v in before["buffers"].items())
    assert all(layer.get_buffer(k) is v for k, v in held.items())
    assert layer.training is training


def test_a_pass_that_raises_leaves_no_trace() -> None:
    layer = Counting()

    def broken() -> None:
        with frozen_buffers(layer):
            layer(torch.ones(2, 6, 3))
            raise KeyError("after the pass")

    with pytest.raises(KeyError):
        broken()
    assert layer.calls == 0 and layer.seen == [0] and layer.late is None and "made" not in dict(layer.named_buffers())


def test_evaluating_puts_every_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[2].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [m.training for m in model.modules()] == [True, True, True, False, False]


class Hiding(nn.Module):
    """A wrapper whose network is no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Dropout()]

    def train(self, mode: bool = True) -> Hiding:
        self.hidden[0].train(mode)
        return super().train(mode)  # type: ignore[return-value]


def test_evaluating_reaches_a_network_that_is_no_submodule() -> None:
    model = Hiding()
    with evaluating(model):
        assert not model.hidden[0].training
    assert model.hidden[0].training


class PartlyFrozen(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.9)
        self.head = nn.Linear(width, classes)
        self.norm.eval()
        self.drop.eval()
        self.modes: set[tuple[bool, bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add((self.training, self.norm.training, self.drop.training))
        return self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))


def partly(info: DataInfo) -> PartlyFrozen:
    return PartlyFrozen(4, info.num_classes)


def all_eval(info: DataInfo) -> PartlyFrozen:
    return PartlyFrozen(4, info.num_classes).eval()


@pytest.mark.parametrize("build", ["partly", "all_eval"])
def test_parts_that_a_builder_put_into_eval_mode_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "frozen_models", sys.modules[__name__])
    run = plait.run(data="tiny-images", model=f"frozen_models:{build}", epochs=2, out=tmp_path / "r")
    model = run.model
    assert isinstance(model, PartlyFrozen)
    if build == "partly":  # trained with frozen statistics and without dropout, before and after each evaluation
        assert model.modes == {(True, False, False), (False, False, False)}
        assert model.norm.num_batches_tracked == 0
    else:  # a model that comes as a whole in eval mode, as from Hugging Face, is trained as a whole
        assert (True, True, True) in model.modes and model.norm.num_batches_tracked > 0
