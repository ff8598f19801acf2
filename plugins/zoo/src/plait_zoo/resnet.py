"""``resnet18``, ``resnet34``, ``resnet50``: torchvision's networks with a stem for small images and declared groups."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv  # type: ignore[import-untyped,unused-ignore]

from plait.data import DataInfo
from plait.errors import BadInput
from plait_zoo.files import named
from plait_zoo.networks import Group, image_shape
from plait_zoo.options import ResNetOptions

WRAPPERS = ("module", "_orig_mod")
"""Parts of names by data parallelism and ``torch.compile``; no network here has a module of such a name."""
CIFAR_SIDE = 64
"""Up to this side ``stem = "auto"`` takes the stem for small images."""


class ResNet(tv.ResNet):  # type: ignore[misc,unused-ignore]
    """torchvision's ResNet (same parameter names), for any number of input channels.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        layers: blocks per stage.
        num_classes: K.
        in_channels: channels of the images.
        small_stem: a 3x3 convolution of stride 1 and no pooling (for images such as CIFAR's) instead of 7x7, stride 2,
            and a max pool.
    """

    def __init__(
        self, block: Any, layers: list[int], num_classes: int, in_channels: int = 3, *, small_stem: bool = False
    ) -> None:
        super().__init__(block, layers, num_classes)
        if small_stem or in_channels != 3:
            kernel, stride, padding = (3, 1, 1) if small_stem else (7, 2, 3)
            self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, padding, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small_stem:
            self.maxpool = nn.Identity()

    def channel_groups(self) -> list[Group]:
        """The channels inside every block; the stem, the shortcuts and the residual stream keep their width.

        Basic block: conv1 read by conv2. Bottleneck: conv1 by conv2, and conv2 by conv3 (chase card, section 2).
        """
        groups: list[Group] = []
        for name, module in self.named_modules():
            if isinstance(module, tv.BasicBlock | tv.Bottleneck):
                last = 2 if isinstance(module, tv.BasicBlock) else 3
                groups += [(f"{name}.conv{n}", f"{name}.bn{n}", [f"{name}.conv{n + 1}"]) for n in range(1, last)]
        return groups


def build_resnet18(options: ResNetOptions, info: DataInfo) -> ResNet:
    """ResNet-18 for images of ``info.input_shape``: [B, C, H, W] to logits [B, K]. See `load_weights` for errors."""
    return _build(tv.BasicBlock, [2, 2, 2, 2], "resnet18", options, info)


def build_resnet34(options: ResNetOptions, info: DataInfo) -> ResNet:
    """ResNet-34; otherwise as `build_resnet18`."""
    return _build(tv.BasicBlock, [3, 4, 6, 3], "resnet34", options, info)


def build_resnet50(options: ResNetOptions, info: DataInfo) -> ResNet:
    """ResNet-50; otherwise as `build_resnet18`."""
    return _build(tv.Bottleneck, [3, 4, 6, 3], "resnet50", options, info)


def _build(block: Any, layers: list[int], name: str, options: ResNetOptions, info: DataInfo) -> ResNet:
    channels, height, width = image_shape(info, name)
    small = options.stem == "cifar" or (options.stem == "auto" and max(height, width) <= CIFAR_SIDE)
    model = ResNet(block, layers, info.num_classes, channels, small_stem=small)
    if options.weights:
        load_weights(model, options.weights, name)
    return model


def load_weights(model: ResNet, path: str, name: str) -> None:
    """Put weights from a local file into the model; a classifier of another width is left as it was made.

    The file is safetensors, or a torch state dict read with ``weights_only=True``: no code in it is executed. A dict
    under ``state_dict`` or ``model`` is understood, and so are the names that data parallelism (``module.``) and
    ``torch.compile`` (``_orig_mod.``) give to weights, of the network or of its layers.

    Raises:
        BadInput: no such file, neither format, one weight under two names, or tensors that do not fit; they are named.
    """
    state = _read(os.path.expanduser(path), name)
    own = model.state_dict()
    if any(key.startswith("fc.") and key in state and state[key].shape != own[key].shape for key in own):
        state = {**state, "fc.weight": own["fc.weight"], "fc.bias": own["fc.bias"]}
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)}, the model has {tuple(own[wrong[0]].shape)}"
        hint = " (option stem, or the data's channels)" if wrong[0] == "conv1.weight" else ""
        raise BadInput(f"model {name}: {path}: {wrong[0]} has shape {shapes}{hint}.")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own]
    if missing or foreign:
        faults = [f"has no {named(missing)}"] if missing else []
        faults += [f"has {named(foreign)}, which the model has not"] if foreign else []
        raise BadInput(f"model {name}: {path} holds weights of another model: it {', and '.join(faults)}.")
    model.load_state_dict(state, strict=False)


def _read(path: str, name: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise BadInput(f"model {name}: there is no weight file {path!r} (option weights).")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many things on foreign files
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"model {name}: {path} is neither safetensors nor a plain torch state dict: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"model {name}: {path} holds no state dict (names to tensors).")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        plain = ".".join(part for part in str(key).split(".") if part not in WRAPPERS)
        if plain in state:
            raise BadInput(f"model {name}: {path} holds {plain} twice, once as {key}.")
        state[plain] = value
    return state
