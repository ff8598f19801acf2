"""Bounds on how far one model can pull: norm clipping and self-centred clipping. Card, baselines and defences."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from plait_dbadfl.defences.base import Block, Defence, lengths, masked_median, require, shrink
from plait_dbadfl.defences.geometric import weighted_sum

__all__ = ["NormClipping", "SelfCentredClipping"]

Shares = Literal["mixing", "equal"]


class NormClipping(Defence):
    """x_i <- s_i + sum_j w_ij u_j min(1, c / ||u_j||) with u_j = x_j - s_i.

    s_i is the node's own model before its local steps. The card gives the clipped update; what it is relative to
    without a server is [inferred].

    Args:
        threshold: c of received updates; None: the median norm of the node's closed neighbourhood [inferred].
        own_threshold: c of the node's own update (two thresholds: arXiv 2301.09732); None: as ``threshold``.
        weights: w_ij: ``mixing`` (W) or ``equal`` over the closed neighbourhood.
    """

    name = "norm-clipping"
    needs_start = True

    def __init__(
        self, threshold: float | None = None, own_threshold: float | None = None, weights: Shares = "mixing"
    ) -> None:
        for option, value in (("threshold", threshold), ("own_threshold", own_threshold)):
            require(self.name, value is None or value > 0, f"{option}={value} must be positive")
        require(self.name, weights in ("mixing", "equal"), f"weights={weights!r} is not 'mixing' or 'equal'")
        self.threshold, self.own_threshold, self.weights = threshold, own_threshold, weights

    def lacking(self) -> str | None:
        return None if self.own_threshold is None else "a node's own update (own_threshold)"

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        assert block.start is not None
        updates = block.members - block.start[:, None]
        sizes = lengths(updates)
        if self.threshold is None:
            limits = masked_median(sizes, block.mask)[:, None].expand_as(sizes).clone()
        else:
            limits = sizes.new_full(sizes.shape, self.threshold)
        if self.own_threshold is not None:
            limits[:, 0] = self.own_threshold
        return block.start + weighted_sum(block.shares(self.weights), shrink(updates, limits)), None


class SelfCentredClipping(Defence):
    """x_i <- x_i + sum_j W_ij clip(x_j - x_i, tau_i) (ClippedGossip, He et al. 2022) [known].

    Args:
        tau: radius; None: the median distance to the neighbours, at every node.
        weights: ``mixing`` (W_ij) or ``equal``, as the card's reference experiment.
    """

    name = "clipping"

    def __init__(self, tau: float | None = None, weights: Shares = "mixing") -> None:
        require(self.name, tau is None or tau > 0, f"tau={tau} must be positive")
        require(self.name, weights in ("mixing", "equal"), f"weights={weights!r} is not 'mixing' or 'equal'")
        self.tau, self.weights = tau, weights

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        apart = block.members[:, 1:] - block.own[:, None]
        sizes = lengths(apart)
        if self.tau is None:
            limits = masked_median(sizes, block.mask[:, 1:])[:, None].expand_as(sizes)
        else:
            limits = sizes.new_full(sizes.shape, self.tau)
        return block.own + weighted_sum(block.shares(self.weights)[:, 1:], shrink(apart, limits)), None
