"""Super-resolution networks that serve as paths: WDSR, EDSR and ESPCN. Card, section 3.

Each maps [B, 3, h, w] in [0, 1] to [B, 3, h scale, w scale], computes at low resolution until its pixel shuffle, and
has ``at_depth(blocks)``, a new network of the same kind with another number of blocks.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from plait import DataInfo, Options

from .errors import DydcaError

__all__ = ["EDSR", "ESPCN", "WDSR", "bicubic_kernel", "bicubic_start", "folded", "macs_per_pixel", "receptive_radius"]

TAIL_GAIN = 0.02
"""Gain of a path's tail where it begins as bicubic up-sampling."""


class Body(nn.Module):
    """What all bodies have in common.

    Attributes:
        scale: the up-sampling factor.
        provides: what plait's plans know of it.
    """

    provides: tuple[str, ...] = ("model:depth",)

    def __init__(self, scale: int, blocks: int, **settings: int | bool) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise DydcaError(f"scale = {scale} must be 2, 3 or 4.")
        self.scale, self.blocks, self.settings = scale, blocks, settings
        self.shuffle = nn.PixelShuffle(scale)

    def at_depth(self, blocks: int) -> Body:
        """A new network of this kind."""
        return type(self)(self.scale, blocks, **self.settings)

    def finish(self, colours: Tensor) -> Tensor:
        """[B, 3 scale^2, h, w] around 0 to [B, 3, h scale, w scale] around 1/2."""
        out: Tensor = self.shuffle(colours) + 0.5
        return out


class Residual(Body):
    """One with blocks of two convolutions and a ReLU, ``a`` and ``b``, each added to what it was given."""

    a: nn.ModuleList
    b: nn.ModuleList

    def through(self, features: Tensor) -> Tensor:
        """The features behind all blocks."""
        for a, b in zip(self.a, self.b, strict=True):
            features = features + b(torch.relu(a(features)))
        return features

    def channel_groups(self) -> list[tuple[str, str | None, list[str]]]:
        """The hidden channels of each block; the residual stream keeps its width."""
        return [(f"a.{number}", None, [f"b.{number}"]) for number in range(self.blocks)]


class WDSR(Residual):
    """Wide activations before each ReLU, and a skip of one convolution from input to output.

    Args:
        scale: 2, 3 or 4.
        blocks: B.
        channels: U.
        expansion: w, hidden channels over U.
        weight_norm: v and g for each output channel, as published; g begins at 1, at 2 (a) and at 1/sqrt(B) (b).
    """

    provides = ("model:depth", "model:skip")

    def __init__(
        self, scale: int, blocks: int = 4, channels: int = 16, expansion: int = 2, weight_norm: bool = True
    ) -> None:
        super().__init__(scale, blocks, channels=channels, expansion=expansion, weight_norm=weight_norm)
        hidden, colours = expansion * channels, 3 * scale**2
        self.head = _conv(3, channels, 3, 1.0, weight_norm)
        self.a = nn.ModuleList(_conv(channels, hidden, 3, 2.0, weight_norm) for _ in range(blocks))
        self.b = nn.ModuleList(_conv(hidden, channels, 3, 1 / math.sqrt(blocks), weight_norm) for _ in range(blocks))
        self.tail = _conv(channels, colours, 3, 1.0, weight_norm)
        self.skip = _conv(3, colours, 5, 1.0, weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 3, h scale, w scale]."""
        centred = x - 0.5
        return self.finish(self.tail(self.through(self.head(centred))) + self.skip(centred))


class EDSR(Residual):
    """Residual blocks without normalisation, and one residual around all of them.

    Args:
        scale: 2, 3 or 4.
        blocks: B.
        channels: width.
    """

    def __init__(self, scale: int, blocks: int = 4, channels: int = 64) -> None:
        super().__init__(scale, blocks, channels=channels)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.a = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.b = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.join = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 3, h scale, w scale]."""
        first = self.head(x - 0.5)
        return self.finish(self.tail(self.join(self.through(first)) + first))


class ESPCN(Body):
    """Convolutions 3-U-U-U/2-3s^2 with ReLU, orthogonal at first.

    Args:
        scale: 2, 3 or 4.
        blocks: convolutions U-U.
        channels: U.
    """

    def __init__(self, scale: int, blocks: int = 1, channels: int = 64) -> None:
        super().__init__(scale, blocks, channels=channels)
        widths = [3, *[channels] * (blocks + 1), channels // 2, 3 * scale**2]
        layers = [nn.Conv2d(given, wanted, 3, padding=1) for given, wanted in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, 1.0 if layer is layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 3, h scale, w scale]."""
        features = x - 0.5
        for layer in self.layers[:-1]:
            features = torch.relu(layer(features))
        return self.finish(self.layers[-1](features))


def _conv(given: int, wanted: int, kernel: int, gain: float, weight_norm: bool) -> nn.Conv2d:
    conv = nn.Conv2d(given, wanted, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        if weight_norm:
            parametrizations.weight_norm(conv)
            conv.parametrizations.weight.original0.fill_(gain)  # type: ignore[union-attr,operator]
        else:
            conv.weight.mul_(gain / conv.weight.flatten(1).norm(dim=1)[:, None, None, None])
    return conv


# ---- bicubic up-sampling as a first guess ----------------------------------------------------------------------------
def bicubic_kernel(scale: int) -> Tensor:
    """The 5x5 kernels of sub-pixel bicubic up-sampling, one for each place inside a pixel: [scale^2, 5, 5].

    Place p lies d = (p + 0.5)/scale - 0.5 from the pixel's centre; tap k in -2..2 has weight cubic(k - d), a = -0.5.
    """
    distance = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    t = (torch.arange(-2, 3, dtype=torch.float64) - distance[:, None]).abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
    return torch.einsum("py,qx->pqyx", weights, weights).reshape(scale**2, 5, 5)


@torch.no_grad()
def bicubic_start(body: nn.Module) -> None:
    """Let a network begin as bicubic up-sampling: its skip is that, and its tail has a gain of 0.02.

    Raises:
        DydcaError: a network without a skip from input to output.
    """
    if not isinstance(body, WDSR):
        raise DydcaError(
            f"init = 'bicubic' needs a network with a skip from input to output (wdsr), not "
            f"{type(body).__name__}: choose init = 'paper'."
        )
    colours = torch.zeros(3, body.scale**2, 3, 5, 5)
    for colour in range(3):
        colours[colour, :, colour] = bicubic_kernel(body.scale).float()
    if parametrize.is_parametrized(body.tail):
        body.skip.weight = colours.flatten(0, 1)  # a parametrised weight takes its norms and directions from it
        body.tail.parametrizations.weight.original0.fill_(TAIL_GAIN)  # type: ignore[union-attr,operator]
    else:
        body.skip.weight.copy_(colours.flatten(0, 1))
        body.tail.weight.mul_(TAIL_GAIN)


# ---- what a network is and costs -------------------------------------------------------------------------------------
def folded(body: nn.Module) -> nn.Module:
    """The same function of plain convolutions: a new network, the given one stays as it is."""
    if not isinstance(body, WDSR) or not body.settings["weight_norm"]:
        return copy.deepcopy(body)
    with torch.device("meta"):  # its first weights would draw random numbers for nothing
        plain = WDSR(body.scale, body.blocks, **{**body.settings, "weight_norm": False})  # type: ignore[arg-type]
    for source, target in zip(_convolutions(body), _convolutions(plain), strict=True):
        target.in_channels, target.out_channels = source.in_channels, source.out_channels  # some may have been removed
        target.weight = nn.Parameter(source.weight.detach().clone())
        target.bias = None if source.bias is None else nn.Parameter(source.bias.detach().clone())
    return plain.train(body.training)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def macs_per_pixel(network: nn.Module) -> int:
    """Multiplications of a low-resolution pixel: all convolutions compute at low resolution."""
    return sum(conv.weight.numel() for conv in _convolutions(network))


def plain_parameters(network: nn.Module) -> int:
    """Numbers that are delivered: plain convolutions and their biases."""
    biases = [conv.bias for conv in _convolutions(network) if conv.bias is not None]
    return macs_per_pixel(network) + sum(bias.numel() for bias in biases)


def receptive_radius(blocks: int) -> int:
    """Pixels around a patch on which a WDSR path of so many blocks depends."""
    return max(2 * blocks + 2, 2)


# ---- registered models -----------------------------------------------------------------------------------------------
def _built(kind: type[Body], **fixed: bool) -> Callable[[Options, DataInfo], Body]:
    """A body by its options, at the scale of the data."""
    return lambda options, info: kind(info.extra["scale"], **options.model_dump(), **fixed)


build_wdsr, build_wdsr_plain = _built(WDSR), _built(WDSR, weight_norm=False)
build_edsr, build_espcn = _built(EDSR), _built(ESPCN)
