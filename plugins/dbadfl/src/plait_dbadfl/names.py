"""The names that options choose among, each list once. Imports no torch, so that options are read without it.

A registry of classes has the same names as its list here; a test compares them.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["ARMS"]

Topologies = Literal["ring", "torus", "watts-strogatz", "erdos-renyi", "exponential", "star", "complete", "file"]
Weights = Literal["metropolis", "uniform", "exponential", "average"]
Engines = Literal["dfedavg", "dfedavgm", "dpsgd", "swarm", "gossip", "fedavg"]
Order = Literal["mix-then-step", "step-then-mix"]
Interactions = Literal["sequential", "matching"]
SwarmSteps = Literal["fixed", "geometric"]
Split = Literal["dirichlet", "iid"]
Computed = Literal["vmap", "grouped", "loop"]
Triggers = Literal["auto", "digits", "mnist", "cifar10", "tiny-imagenet"]
Arm = Literal[
    "none",
    "centralized-one",
    "centralized-all",
    "naive",
    "naive-4",
    "clusters-random",
    "clusters-oracle",
    "clusters-predicted",
]
Placement = Literal["random", "adjacent", "two-groups", "spread", "degree", "betweenness", "pagerank", "list"]
Budgets = Literal["pixels", "samples"]
Schedules = Literal["multi", "single"]
Milestones = Literal["share", "whole-epochs"]
SignatureTarget = Literal["own", "shared"]
ShadowTopology = Literal["same-family", "mixture", "other-family"]
ShadowData = Literal["attackers", "all"]
Head = Literal["regression", "class"]
Defences = Literal[
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "rfa",
    "norm-clipping",
    "foolsgold",
    "flame",
    "clipping",
    "balance",
    "ubar",
]

TOPOLOGIES: tuple[str, ...] = get_args(Topologies)
"""The names of `make_topology`."""
WEIGHTS: tuple[str, ...] = get_args(Weights)
ORDERS: tuple[str, ...] = get_args(Order)
INTERACTIONS: tuple[str, ...] = get_args(Interactions)
SWARM_STEPS: tuple[str, ...] = get_args(SwarmSteps)
SPLITS: tuple[str, ...] = get_args(Split)
ARMS: tuple[str, ...] = get_args(Arm)
"""Card, "Baselines"; ``clusters-predicted`` is dba-dfl."""
PLACEMENTS: tuple[str, ...] = get_args(Placement)
BUDGETS: tuple[str, ...] = get_args(Budgets)
SIGNATURE_TARGETS: tuple[str, ...] = get_args(SignatureTarget)
DEFENCES: tuple[str, ...] = get_args(Defences)

CLUSTERED: tuple[str, ...] = tuple(arm for arm in ARMS if arm.startswith("clusters-"))
"""Arms whose attackers are clustered by distance."""
SCANNING: tuple[str, ...] = ("clusters-random", "clusters-predicted")
"""Arms that need the predicted clusters: the random ones have the sizes of the predicted ones."""
