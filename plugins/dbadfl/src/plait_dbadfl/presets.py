"""Named settings. Imports no torch. [code] values are those of the ancestor's official code (AI-secure/DBA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACCEPT: Mapping[str, Any] = {
    "arm": "clusters-predicted",
    "companions": [
        "none",
        "centralized-one",
        "naive",
        "centralized-all",
        "clusters-random",
        "clusters-oracle",
        "+median",
        "+clipping",
        "naive/samples",
        "naive@adjacent",
        "naive@adjacent/samples",
        "naive@two-groups",
        "naive@two-groups/samples",
        "naive@spread",
        "naive@spread/samples",
    ],
    "shadow_topology": "same-family",
    "shadow_data": "all",
    "defence_options": {"clipping": {"weights": "equal"}},
    "evaluate_every": 0,
}
"""The card's reference experiment; its shadows are optimistic, as the card says."""

_ANCESTOR: Mapping[str, Any] = {
    "engine": "fedavg",
    "topology": "complete",
    "weights": "average",
    "nodes": 100,
    "drawn": 10,
    "server_step": 0.1,
    "attackers": 4,
    "arm": "naive-4",
    "schedule": "single",
    "gamma": 100.0,
    "tau": "inf",
    "fresh_momentum": True,
    "attacker_lr_milestones": [0.2, 0.8],
    "attacker_lr_decay": 0.1,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "accept": ACCEPT,
    "ancestor-mnist": {
        **_ANCESTOR,
        "trigger": "mnist",
        "first": 20,
        "local_epochs": 1,
        "attacker_epochs": 10,
        "attacker_lr": 0.05,
        "warmup_rounds": 10,
        "rounds": 70,
        "attack_rounds": [12, 14, 16, 18],
    },
    "ancestor-cifar10": {
        **_ANCESTOR,
        "trigger": "cifar10",
        "first": 5,
        "local_epochs": 2,
        "attacker_epochs": 6,
        "attacker_lr": 0.05,
        "warmup_rounds": 200,
        "rounds": 300,
        "attack_rounds": [203, 205, 207, 209],
    },
    "ancestor-tiny-imagenet": {
        **_ANCESTOR,
        "trigger": "tiny-imagenet",
        "first": 20,
        "local_epochs": 2,
        "attacker_epochs": 10,
        "attacker_lr": 0.001,
        "split_alpha": 0.01,
        "min_samples": 1,
        "warmup_rounds": 20,
        "rounds": 100,
        "attack_rounds": [21, 23, 25, 27],
    },
}
"""Name -> options. Rounds count from 0. What differs from the ancestor is said in the README."""
