"""What of a run's texts is measured and calibrated on: windows of each domain, and the domains' tokens in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.data import Data, Subset

from .decoder import unpadded

__all__ = ["by_domain", "calibration", "shortened"]


def shortened(data: Data, count: int) -> Data:
    """Validation and test with the first ``count`` examples of each domain."""

    def cut(split: Any) -> Any:
        if not len(split):
            return split
        groups = _groups(split)
        rows = [(groups == g).nonzero().flatten()[:count] for g in sorted(set(groups.tolist()))]
        return Subset(split, torch.cat(rows).sort().values)

    return replace(data, validation=cut(data.validation), test=cut(data.test))


def calibration(data: Data, count: int) -> list[Tensor]:
    """``count`` texts of the validation split, of every domain as many, evenly spaced; in the split's order."""
    groups = _groups(data.validation)
    domains = sorted(set(groups.tolist()))
    rows: list[int] = []
    for number, domain in enumerate(domains):
        inside = (groups == domain).nonzero().flatten()
        wanted = min(len(inside), count // len(domains) + (number < count % len(domains)))
        if wanted:
            rows += inside[torch.linspace(0, len(inside) - 1, wanted).long()].tolist()
    batch = data.validation.__getitems__(sorted(rows))
    return unpadded(batch["input"], batch.get("attention_mask"))


def by_domain(split: Any) -> dict[int, Tensor]:
    """The tokens of each domain in a row."""
    batch, groups = split.__getitems__(torch.arange(len(split))), _groups(split).tolist()
    texts = unpadded(batch["input"], batch.get("attention_mask"))
    return {g: torch.cat([t for t, own in zip(texts, groups, strict=True) if own == g]) for g in sorted(set(groups))}


def _groups(split: Any) -> Tensor:
    groups: Tensor = getattr(split, "fields", {}).get("group", torch.zeros(len(split), dtype=torch.int64))
    return groups
