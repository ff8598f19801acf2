"""Rules by which a node takes only models near its own: BALANCE and UBAR. Card, baselines and defences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait_dbadfl.defences.base import Block, Defence, lengths, require
from plait_dbadfl.defences.geometric import equal_mean
from plait_dbadfl.errors import DbadflError

__all__ = ["Balance", "Ubar"]


class Balance(Defence):
    """Accept j where ||x_i - x_j|| <= gamma exp(-kappa t / T) ||x_i|| [known].

    x_i <- alpha x_i + (1 - alpha) mean(accepted). A node that accepts nobody keeps its model. Fang et al., CCS 2024.

    Args:
        gamma: default 0.3.
        kappa: default 1.
        alpha: weight of the own model, default 0.5.
    """

    name = "balance"
    selects = True

    def __init__(self, gamma: float = 0.3, kappa: float = 1.0, alpha: float = 0.5) -> None:
        require(self.name, gamma > 0, f"gamma={gamma} must be positive")
        require(self.name, kappa >= 0, f"kappa={kappa} is negative")
        require(self.name, 0 <= alpha <= 1, f"alpha={alpha} is not in 0..1")
        self.gamma, self.kappa, self.alpha = gamma, kappa, alpha

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        radius = self.gamma * math.exp(-self.kappa * block.round / max(1, block.rounds)) * lengths(block.own)
        accepted = (lengths(block.members - block.own[:, None]) <= radius[:, None]) & block.mask
        accepted[:, 0] = False
        return joined(block, accepted, self.alpha), accepted


class Ubar(Defence):
    """Keep the ceil(rho |N_i|) nearest; of them those whose loss on the node's own batch is at most its own [known].

    Where none is, the single best of the nearest. x_i <- alpha x_i + (1 - alpha) mean(kept). Guo et al. 2021.

    Args:
        rho: share of neighbours taken as benign, in (0, 1], default 0.5 [inferred].
        alpha: weight of the own model, default 0.5.
    """

    name = "ubar"
    selects = True

    def __init__(self, rho: float = 0.5, alpha: float = 0.5) -> None:
        require(self.name, 0 < rho <= 1, f"rho={rho} is not in (0, 1]")
        require(self.name, 0 <= alpha <= 1, f"alpha={alpha} is not in 0..1")
        self.rho, self.alpha = rho, alpha

    def lacking(self) -> str | None:
        return "a node's own batch"

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        if block.losses is None:
            raise DbadflError("defence 'ubar' tries received models on a node's own batch: give losses")
        received = block.mask.clone()
        received[:, 0] = False
        apart = lengths(block.members - block.own[:, None]).masked_fill(~received, float("inf"))
        rank = apart.argsort(dim=1, stable=True).argsort(dim=1)
        # The tiny subtraction undoes binary rounding: ceil(0.1 * 30) is 3, not 4.
        take = torch.ceil(self.rho * received.sum(1).double() - 1e-9).clamp(min=1)
        near = (rank < take[:, None]) & received
        receivers = block.nodes[:, None].expand_as(near)
        loss = apart.new_full(apart.shape, float("inf"))
        loss[near] = block.losses(receivers[near], block.senders[near]).to(loss)
        # NaN of a broken model is no reason to take it.
        loss = loss.nan_to_num(nan=float("inf"))
        own = block.losses(block.nodes, block.nodes).to(loss)
        kept = near & (loss <= own[:, None])
        best = torch.zeros_like(kept).scatter_(1, loss.argmin(1, keepdim=True), True) & near
        kept = torch.where(kept.any(1, keepdim=True), kept, best)
        return joined(block, kept, self.alpha), kept


def joined(block: Block, accepted: Tensor, alpha: float) -> Tensor:
    """alpha x_i + (1 - alpha) mean of the accepted [n, m], x_i where nobody is; [n, P]."""
    some = accepted.any(1, keepdim=True)
    return torch.where(some, alpha * block.own + (1 - alpha) * equal_mean(block.members, accepted), block.own)
