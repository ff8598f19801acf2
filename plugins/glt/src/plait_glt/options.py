"""Options of the plugin: bounds, units and a description each. Imports no torch.

Names and defaults are those of `plait_glt.config.GLTConfig`; what the recipe has already (learning rate of the weights,
epochs) is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait import PresetOptions
from plait_glt.config import VARIANTS


class GltOptions(PresetOptions):
    """What to prune, by what ranking, and for how long; see README for the sources of the defaults."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = VARIANTS

    rounds: int = Field(20, ge=1, le=1000, description="R: rounds of finding, pruning, rewinding and retraining")
    p_g: float = Field(0.05, gt=0, lt=1, description="share of the kept edges that a round prunes")
    p_theta: float = Field(0.2, gt=0, lt=1, description="share of the kept weights that a round prunes")
    graph_target: float | None = Field(None, gt=0, lt=1, description="stop as soon as this graph sparsity is reached")
    weight_target: float | None = Field(None, gt=0, lt=1, description="stop as soon as this weight sparsity is reached")
    mask_epochs: int | None = Field(
        None, ge=1, le=10**6, description="epochs in which a round learns the masks; default train.epochs"
    )
    fix_epochs: int | None = Field(
        None, ge=1, le=10**6, description="epochs of retraining with fixed masks; default train.epochs"
    )
    dense: bool = Field(True, description="first train the dense network on the whole graph, to compare tickets with")

    edge_ranking: Literal["mask", "random", "degree", "keep"] = Field(
        "mask", description="learned masks, chance, low degrees kept, or no edge pruned"
    )
    weight_ranking: Literal["mask", "random", "magnitude", "keep"] = Field(
        "mask", description="learned masks, chance, trained magnitudes, or no weight pruned"
    )
    directed_masks: bool = Field(
        True, description="a mask for each direction of an edge, as published; false: both directions share one (ours)"
    )

    lam: float = Field(0.1, ge=0, le=1e3, description="lambda: weight of the inter-class Wasserstein distance; 0: off")
    warmup: int = Field(10, ge=0, le=10**6, description="mask epochs before it acts: early predictions are one class")
    wd_samples: int = Field(256, ge=0, le=10**6, description="nodes drawn a side, class and step; 0: all nodes")
    wd_eps: float | None = Field(
        None,
        gt=0,
        le=10,
        description="entropy of Sinkhorn's iterations, in units of the distance; none: exact",
    )
    wd_iterations: int = Field(50, ge=1, le=10**4, description="most of these iterations; 0.001 takes over 1,000")

    adversary: Literal["none", "ascent", "delta"] = Field(
        "delta", description="worst-case sparsification: none, the literal ascent, or a separate removal (ours)"
    )
    rho: float = Field(0.05, ge=0, lt=1, description="delta: share of the kept edges that the adversary removes")
    alpha: float = Field(0.1, ge=0, le=1e3, description="ascent: weight of the implicit gradient; 0 leaves it out")
    eta1: float = Field(0.01, gt=0, le=1e3, description="learning rate of the edge masks (ascent: its step)")
    eta2: float = Field(0.01, gt=0, le=1e3, description="learning rate of the weight masks")
    clip: bool = Field(True, description="keep the edge masks in [0, 1]; UGS does not")
    l1_edges: float = Field(0.0, ge=0, le=1e3, description="gamma_1: L1 on the edge masks")
    l1_weights: float = Field(
        0.0, ge=0, le=1e3, description="gamma_2: L1 on the weight masks (UGS on Cora: 0.01; it costs accuracy here)"
    )
    decay_masks: bool = Field(False, description="weight decay acts on the masks too, as in UGS's code")
    dropedge: float = Field(
        0.0, ge=0, lt=1, description="DropEdge: share of the edges left out of each retraining step"
    )

    tolerance: float = Field(0.0, ge=0, le=100, description="points below the dense accuracy that still win")
    ticket: str | None = Field(
        None, min_length=1, description="train a ticket found before (its ticket.safetensors) instead of finding one"
    )
    ticket_weights: Literal["ticket", "random"] = Field(
        "ticket", description="weight masks of that ticket, or as many weights of each matrix by chance, to compare"
    )

    @model_validator(mode="after")
    def _targets_reachable(self) -> GltOptions:
        pairs = (("graph_target", "p_g", "edge_ranking"), ("weight_target", "p_theta", "weight_ranking"))
        for target, share, ranking in pairs:
            wanted, part = getattr(self, target), getattr(self, share)
            if wanted is not None and getattr(self, ranking) == "keep":
                raise ValueError(f"{target} = {wanted} is out of reach: {ranking} = 'keep' prunes nothing")
            reached = 1 - (1 - part) ** self.rounds
            if wanted is not None and wanted > reached:
                raise ValueError(
                    f"{target} = {wanted} is out of reach: {self.rounds} rounds of {share} = {part} end near "
                    f"{reached:.4f}; raise rounds or {share}"
                )
        return self

    @property
    def planned(self) -> int:
        """Rounds that are run: all of them, or as many as the targets take; one to train a given ticket."""
        if self.ticket is not None:
            return 1
        pairs = ((self.graph_target, self.p_g), (self.weight_target, self.p_theta))
        needed = [math.ceil(math.log(1 - wanted) / math.log(1 - p) - 1e-9) for wanted, p in pairs if wanted is not None]
        return min(self.rounds, max(needed)) if needed else self.rounds

    @property
    def trains_masks(self) -> bool:
        """Whether a ranking needs a mask phase: learned masks, or the magnitudes of trained weights."""
        return self.edge_ranking == "mask" or self.weight_ranking in ("mask", "magnitude")

    def lengths(self, steps: int, steps_per_epoch: int) -> tuple[int, int]:
        """Steps of a mask phase (0 where a ranking needs none) and of a retraining phase.

        Args:
            steps: what the recipe says, the length of a phase.
            steps_per_epoch: 1 for a graph that is one batch.
        """
        mask = self.mask_epochs * steps_per_epoch if self.mask_epochs else steps
        fix = self.fix_epochs * steps_per_epoch if self.fix_epochs else steps
        return (mask if self.trains_masks and self.ticket is None else 0), fix
