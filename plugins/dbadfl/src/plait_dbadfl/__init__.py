"""Decentralized federations under distributed backdoors: attacks, scans and defences, in a closed simulation.

A method library in plain PyTorch; names are imported on first use, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arms import AttackPlan
    from .assignment import assign_parts, assign_shared
    from .budgets import Budget, poison_ratios
    from .clustering import adjusted_rand, cluster_attackers, random_clusters
    from .config import (
        AttackConfig,
        FederationConfig,
        LocalConfig,
        PredictorConfig,
        ScanConfig,
        ShadowConfig,
        SplitConfig,
    )
    from .course import AttackCourse
    from .defences.aggregation import DEFENCES, RobustAggregation, make_defence
    from .defences.base import Defence, Verdict
    from .defences.clipping import NormClipping, SelfCentredClipping
    from .defences.coordinatewise import Median, TrimmedMean
    from .defences.geometric import RFA, Krum, MultiKrum
    from .defences.selection import Balance, Ubar
    from .defences.similarity import Flame, FoolsGold
    from .detection import Detection, Detector, Scan
    from .engines import DPSGD, ENGINES, DFedAvg, DFedAvgM, Engine, FedAvg, Gossip, Swarm, make_engine
    from .errors import DbadflError
    from .federation import Federation
    from .local import Attack, NodeSGD, Training
    from .metrics import Paired, Scores, Summary, evaluate, paired_difference, placement_sensitivity, summarize
    from .mixing import Mixing, make_mixing
    from .names import ARMS
    from .placement import place_attackers
    from .poisoning import Poison, Schedule, poison, scale_update
    from .predictor import DetectionScores, DistancePredictor, score_detection
    from .reference import ImageData, digits, digits_mlp
    from .results import Result
    from .scan import Signatures, make_signatures, pair_sequences, probe_features
    from .shadows import ShadowPairs, simulate_shadows
    from .sharding import NodeShards
    from .splits import dirichlet_split, iid_split
    from .stacking import Stacked
    from .topologies import TOPOLOGIES, Topology, make_topology, read_edges
    from .triggers import Trigger, preset_trigger, stamp

__version__ = "0.1.0"

_HOMES = {
    "arms": ("AttackPlan",),
    "assignment": (
        "assign_parts",
        "assign_shared",
    ),
    "budgets": (
        "Budget",
        "poison_ratios",
    ),
    "clustering": (
        "adjusted_rand",
        "cluster_attackers",
        "random_clusters",
    ),
    "config": (
        "AttackConfig",
        "FederationConfig",
        "LocalConfig",
        "PredictorConfig",
        "ScanConfig",
        "ShadowConfig",
        "SplitConfig",
    ),
    "course": ("AttackCourse",),
    "defences.aggregation": (
        "DEFENCES",
        "RobustAggregation",
        "make_defence",
    ),
    "defences.base": (
        "Defence",
        "Verdict",
    ),
    "defences.clipping": (
        "NormClipping",
        "SelfCentredClipping",
    ),
    "defences.coordinatewise": (
        "Median",
        "TrimmedMean",
    ),
    "defences.geometric": (
        "Krum",
        "MultiKrum",
        "RFA",
    ),
    "defences.selection": (
        "Balance",
        "Ubar",
    ),
    "defences.similarity": (
        "Flame",
        "FoolsGold",
    ),
    "detection": (
        "Detection",
        "Detector",
        "Scan",
    ),
    "engines": (
        "DFedAvg",
        "DFedAvgM",
        "DPSGD",
        "ENGINES",
        "Engine",
        "FedAvg",
        "Gossip",
        "Swarm",
        "make_engine",
    ),
    "errors": ("DbadflError",),
    "federation": ("Federation",),
    "local": (
        "Attack",
        "NodeSGD",
        "Training",
    ),
    "metrics": (
        "Paired",
        "Scores",
        "Summary",
        "evaluate",
        "paired_difference",
        "placement_sensitivity",
        "summarize",
    ),
    "mixing": (
        "Mixing",
        "make_mixing",
    ),
    "names": ("ARMS",),
    "placement": ("place_attackers",),
    "poisoning": (
        "Poison",
        "Schedule",
        "poison",
        "scale_update",
    ),
    "predictor": (
        "DetectionScores",
        "DistancePredictor",
        "score_detection",
    ),
    "reference": (
        "ImageData",
        "digits",
        "digits_mlp",
    ),
    "results": ("Result",),
    "scan": (
        "Signatures",
        "make_signatures",
        "pair_sequences",
        "probe_features",
    ),
    "shadows": (
        "ShadowPairs",
        "simulate_shadows",
    ),
    "sharding": ("NodeShards",),
    "splits": (
        "dirichlet_split",
        "iid_split",
    ),
    "stacking": ("Stacked",),
    "topologies": (
        "TOPOLOGIES",
        "Topology",
        "make_topology",
        "read_edges",
    ),
    "triggers": (
        "Trigger",
        "preset_trigger",
        "stamp",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ARMS",
    "DEFENCES",
    "DPSGD",
    "ENGINES",
    "RFA",
    "TOPOLOGIES",
    "Attack",
    "AttackConfig",
    "AttackCourse",
    "AttackPlan",
    "Balance",
    "Budget",
    "DFedAvg",
    "DFedAvgM",
    "DbadflError",
    "Defence",
    "Detection",
    "DetectionScores",
    "Detector",
    "DistancePredictor",
    "Engine",
    "FedAvg",
    "Federation",
    "FederationConfig",
    "Flame",
    "FoolsGold",
    "Gossip",
    "ImageData",
    "Krum",
    "LocalConfig",
    "Median",
    "Mixing",
    "MultiKrum",
    "NodeSGD",
    "NodeShards",
    "NormClipping",
    "Paired",
    "Poison",
    "PredictorConfig",
    "Result",
    "RobustAggregation",
    "Scan",
    "ScanConfig",
    "Schedule",
    "Scores",
    "SelfCentredClipping",
    "ShadowConfig",
    "ShadowPairs",
    "Signatures",
    "SplitConfig",
    "Stacked",
    "Summary",
    "Swarm",
    "Topology",
    "Training",
    "Trigger",
    "TrimmedMean",
    "Ubar",
    "Verdict",
    "adjusted_rand",
    "assign_parts",
    "assign_shared",
    "cluster_attackers",
    "digits",
    "digits_mlp",
    "dirichlet_split",
    "evaluate",
    "iid_split",
    "make_defence",
    "make_engine",
    "make_mixing",
    "make_signatures",
    "make_topology",
    "pair_sequences",
    "paired_difference",
    "place_attackers",
    "placement_sensitivity",
    "poison",
    "poison_ratios",
    "preset_trigger",
    "probe_features",
    "random_clusters",
    "read_edges",
    "scale_update",
    "score_detection",
    "simulate_shadows",
    "stamp",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
