"""Weights of the latent features: of z itself, or inside the distances only. Card section 4, corrections 6.

The paper's form was not reachable; each of these is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from .options import Attention

__all__ = ["DistanceWeights", "FeatureGate", "seeded"]


@contextmanager
def seeded(generator: Generator) -> Iterator[None]:
    """Layers that are made inside draw their first weights by this generator, and leave the global one alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


class FeatureGate(nn.Module):
    """a(p) = d softmax(W2 relu(W1 p + b1) + b2): weights of mean 1 for each example, all 1 at the start.

    Args:
        latent: d.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(latent, max(1, latent // 4)), nn.Linear(max(1, latent // 4), latent)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def weights(self, p: Tensor) -> Tensor:
        """a(p), [B, d]."""
        shares: Tensor = self.expand(self.reduce(p).relu()).softmax(-1)
        return p.shape[-1] * shares

    def forward(self, p: Tensor) -> Tensor:
        """z = a(p) * p, [B, d]."""
        return self.weights(p) * p


class DistanceWeights(nn.Module):
    """Weights w inside the distances, for each loss; none of them for ``none`` and ``embed``.

    - ``per_loss_global``: w_k = d softmax(theta_k), theta_k = 0 at the start.
    - ``per_loss_gated``: a `FeatureGate` on p for each loss.
    - ``dacl``: for the centre loss a sigmoid gate on the flattened feature map (Farzaneh and Qi 2021).

    ``features`` is F, the numbers in the flattened feature map; ``losses`` are the losses' names.
    """

    def __init__(self, attention: Attention, latent: int, features: int, losses: tuple[str, ...]) -> None:
        super().__init__()
        self.attention, self.latent = attention, latent
        self.theta = nn.ParameterDict()
        self.gates = nn.ModuleDict()
        if attention == "per_loss_global":
            self.theta = nn.ParameterDict({name: nn.Parameter(torch.zeros(latent)) for name in losses})
        elif attention == "per_loss_gated":
            self.gates = nn.ModuleDict({name: FeatureGate(latent) for name in losses})
        elif attention == "dacl" and "CL" in losses:
            hidden = nn.Linear(features, max(1, latent // 2))
            self.gates = nn.ModuleDict({"CL": nn.Sequential(hidden, nn.ReLU(), nn.Linear(hidden.out_features, latent))})

    def forward(self, p: Tensor, features: Tensor) -> Mapping[str, Tensor]:
        """Loss -> its weights, [d] or [B, d], by p [B, d] and the flattened feature map [B, F]."""
        weights = {name: self.latent * theta.softmax(-1) for name, theta in self.theta.items()}
        for name, gate in self.gates.items():
            weights[name] = gate.weights(p) if isinstance(gate, FeatureGate) else gate(features).sigmoid()
        return weights
