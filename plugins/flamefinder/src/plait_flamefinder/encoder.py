"""The network: an encoder of thermal patches with a latent vector, attention, and a classifier. Card section 4."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from plait import DataInfo

from .attention import FeatureGate
from .centres import decided
from .errors import FlamefinderError
from .options import BackboneOptions, Decision, LfeOptions

__all__ = ["LFE", "FlameNet", "Head", "Latent", "backbone", "build_backbone", "build_lfe"]


class Latent(NamedTuple):
    """What an encoder gives for B patches: the flattened feature map [B, F], p [B, d], and z [B, d] after attention."""

    features: Tensor
    p: Tensor
    z: Tensor


class LFE(nn.Sequential):
    """Local features extraction: blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pool. [B, C, P, P] to a map.

    One block for each of ``channels``, which halves the side, rounded up; ``doubled`` has two convolutions in each.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...] = (16, 32, 48, 64), doubled: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in channels:
            for _ in range(1 + doubled):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
            layers.insert(-1, nn.MaxPool2d(2, ceil_mode=True))  # then the ReLU has less to do
        super().__init__(*layers)


class Head(nn.Module):
    """The classifier on z. For two classes a single logit s, as [0, s]: its cross-entropy is the binary one of s."""

    def __init__(self, latent: int, num_classes: int) -> None:
        super().__init__()
        self.binary = num_classes == 2
        self.linear = nn.Linear(latent, 1 if self.binary else num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self.linear(z)
        return pad(logits, (1, 0)) if self.binary else logits


class FlameNet(nn.Module):
    """Patches [B, C, P, P] to logits [B, K], through a latent vector z [B, d] that all losses share.

    Args:
        features: gives a feature map or vector of F numbers for a patch.
        num_features: F.
        latent: d; None takes the features themselves, d = F.
        num_classes: K >= 2.
        attention: z = a(p) * p, with a gate of weights 1 at the start; without it z = p.

    Raises:
        FlamefinderError: fewer than two classes.
    """

    def __init__(
        self, features: nn.Module, num_features: int, latent: int | None, num_classes: int, attention: bool = False
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise FlamefinderError(f"num_classes = {num_classes}: flame and no flame are two.")
        self.features, self.num_features = features, num_features
        self.latent_dim = num_features if latent is None else latent
        self.embedding = nn.Identity() if latent is None else nn.Linear(num_features, latent)
        self.attention = FeatureGate(self.latent_dim) if attention else nn.Identity()
        self.head = Head(self.latent_dim, num_classes)
        self.decision: Decision = "head"
        self.register_buffer("centres", None)

    centres: Tensor | None
    provides = frozenset({"model:latent"})

    def latent(self, x: Tensor) -> Latent:
        """The latent vectors of patches."""
        mapped = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        if x.ndim == 4 and not mapped:  # half the time of a step on a CPU; vmap takes no memory format
            x = x.to(memory_format=torch.channels_last)
        features = self.features(x).flatten(1)
        p = self.embedding(features)
        return Latent(features, p, self.attention(p))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, K], of which the largest decides: the classifier's logits, or by the rule of `decide_by`."""
        z = self.latent(x).z
        return decided(self.decision, self.head(z), z, self.centres)

    def decide_by(self, decision: Decision, centres: Tensor | None) -> FlameNet:
        """Let this rule give the outputs; ``centres`` [K, d] are copied into the network's state.

        Returns:
            The network itself.
        """
        self.decision = decision
        self.centres = None if centres is None else centres.detach().clone()
        return self

    @torch.no_grad()
    def flame_probability(self, x: Tensor) -> Tensor:
        """Softmax of the outputs for class 1, [B]: above 1/2 where a patch is flame, and calibrated for no rule."""
        outputs: Tensor = self(x)
        return outputs.softmax(-1)[:, 1]


def build_lfe(options: LfeOptions, info: DataInfo) -> FlameNet:
    """The model ``flame-lfe`` for patches of ``info.input_shape``."""
    return _around(LFE(info.input_shape[0], options.channels, options.doubled), options.latent, info)


def build_backbone(options: BackboneOptions, info: DataInfo) -> FlameNet:
    """The model ``flame-backbone``."""
    return _around(backbone(options.network, info.input_shape[0]), options.latent, info)


@torch.no_grad()
def _around(features: nn.Module, latent: int, info: DataInfo) -> FlameNet:
    """The network on an encoder, whose numbers are counted by a patch of zeros."""
    try:
        numbers = features.eval()(torch.zeros(1, *info.input_shape)).numel()
    except Exception as error:  # a network for larger images may raise anything
        raise FlamefinderError(f"the encoder cannot take patches of {list(info.input_shape)}: {error}") from error
    return FlameNet(features.train(), numbers, latent, info.num_classes)


def backbone(network: str, in_channels: int) -> nn.Module:
    """A network (``torchvision:resnet18``, ``timm:mobilenetv3_small_100``) from scratch, without its classifier.

    Raises:
        FlamefinderError: the library is not installed, does not know the name, or the network has another form.
    """
    library, _, name = network.partition(":")
    try:
        if library == "timm":
            import timm

            made: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels)
            return made
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None)
    except ImportError as error:
        raise FlamefinderError(f"network = {network!r} needs {library}: pip install {library}.") from error
    except Exception as error:  # each library has errors of its own for a name that it does not know
        raise FlamefinderError(f"network = {network!r}: {error}") from error
    # the classifier is the last linear layer of every torchvision classifier, the first convolution reads the image
    last = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    first = [n for n, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    if not last or not first:
        raise FlamefinderError(f"network = {network!r} has no convolution to read or no linear layer to replace.")
    model.set_submodule(last[-1], nn.Identity())
    old = model.get_submodule(first[0])
    assert isinstance(old, nn.Conv2d)
    if old.in_channels != in_channels:
        shape: dict[str, object] = {n: getattr(old, n) for n in ("kernel_size", "stride", "padding", "dilation")}
        new = nn.Conv2d(in_channels, old.out_channels, **shape, bias=old.bias is not None)  # type: ignore[arg-type]
        model.set_submodule(first[0], new)
    return model
