"""The patch that is rebuilt from its latent vector while training, and the loss of it. Card section 4."""

from __future__ import annotations

from itertools import pairwise

from torch import Generator, Tensor, nn

from .attention import seeded

__all__ = ["Decoder", "Reconstruction"]


class Decoder(nn.Module):
    """Linear(d, 32 x 4 x 4), then transposed convolutions that double the side each, to [B, C, P, P] in [-1, 1].

    Of the next larger of 8, 16, 32, 64, ... than ``side`` the middle is taken.
    """

    def __init__(self, latent: int, channels: int, side: int) -> None:
        super().__init__()
        doublings = max(1, (-(-side // 4) - 1).bit_length())
        margin = 4 * 2**doublings - side
        widths = [32, *(max(8, 16 >> number) for number in range(doublings - 1)), channels]
        layers: list[nn.Module] = [nn.Linear(latent, 32 * 16), nn.Unflatten(1, (32, 4, 4))]
        for before, after in pairwise(widths):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        if margin:
            left, right = margin // 2, margin - margin // 2
            layers.append(nn.ZeroPad2d((-left, -right, -left, -right)))
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """The patch of each latent vector."""
        patch: Tensor = self.layers(z)
        return patch


class Reconstruction(nn.Module):
    """Mean squared error of a patch of ``channels`` and ``side`` that is rebuilt from its latent vector."""

    def __init__(self, latent: int, channels: int, side: int, generator: Generator) -> None:
        super().__init__()
        with seeded(generator):
            self.decoder = Decoder(latent, channels, side)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """The loss of each example [B], by latent vectors [B, d] and patches [B, C, P, P] in [-1, 1]."""
        rebuilt: Tensor = self.decoder(z)
        return (rebuilt - target).square().flatten(1).mean(1)
