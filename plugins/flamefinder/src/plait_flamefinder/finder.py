"""FlameFinder for any training loop: the classifier's loss, the metric losses, and the centres, in one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .centres import class_means
from .encoder import FlameNet
from .errors import FlamefinderError
from .options import FlamefinderOptions
from .reconstruction import Reconstruction
from .terms import MetricTerms

__all__ = ["FlameFinder"]


class FlameFinder:
    """Trains a `FlameNet` with FlameFinder's losses.

    Args:
        network: the network; its attention is its own (``FlameNet(attention=True)``).
        optimizer: over the network's parameters.
        options: the method's options; what a run alone has (``balanced``, ``gain_aug``, the pictures) has no effect.
        seed: of the first centres, gates and decoder.
        changes: single options by name, in the place of ``options``.

    Attributes:
        terms: the metric losses, with ``terms.centres``; None where all weights are 0.
        reconstruction: the decoder, where ``l_rec`` > 0; made at the first step, by the size of its target.
    """

    def __init__(
        self,
        network: FlameNet,
        optimizer: torch.optim.Optimizer,
        options: FlamefinderOptions | None = None,
        *,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.options = options if options is not None else FlamefinderOptions(**changes)
        self.generator = torch.Generator().manual_seed(seed)
        self.num_classes = 2 if network.head.binary else network.head.linear.out_features
        device = network.head.linear.weight.device
        terms = MetricTerms(self.options, self.num_classes, network, self.generator).to(device)
        self.terms = terms if terms.factors else None
        self.own = terms.optimizer() if terms.factors else None
        self.reconstruction: Reconstruction | None = None

    def step(self, thermal: Tensor, labels: Tensor, rgb: Tensor | None = None) -> dict[str, float]:
        """One update of network and centres.

        Args:
            thermal: patches [B, C, P, P] in [-1, 1].
            labels: class numbers [B].
            rgb: patches [B, 3, P, P] in [-1, 1], for ``rec_target = "rgb"``.

        Returns:
            The value of each term without its factor, ``BCE`` first.

        Raises:
            FlamefinderError: the RGB patch is to be rebuilt and not given.
        """
        options = self.options
        latent = self.network.latent(thermal)
        values = {"BCE": cross_entropy(self.network.head(latent.z), labels)}
        loss = values["BCE"]
        if self.terms is not None:
            means = self.terms(latent, labels).mean(1)
            values |= dict(zip(self.terms.factors, means.detach(), strict=True))
            loss = loss + self.terms.scales @ means
        if options.l_rec:
            target = thermal if options.rec_target == "thermal" else rgb
            if target is None:
                raise FlamefinderError("rec_target = 'rgb' rebuilds the RGB patch: give step(..., rgb=...).")
            if self.reconstruction is None:
                sizes = (self.network.latent_dim, target.shape[1], target.shape[-1])
                self.reconstruction = Reconstruction(*sizes, self.generator).to(target.device)
                self.optimizer.add_param_group({"params": list(self.reconstruction.parameters())})
            values["rec"] = self.reconstruction(latent.z, target).mean()
            loss = loss + options.l_rec * values["rec"]
        self.optimizer.zero_grad()
        for group in self.own.param_groups if self.own is not None else ():
            for parameter in group["params"]:  # ``zero_grad`` takes ten times as long for one parameter
                parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in (self.optimizer, self.own):
            if optimizer is not None:
                optimizer.step()
        if self.terms is not None and options.center_update == "delta":
            self.terms.centres.follow(*self.terms.centres.pulls(latent.z, labels))
        return {name: float(value.detach()) for name, value in values.items()}

    @torch.no_grad()
    def detector(self, thermal: Tensor | None = None, labels: Tensor | None = None) -> FlameNet:
        """The network, which now decides by its rule, in eval mode.

        Raises:
            FlamefinderError: no training patches, which ``centers = "mean"`` needs, or where no centres were trained.
        """
        self.network.eval()
        if self.options.decision == "head":
            return self.network.decide_by("head", None)
        if self.options.centers == "running" and self.terms is not None:
            return self.network.decide_by(self.options.decision, self.terms.centres.values)
        if thermal is None or labels is None:
            raise FlamefinderError("the class means need training patches: give detector(thermal, labels).")
        means = class_means(self.network.latent(thermal).z, labels, self.num_classes)
        return self.network.decide_by(self.options.decision, means)
