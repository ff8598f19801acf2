"""Option values of the ablations and of every method that BiFP is compared with. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]

_MAGNITUDE = {"scores": "anchored", "learn_mask": False, "mask_strength": 0.0}
_PLAIN = {"strength": 0.0}
_FILTERS = {"structure": "channels", "scope": "layer"}

BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bifp": {},
        "without-mask": {"mask_strength": 0.0},
        "without-weights": {"weight_strength": 0.0},
        "bip": _PLAIN,
        "random-hypergradient": {"hypergradient": "random"},
        "paper": {"protocol": "paper", "scores": "random", "density": "constant", "penalty": "signed"},
        "dense": {"sparsity": 0.0, **_PLAIN},
        "fair-dense": {"sparsity": 0.0},
        "magnitude": {**_MAGNITUDE, **_PLAIN, "density": "once"},
        "magnitude-gradual": {**_MAGNITUDE, **_PLAIN},
        "prune-then-fair": {**_MAGNITUDE, "density": "once", "dense_strength": 0.0},
        "gradual-fair": dict(_MAGNITUDE),
        "fair-then-prune": {**_MAGNITUDE, "density": "once", "weight_strength": 0.0, "dense_strength": 1.0},
        "snip": {**_MAGNITUDE, **_PLAIN, "scores": "snip", "density": "once", "dense_share": 0.0},
        "fpgm": {**_MAGNITUDE, **_PLAIN, **_FILTERS, "scores": "fpgm", "density": "once"},
        "lottery": {**_MAGNITUDE, **_PLAIN, "density": "rounds", "rewind": True},
        "random": {**_MAGNITUDE, **_PLAIN, "scores": "random", "density": "once", "dense_share": 0.0},
        "fairgrape": {**_MAGNITUDE, **_PLAIN, "scores": "fairgrape", "density": "rounds", "scope": "layer"},
        "lagrangian": {**_MAGNITUDE, **_PLAIN, "dual_rate": 0.05, "tolerance": 0.02, "density": "once"},
    }
)
"""Preset -> option values; what each is stands in the README. Budget, data and ``protocol`` are given beside it."""
