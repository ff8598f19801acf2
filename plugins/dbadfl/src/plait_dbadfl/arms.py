"""From an arm of the comparison to what every attacker does in every round. Card, "Baselines" and sections 5 to 7."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.assignment import assign_parts, assign_shared
from plait_dbadfl.budgets import Budget, poison_ratios
from plait_dbadfl.clustering import cluster_attackers, random_clusters
from plait_dbadfl.detection import Detection
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Attack
from plait_dbadfl.names import CLUSTERED, SCANNING
from plait_dbadfl.options import AttackOptions, LocalOptions
from plait_dbadfl.poisoning import Poison, active
from plait_dbadfl.sampling import generator
from plait_dbadfl.triggers import Trigger

__all__ = ["AttackPlan"]

ANCESTOR_PARTS = 4


def clusters_of_arm(
    options: AttackOptions, true_hops: Tensor, detection: Detection | None, *, seed: int
) -> Tensor | None:
    """Cluster of each attacker, or None for an arm without clusters.

    Args:
        options: names the arm and the threshold.
        true_hops: [M, M], read by ``clusters-oracle`` alone.
        detection: its predicted distances are read by ``clusters-predicted`` and, for its sizes, by
            ``clusters-random``; the shadows' median distance by ``tau = "median"``.
        seed: of the random clusters, and of the noise on predicted distances.

    Returns:
        int64 [M]. ``naive`` is one cluster and ``centralized-all`` singletons: tau = infinity and tau = 0.

    Raises:
        DbadflError: an arm that needs a detection without one.
    """
    count = options.attackers
    if options.arm == "naive":
        return torch.zeros(count, dtype=torch.int64)
    if options.arm == "centralized-all":
        return torch.arange(count)
    if options.arm not in CLUSTERED:
        return None
    hops, median = true_hops, None if detection is None else detection.median
    if options.arm in SCANNING:
        if detection is None:
            raise DbadflError(f"arm={options.arm!r} needs predicted distances: run the detection first")
        hops = noisy(detection.hops, options.distance_noise, seed=seed)
    clusters = cluster_attackers(hops, tau=options.threshold(median), n_clusters=options.n_clusters)
    return random_clusters(clusters, seed=seed) if options.arm == "clusters-random" else clusters


def noisy(hops: Tensor, deviation: float, *, seed: int) -> Tensor:
    """Distances [M, M] with Gaussian noise of that standard deviation in hops, still symmetric; at least 1 off the
    diagonal."""
    if not deviation:
        return hops
    noise = torch.randn(hops.shape, generator=generator(seed, "distance noise"), dtype=torch.float64).triu(1)
    moved = (hops + deviation * (noise + noise.T)).clamp(min=1.0)
    return moved.fill_diagonal_(0.0)


@dataclass(frozen=True)
class AttackPlan:
    """Who does what in which round; a function of the round alone.

    Args:
        options: of the attack.
        trigger: Q.
        nodes: int64 [M], the attackers' nodes.
        clusters: int64 [M], or None for an arm without clusters.
        seed: of the order of parts.
        device: where the poison is kept.
    """

    options: AttackOptions
    trigger: Trigger
    nodes: Tensor
    clusters: Tensor | None
    seed: int
    device: torch.device | str = "cpu"

    def rotation(self, round_: int) -> int:
        """How often parts have been redrawn before this round."""
        every = self.options.rotate_every
        return round_ // every if every else 0

    def parts(self, round_: int = 0) -> Tensor:
        """bool [M, |Q|], pixels of each attacker; all False for one that does not attack."""
        count, rotation = len(self.nodes), self.rotation(round_)
        arm = self.options.arm
        if arm == "none":
            return torch.zeros(count, len(self.trigger), dtype=torch.bool)
        if arm == "centralized-one":
            return (torch.arange(count) == 0)[:, None].expand(-1, len(self.trigger)).clone()
        if arm == "naive-4":
            return assign_shared(count, ANCESTOR_PARTS, self.trigger, seed=self.seed, rotation=rotation)
        assert self.clusters is not None
        return assign_parts(self.clusters, self.trigger, seed=self.seed, rotation=rotation)

    def budget(self, round_: int = 0) -> Budget:
        """What each attacker may poison; zero for one that does not attack.

        Under ``budget="pixels"`` arms are equal in the pixels of all attackers together, so the only attacker of
        ``centralized-one`` has M times b [inferred].
        """
        sizes = self.parts(round_).sum(1)
        acting, amount = sizes > 0, self.options.amount
        if self.options.arm == "centralized-one" and self.options.budget == "pixels":
            amount *= len(sizes)
        budget = poison_ratios(sizes[acting], self.options.budget, amount)
        ratio, pixels = (torch.zeros(len(sizes), dtype=torch.float64) for _ in range(2))
        short = torch.zeros(len(sizes), dtype=torch.bool)
        ratio[acting], pixels[acting], short[acting] = budget.ratio, budget.pixels, budget.short
        return Budget(ratio, pixels, short)

    def attack(self, round_: int, local: LocalOptions | None = None) -> Attack | None:
        """What happens in a round; None if nobody poisons.

        Args:
            round_: from 0.
            local: says the attackers' learning rate; None: they have the common one.
        """
        if self.options.arm == "none":
            return None
        ratio = self.budget(round_).ratio.float() * active(self.options, round_)
        if not bool(ratio.any()):
            return None
        mask = self.trigger.masks(self.parts(round_))
        value = torch.full(mask.shape, self.trigger.value)
        target = torch.full((len(self.nodes),), self.options.target)
        poison = Poison(mask, value, ratio, target, self.options.first).to(self.device)
        rate = LocalOptions() if local is None else local
        return Attack(
            self.nodes,
            poison,
            self.options.gamma,
            self.options.loss_alpha,
            rate.attacker_lr,
            rate.milestones,
            rate.attacker_lr_decay,
        )
