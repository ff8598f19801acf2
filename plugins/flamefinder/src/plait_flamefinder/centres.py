"""The centres of the classes in the latent space, how they move, and what they decide. Card sections 6 and 8."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from .errors import FlamefinderError
from .losses import cosine_distances, half_squared_distances
from .options import CentreUpdate, Decision

__all__ = ["DECISIONS", "Centres", "class_means", "decided"]

DECISIONS: tuple[Decision, ...] = ("head", "center_l2", "center_cos")
SPREAD = 0.5
"""Standard deviation of the first centres."""


class Centres(nn.Module):
    """K centres in R^d.

    With ``gradient`` the values are a parameter, for an optimizer group of their own. With ``delta`` they are a buffer,
    the losses see them without a gradient, and after each optimizer step they follow their class (Wen et al. 2016)::

        delta_j = sum_{i: y_i = j} (c_j - z_i) / (1 + n_j);  c_j <- c_j - alpha delta_j

    ``generator`` draws the first ones.

    Raises:
        FlamefinderError: ``num_classes`` K < 2.
    """

    values: Tensor

    def __init__(
        self, num_classes: int, latent: int, update: CentreUpdate, alpha: float, generator: Generator | None = None
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise FlamefinderError(f"num_classes = {num_classes}: centres to tell classes apart need two of them.")
        self.update, self.alpha = update, alpha
        first = SPREAD * torch.randn(num_classes, latent, generator=generator)
        if update == "gradient":
            self.values = nn.Parameter(first)
        else:
            self.register_buffer("values", first)

    def pulls(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of examples z [n, d] with labels [n] the sums of c_j - z_i by class [K, d], and their number by class [K]."""
        member = one_hot(labels, len(self.values)).to(self.values.dtype)
        counts = member.sum(0)
        return counts.unsqueeze(1) * self.values.detach() - member.T @ z.detach().to(self.values), counts

    @torch.no_grad()
    def follow(self, sums: Tensor, counts: Tensor) -> None:
        """The update by ``delta`` from what `pulls` gave, perhaps summed over processes; absent classes stay."""
        self.values -= self.alpha * sums / (1 + counts).unsqueeze(1)


def class_means(z: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean latent vector of each class [K, d]; NaN for a class without examples."""
    member = one_hot(labels, num_classes).to(z.dtype)
    return member.T @ z / member.sum(0).unsqueeze(1)


def decided(decision: Decision, logits: Tensor, z: Tensor, centres: Tensor | None) -> Tensor:
    """Outputs [B, K], of which the largest decides: the logits, or minus the distance to each centre.

    For two classes output 1 minus output 0 is the card's score, and a patch is flame where it is above 0. z is [B, d],
    the centres are [K, d], not needed for ``head``.
    """
    if decision == "head":
        return logits
    assert centres is not None
    distances = half_squared_distances if decision == "center_l2" else cosine_distances
    return -distances(z, centres)
