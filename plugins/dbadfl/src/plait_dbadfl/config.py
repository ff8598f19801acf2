"""Options of the evaluation, validated. The card's section of each is named; [inferred] ones are reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait_dbadfl.clustering import check_threshold
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import (
    ARMS,
    BUDGETS,
    CLUSTERED,
    HEADS,
    MILESTONES,
    PLACEMENTS,
    SHADOW_DATA,
    SHADOW_TOPOLOGIES,
    SIGNATURE_TARGETS,
    SPLITS,
    Weights,
)
from plait_dbadfl.pace import whole_epochs
from plait_dbadfl.poisoning import Schedule, check_gamma
from plait_dbadfl.sampling import PROBES
from plait_dbadfl.splits import MIN_SAMPLES


def check_choice(option: str, value: str, names: tuple[str, ...]) -> None:
    """Raise `DbadflError` naming the option unless ``value`` is one of ``names``."""
    if value not in names:
        raise DbadflError(f"{option}={value!r} is unknown; choose one of {', '.join(names)}")


def check_share(option: str, value: float) -> None:
    """Raise `DbadflError` naming the option unless ``0 <= value <= 1``."""
    if not 0.0 <= value <= 1.0:
        raise DbadflError(f"{option}={value} is outside [0, 1]")


def check_least(option: str, value: float, least: float) -> None:
    """Raise `DbadflError` naming the option unless ``value >= least``."""
    if not value >= least:
        raise DbadflError(f"{option}={value} must be at least {least:g}")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Who owns which images (card, "Data").

    Args:
        kind: ``"dirichlet"`` (default) or ``"iid"``.
        alpha: Dirichlet concentration, > 0; default 0.5.
        min_samples: fewest images of a node; default 8.
    """

    kind: str = "dirichlet"
    alpha: float = 0.5
    min_samples: int = MIN_SAMPLES

    def __post_init__(self) -> None:
        check_choice("split", self.kind, SPLITS)
        if not self.alpha > 0:
            raise DbadflError(f"alpha={self.alpha} of the Dirichlet split must be positive")
        check_least("min_samples", self.min_samples, 1)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A node's own training between exchanges (card, sections 2 and 3).

    Args:
        steps: K, SGD steps between exchanges; default 5.
        batch: B, images per step; default 16.
        lr: learning rate, > 0; default 0.2.
        momentum: of SGD, in [0, 1); default 0. Engine ``dfedavgm`` brings 0.9 and resets it each round.
        weight_decay: of SGD, at least 0; default 0.
        epochs: passes over a node's own images between exchanges instead of ``steps``: as many steps as their batches,
            which are drawn with replacement all the same; None (default) is ``steps``.
        fresh_momentum: momentum starts from zero in every round, as with an optimizer of its own for each [code];
            default False.
        attacker_steps, attacker_epochs: local steps, or passes, of attackers in rounds in which they attack; one of the
            two. None (default) as the others.
        attacker_lr: learning rate of attackers while they attack; None (default) as the others.
        attacker_lr_milestones: shares of their local steps in (0, 1), after each of which their rate is multiplied by
            ``attacker_lr_decay``; default none. The ancestor has 0.2 and 0.8 [code].
        attacker_lr_decay: in (0, 1]; default 0.1 [code].
        attacker_lr_at: ``"share"`` (default); ``"whole-epochs"`` drops milestones that are not a whole number of
            ``attacker_epochs``, as the ancestor's scheduler does (see `plait_dbadfl.pace.whole_epochs`).
    """

    steps: int = 5
    batch: int = 16
    lr: float = 0.2
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int | None = None
    fresh_momentum: bool = False
    attacker_steps: int | None = None
    attacker_epochs: int | None = None
    attacker_lr: float | None = None
    attacker_lr_milestones: tuple[float, ...] = ()
    attacker_lr_decay: float = 0.1
    attacker_lr_at: str = "share"

    def __post_init__(self) -> None:
        check_least("steps", self.steps, 1)
        for option in ("epochs", "attacker_steps", "attacker_epochs"):
            if getattr(self, option) is not None:
                check_least(option, getattr(self, option), 1)
        if self.attacker_steps is not None and self.attacker_epochs is not None:
            raise DbadflError("attacker_steps and attacker_epochs are both given; choose one")
        if not all(0.0 < m < 1.0 for m in self.attacker_lr_milestones):
            raise DbadflError(f"attacker_lr_milestones={self.attacker_lr_milestones} are shares between 0 and 1")
        if not 0.0 < self.attacker_lr_decay <= 1.0:
            raise DbadflError(f"attacker_lr_decay={self.attacker_lr_decay} is outside (0, 1]")
        check_choice("attacker_lr_at", self.attacker_lr_at, MILESTONES)
        if self.attacker_lr_at == "whole-epochs" and self.attacker_epochs is None:
            raise DbadflError("attacker_lr_at='whole-epochs' counts epochs: give attacker_epochs")
        check_least("batch", self.batch, 1)
        for option in ("lr", "attacker_lr"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise DbadflError(f"{option}={value} must be positive")
        if not 0.0 <= self.momentum < 1.0:
            raise DbadflError(f"momentum={self.momentum} is outside [0, 1)")
        check_least("weight_decay", self.weight_decay, 0)

    @property
    def milestones(self) -> tuple[float, ...]:
        """The milestones that count."""
        if self.attacker_lr_at == "share" or self.attacker_epochs is None:
            return self.attacker_lr_milestones
        return whole_epochs(self.attacker_lr_milestones, self.attacker_epochs)


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What is evaluated against (card, sections 3, 5, 6 and 7).

    Args:
        arm: one of `ARMS`; default ``"none"``.
        attackers: M, at least 1; default 8. Also of the arm ``none``, whose benign nodes are the same.
        placement: one of `plait_dbadfl.placement.PLACEMENTS`; default ``"random"``.
        positions: nodes for ``placement="list"``.
        target: c*, default 2 [code].
        budget: ``"pixels"`` (default) or ``"samples"``.
        pixels: b, expected stamped pixels per training sample of an attacker under ``budget="pixels"``; default 0.8.
        ratio: r, chance of a sample to be poisoned under ``budget="samples"``; default 0.2.
        first: k of the ancestor's mode, the first k samples of each batch; None (default) is a chance per sample.
        gamma: scale of attackers' updates, in (0, 100]; default 1.
        alpha: weight of cross-entropy against the distance to the start of the round, in [0, 1]; default 1.
        schedule: when; default every round from 0.
        tau: clustering threshold in hops, at least 0; default 3 [inferred].
        n_clusters: number of clusters instead of tau.
        rotate_every: rounds between redraws of who carries which part; 0 (default) is never.
        redetect_every: rounds between detections in the course of the attack; 0 (default) is never.
    """

    arm: str = "none"
    attackers: int = 8
    placement: str = "random"
    positions: tuple[int, ...] = ()
    target: int = 2
    budget: str = "pixels"
    pixels: float = 0.8
    ratio: float = 0.2
    first: int | None = None
    gamma: float = 1.0
    alpha: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    tau: float = 3.0
    n_clusters: int | None = None
    rotate_every: int = 0
    redetect_every: int = 0

    def __post_init__(self) -> None:
        check_choice("arm", self.arm, ARMS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("budget", self.budget, BUDGETS)
        check_least("attackers", self.attackers, 1)
        if self.arm in CLUSTERED and self.attackers < 2:
            raise DbadflError(f"arm={self.arm!r} with attackers=1: one attacker has no cluster; use 'centralized-one'")
        check_least("target", self.target, 0)
        check_least("pixels", self.pixels, 0)
        check_share("ratio", self.ratio)
        check_share("alpha", self.alpha)
        if self.first is not None:
            check_least("first", self.first, 0)
        check_gamma(self.gamma)
        check_threshold(self.tau, self.n_clusters, self.attackers)
        for option in ("rotate_every", "redetect_every"):
            check_least(option, getattr(self, option), 0)

    @property
    def amount(self) -> float:
        """b or r, as the budget says."""
        return self.pixels if self.budget == "pixels" else self.ratio


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Network detection, the observing part (card, section 4) [inferred].

    Args:
        rounds: T_s, default 20.
        pixels: n_s of a signature; None (default) is 10 on 8 x 8 images, else 16.
        ratio: r_s, share of an attacker's samples that carry its signature, in [0, 1]; default 0.5.
        target: ``"own"`` (default): attacker i teaches class i mod C; ``"shared"``: all teach the attack's target.
        probes: most own images on which an attacker measures; default 24.
        hold_out: keep the probes out of training; default False.
    """

    rounds: int = 20
    pixels: int | None = None
    ratio: float = 0.5
    target: str = "own"
    probes: int = PROBES
    hold_out: bool = False

    def __post_init__(self) -> None:
        check_least("scan rounds", self.rounds, 1)
        if self.pixels is not None:
            check_least("signature pixels", self.pixels, 1)
        check_share("scan ratio (r_s)", self.ratio)
        check_choice("signature_target", self.target, SIGNATURE_TARGETS)
        check_least("probes", self.probes, 1)


@dataclass(frozen=True, kw_only=True)
class ShadowConfig:
    """Simulated networks of known distances, from which the predictor learns (card, section 4 step 5) [inferred].

    Args:
        networks: default 40.
        topology: ``"mixture"`` (default): of all declared families; ``"same-family"``: optimistic, attackers would have
            to know the family; ``"other-family"``: none of the evaluated family, the transfer test.
        data: ``"attackers"`` (default): their own images only; ``"all"``: optimistic.
        seed: None (default) derives one; must differ from the seed of the run.
        at_once: most shadow nodes simulated in one stack; bounds memory. Default 2048.
    """

    networks: int = 40
    topology: str = "mixture"
    data: str = "attackers"
    seed: int | None = None
    at_once: int = 2048

    def __post_init__(self) -> None:
        check_least("shadows", self.networks, 1)
        check_choice("shadow_topology", self.topology, SHADOW_TOPOLOGIES)
        check_choice("shadow_data", self.data, SHADOW_DATA)
        check_least("at_once", self.at_once, 1)


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The network that predicts distances (card, section 4 step 4) [inferred].

    Args:
        hidden: width of the LSTM, default 32.
        head: ``"regression"`` (default) of log(1+d); ``"class"``: classes 1..d_max-1 and ">= d_max" hops.
        max_distance: d_max of the class head, at least 2; default 6.
        lr: of Adam, default 5e-3.
        epochs: default 120.
        batch: default 128.
    """

    hidden: int = 32
    head: str = "regression"
    max_distance: int = 6
    lr: float = 5e-3
    epochs: int = 120
    batch: int = 128

    def __post_init__(self) -> None:
        check_choice("head", self.head, HEADS)
        check_least("max_distance", self.max_distance, 2)
        for option in ("hidden", "epochs", "batch"):
            check_least(option, getattr(self, option), 1)
        if not self.lr > 0:
            raise DbadflError(f"predictor lr={self.lr} must be positive")


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """One evaluated federation. The defaults are the card's reference experiment, less its arm and its graph.

    Args:
        seed: of everything; two arms of one seed share graph, split, placement, weights and batches.
        engine: name of `plait_dbadfl.engines.ENGINES`; default ``"dfedavg"``.
        engine_options: its own arguments, e.g. ``{"order": "step-then-mix"}`` for ``dpsgd``.
        weights: name of the mixing weights; None (default) is the graph's own, Metropolis for undirected ones.
        split, local, attack, scan, shadow, predictor: see their classes.
    """

    seed: int = 0
    engine: str = "dfedavg"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    scan: ScanConfig = field(default_factory=ScanConfig)
    shadow: ShadowConfig = field(default_factory=ShadowConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)

    def __post_init__(self) -> None:
        if self.shadow.seed is not None and self.shadow.seed == self.seed:
            raise DbadflError(
                f"shadow seed={self.seed} equals the seed of the run; shadows would share its graph and data"
            )
