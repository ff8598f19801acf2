"""The terms that FlameFinder adds to the classifier's loss: the engine of the library loop and of the woven run."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from .attention import DistanceWeights, seeded
from .centres import Centres
from .encoder import FlameNet, Latent
from .losses import CentreLoss, MetricLosses, TripletCentreLoss, TripletCosineCentreLoss
from .options import FlamefinderOptions

__all__ = ["MetricTerms"]


class MetricTerms(nn.Module):
    """l_CL CL + l_TCL TCL + l_TCCL TCCL with their centres; terms of weight 0 are left out.

    Of ``network`` only the sizes of its latent space are read; ``generator`` draws the first centres and gates.
    """

    def __init__(self, options: FlamefinderOptions, num_classes: int, network: FlameNet, generator: Generator) -> None:
        super().__init__()
        self.options = options
        weighted = {"CL": options.l_CL, "TCL": options.l_TCL, "TCCL": options.l_TCCL}
        self.factors = {name: factor for name, factor in weighted.items() if factor}
        losses = {"CL": CentreLoss(), "TCL": TripletCentreLoss(options.m), "TCCL": TripletCosineCentreLoss(options.m_c)}
        self.losses = nn.ModuleDict({name: losses[name] for name in self.factors})
        self.register_buffer("margins", torch.tensor([[options.m], [options.m_c]]), persistent=False)
        self.register_buffer("scales", torch.tensor(list(self.factors.values())), persistent=False)
        self.rows = [place for place, name in enumerate(weighted) if name in self.factors]
        latent = network.latent_dim
        self.centres = Centres(num_classes, latent, options.center_update, options.alpha, generator)
        with seeded(generator):
            self.weights = DistanceWeights(options.attention, latent, network.num_features, tuple(self.factors))

    margins: Tensor
    scales: Tensor

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Adam without decay over centres and weights, each at its own rate; None where nothing learns by gradient."""
        groups = [(self.centres, self.options.center_lr), (self.weights, self.options.theta_lr)]
        learned = [{"params": list(module.parameters()), "lr": lr} for module, lr in groups]
        learned = [group for group in learned if group["params"]]
        return torch.optim.Adam(learned, fused=True) if learned else None

    def forward(self, latent: Latent, labels: Tensor) -> Tensor:
        """The loss of each example without its factor, [n, B] in the order of ``factors``."""
        centres = self.centres.values
        if self.options.attention not in ("none", "embed"):
            weights = self.weights(latent.p, latent.features)
            return torch.stack([f(latent.z, labels, centres, weights.get(name)) for name, f in self.losses.items()])
        each: Tensor = MetricLosses.apply(latent.z, labels, centres, self.margins)
        return each if len(self.rows) == len(each) else each[self.rows]

    def gradient_shares(self, latent: Latent, labels: Tensor) -> dict[str, float]:
        """||d(l_k L_k)/dz|| of each loss over the sum of all, 0 to 1: which of them moves the latent vectors."""
        with torch.enable_grad():
            there = Latent(*(part.detach().requires_grad_() for part in latent))
            means = self.scales * self(there, labels).mean(1)
            by_z = [torch.autograd.grad(mean, there.z, retain_graph=True)[0] for mean in means]
        norms = {name: float(gradient.norm()) for name, gradient in zip(self.factors, by_z, strict=True)}
        total = sum(norms.values())
        return {name: norm / total if total else 0.0 for name, norm in norms.items()}
