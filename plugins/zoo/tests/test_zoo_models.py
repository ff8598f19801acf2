"""The networks: shapes, sizes, channel groups that really can be removed, weights from files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models import resnet as tv

from plait.data import DataInfo
from plait.declare.sources import ModelSource
from plait.errors import BadInput
from plait_zoo.resnet import ResNet
from plait_zoo.vgg import BNVGG, parse_widths

Build = Callable[..., nn.Module]
SHAPES = [(1, 8, 8), (1, 14, 14), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 48)]
CASES = [
    *(("mlp", shape, {}) for shape in [*SHAPES, (20,)]),
    *(("cnn", shape, {}) for shape in [*SHAPES, (2, 1, 1)]),
    *(("vgg-bn", shape, {}) for shape in SHAPES),
    ("vgg-bn", (3, 32, 32), {"widths": "vgg11"}),
    ("mlp", (1, 8, 8), {"widths": []}),
    ("mlp", (1, 8, 8), {"widths": [7, 5, 3]}),
    ("cnn", (1, 16, 16), {"width": 4}),
    ("resnet18", (3, 32, 32), {}),
    ("resnet18", (1, 8, 8), {"stem": "imagenet"}),
    ("resnet34", (1, 16, 16), {}),
    ("resnet50", (3, 16, 16), {"stem": "cifar"}),
]


def info(shape: tuple[int, ...] = (3, 32, 32), classes: int = 7) -> DataInfo:
    return DataInfo(input_shape=shape, num_classes=classes)


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_shapes_and_groups(name: str, shape: tuple[int, ...], options: dict[str, object], build: Build) -> None:
    torch.manual_seed(0)
    model = build(name, info(shape), **options).eval()
    images = torch.rand(2, *shape)
    with torch.no_grad():
        assert model(images).shape == (2, 7)
    groups = model.channel_groups()  # type: ignore[operator]
    assert groups or options.get("widths") == []
    modules = dict(model.named_modules())
    producers = [producer for producer, _, _ in groups]
    assert len(set(producers)) == len(producers)
    for producer, norm, consumers in groups:
        width = modules[producer].weight.shape[0]
        assert norm is None or modules[norm].num_features == width
        for consumer in consumers:
            reads = modules[consumer].weight.shape[1]
            spatial = reads // width if isinstance(modules[consumer], nn.Linear) else 1
            assert reads == width * spatial


@pytest.mark.parametrize(("name", "shape", "options"), [case for case in CASES if case[2] != {"widths": []}])
def test_channels_of_a_group_can_go(
    name: str, shape: tuple[int, ...], options: dict[str, object], build: Build
) -> None:
    """Silencing what consumers read of a channel equals silencing what its producer makes of it, wherever declared."""
    torch.manual_seed(0)
    model = build(name, info(shape), **options).eval()
    images = torch.rand(2, *shape)
    modules = dict(model.named_modules())
    for producer, norm, consumers in model.channel_groups()[:6]:  # type: ignore[operator]
        dead, changed = copy.deepcopy(model), copy.deepcopy(model)
        for network, noise in ((dead, 0.0), (changed, 3.0)):
            parts = dict(network.named_modules())
            with torch.no_grad():
                width = modules[producer].weight.shape[0]
                for consumer in consumers:
                    weight = parts[consumer].weight
                    repeat = weight.shape[1] // width
                    weight[:, :repeat] = 0
                parts[producer].weight[0] += noise
                if norm is not None:
                    parts[norm].bias[0] += noise
        with torch.no_grad():
            assert torch.equal(dead(images), changed(images))


def test_sizes_of_the_cards(build: Build) -> None:
    vgg = build("vgg-bn", info((1, 14, 14), 10))
    assert sum(p.numel() for p in vgg.parameters() if p.ndim >= 2) == 287_264
    widths = [dict(vgg.named_modules())[producer].weight.shape[0] for producer, _, _ in vgg.channel_groups()]  # type: ignore[operator]
    assert sum(widths) == 320
    large = build("cnn", info((1, 32, 32), 2))
    assert [tuple(m.weight.shape) for m in large.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [
        *((16, 1, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3)),
        (2, 1024),
    ]
    small = build("cnn", info((1, 16, 16), 10))
    assert [tuple(m.weight.shape) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [
        *((16, 1, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3)),
        (10, 512),
    ]
    assert all(m.bias is None for m in small.modules() if isinstance(m, nn.Conv2d))
    assert sum(p.numel() for p in build("resnet18", info((3, 224, 224), 1000)).parameters()) == 11_689_512
    assert sum(p.numel() for p in build("resnet50", info((3, 224, 224), 1000)).parameters()) == 25_557_032


def test_cnn_centres_its_input(build: Build) -> None:
    model = build("cnn", info((1, 16, 16))).eval()
    hidden = model.get_submodule("conv1")(torch.full((1, 1, 16, 16), 0.5) - 0.5)
    assert not hidden.any()
    seen: list[torch.Tensor] = []
    model.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.full((1, 1, 16, 16), 0.5))
    assert not seen[0].any()


def test_vgg_presets_and_start(build: Build) -> None:
    assert sum(width != "M" for width in parse_widths("vgg11")) == 8
    assert sum(width != "M" for width in parse_widths("vgg16")) == 13
    assert sum(width != "M" for width in parse_widths("vgg19")) == 16
    model = build("vgg-bn", info(), widths="64, M ,128")
    assert isinstance(model, BNVGG)
    conv = model.get_submodule("features.0")
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)  # type: ignore[operator]
    assert float(model.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    for bad in ("", "M", "32,,64", "32,x", "0", "9999", "vgg99", "-3"):
        with pytest.raises(ValidationError):
            build("vgg-bn", info(), widths=bad)


def test_resnet_stems_and_groups(build: Build) -> None:
    for shape, stem, kernel in [
        ((3, 32, 32), "auto", 3),
        ((3, 64, 64), "auto", 3),
        ((3, 65, 65), "auto", 7),
        ((1, 224, 224), "cifar", 3),
        ((1, 32, 32), "imagenet", 7),
    ]:
        model = build("resnet18", info(shape), stem=stem)
        assert isinstance(model, ResNet)
        assert model.conv1.kernel_size == (kernel, kernel)
        assert model.conv1.in_channels == shape[0]
        assert isinstance(model.maxpool, nn.Identity) == (kernel == 3)
    basic = build("resnet34", info()).channel_groups()  # type: ignore[operator]
    assert len(basic) == 16
    assert basic[0] == ("layer1.0.conv1", "layer1.0.bn1", ["layer1.0.conv2"])
    bottleneck = build("resnet50", info()).channel_groups()  # type: ignore[operator]
    assert len(bottleneck) == 32
    assert bottleneck[1] == ("layer1.0.conv2", "layer1.0.bn2", ["layer1.0.conv3"])
    assert {c for *_, consumers in bottleneck for c in consumers} >= {"layer4.2.conv3"}


RENAMED: dict[str, Callable[[str], str]] = {
    "parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, then parallel": lambda name: f"module._orig_mod.{name}",
    "parallel, then compiled": lambda name: f"_orig_mod.module.{name}",
    "a compiled layer": lambda name: name.replace("layer1.", "layer1._orig_mod."),
}


@pytest.mark.parametrize("kind", ["pt", "safetensors", "wrapped", *RENAMED])
def test_weights_from_a_file(tmp_path: Path, kind: str, build: Build) -> None:
    from safetensors.torch import save_file

    source = tv.resnet18(num_classes=1000)
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    stored = {RENAMED[kind](name): value for name, value in state.items()} if kind in RENAMED else state
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": stored} if kind == "wrapped" else stored, path)
    same = build("resnet18", info((3, 224, 224), 1000), weights=str(path))
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(same.eval()(images), source.eval()(images))
    fewer = build("resnet18", info((3, 224, 224), 2), weights=str(path))
    assert fewer.state_dict()["fc.weight"].shape == (2, 512)
    assert torch.equal(fewer.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_weights_that_cannot_be_used(tmp_path: Path, build: Build) -> None:
    def refused(match: str, name: str = "resnet18", shape: tuple[int, int, int] = (3, 224, 224)) -> None:
        with pytest.raises(BadInput, match=match) as caught:
            build(name, info(shape), weights=str(path))
        assert "\n" not in str(caught.value)

    path = tmp_path / "w.pth"
    refused("there is no weight file")
    path.write_bytes(b"no weights")
    refused("neither safetensors nor a plain torch state dict")
    torch.save([1, 2], path)
    refused("holds no state dict")
    state = tv.resnet18(num_classes=5).state_dict()
    torch.save(state, path)
    refused(r"conv1.weight has shape \(64, 3, 7, 7\), the model has \(64, 3, 3, 3\) \(option stem", shape=(3, 32, 32))
    refused("holds weights of another model: it has no layer1.2.conv1.weight", name="resnet34")
    torch.save({**state, "extra": torch.zeros(1)}, path)
    refused("it has extra, which the model has not")
    fewer = {name: value for name, value in state.items() if not name.startswith("layer1.0")}
    torch.save({**fewer, "head.bias": torch.zeros(1)}, path)
    refused(r"no layer1.0.conv1.weight, layer1.0.bn1.weight, .* and 5 more, and has head.bias, which the model has not")
    torch.save({**state, "module.fc.bias": state["fc.bias"]}, path)
    refused("holds fc.bias twice, once as module.fc.bias")
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 40)
    refused("neither safetensors nor a plain torch state dict")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_weights_execute_nothing(tmp_path: Path, build: Build) -> None:
    torch.save({"fc.weight": _Evil(tmp_path / "executed")}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="plain torch state dict"):
        build("resnet18", info(), weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "executed").exists()


def test_data_that_do_not_fit(build: Build, models: dict[str, ModelSource]) -> None:
    for name in models.keys() - {"transformers"}:  # which takes tokens: test_zoo_language.py
        if name != "mlp":
            with pytest.raises(BadInput, match=f"model {name} needs images"):
                build(name, info((64,)))
        with pytest.raises(BadInput, match="number of classes"):
            build(name, info(classes=0))
    with pytest.raises(BadInput, match="needs inputs of fixed shape"):
        build("mlp", info(()))
    with pytest.raises(BadInput, match=r"5 pools .M. need images of at least 32 pixels; these have 28 x 28"):
        build("vgg-bn", info((1, 28, 28)), widths="vgg19")
