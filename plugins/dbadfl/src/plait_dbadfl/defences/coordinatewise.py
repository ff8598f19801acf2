"""Mean, median and trimmed mean. Card, baselines and defences [known]."""

from __future__ import annotations

import torch
from torch import Tensor

from plait_dbadfl.defences.base import Block, Defence, Losses, Verdict, ascending, masked_median, require
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing

__all__ = ["Median", "TrimmedMean"]


class Mean(Defence):
    """x <- W x: no defence."""

    name = "mean"

    @torch.no_grad()
    def __call__(
        self,
        models: Tensor,
        mixing: Mixing,
        *,
        start: Tensor | None = None,
        round: int = 0,
        rounds: int = 1,
        losses: Losses | None = None,
        elements: int = 0,
    ) -> Verdict:
        if len(models) != mixing.n or models.ndim != 2:
            raise DbadflError(f"defence 'mean': models {tuple(models.shape)} are not [N={mixing.n}, P]")
        return Verdict(mixing.mixed(models), None)


class Median(Defence):
    """Coordinatewise median of own and received models; for an even number the mean of both middles."""

    name = "median"
    coordinatewise = True

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        return masked_median(block.members, block.mask), None


class TrimmedMean(Defence):
    """Per coordinate, the mean without the ``trim`` highest and the ``trim`` lowest values.

    Args:
        trim: b >= 0; every node needs n > 2b models, own one included.
    """

    name = "trimmed-mean"
    coordinatewise = True

    def __init__(self, trim: int = 1) -> None:
        require(self.name, trim >= 0, f"trim={trim} is negative")
        self.trim = trim

    def legal(self, count: int) -> str | None:
        if self.trim * 2 < count:
            return None
        return f"has {count} models, of which trim={self.trim} would leave none; trim must be below {count / 2:g}"

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        return trimmed_mean(block.members, block.mask, self.trim), None


def trimmed_mean(values: Tensor, mask: Tensor, trim: int) -> Tensor:
    """[n, P] of values [n, m, P] where mask [n, m]; every row needs more than ``2 trim`` True."""
    ranked = ascending(values.masked_fill(~mask[..., None], float("inf")))
    counts = mask.sum(1)
    place = torch.arange(values.shape[1], device=values.device)
    kept = (place >= trim) & (place < counts[:, None] - trim)
    return ranked.masked_fill(~kept[..., None], 0.0).sum(1) / (counts - 2 * trim)[:, None]
