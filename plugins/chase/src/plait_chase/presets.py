"""Baselines as differences from the defaults (card, "Baselines"). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]

#: Baselines of the card as overrides of :class:`ChaseConfig`: ``ChaseConfig(**{"density": 0.1, **BASELINES["rigl"]})``.
#: Drop rates of set and rigl are those of their own papers [known]; the others follow the card.
BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "chase": MappingProxyType({}),
        "chase-s0": MappingProxyType({"channel_sparsity": 0.0}),
        "random-channels": MappingProxyType({"score": "random"}),
        "masked-mean": MappingProxyType({"score": "masked-mean"}),
        "umm-layer": MappingProxyType({"score": "umm-layer"}),
        "itop": MappingProxyType({"channel_sparsity": 0.0, "soft_bound": False, "scope": "layer"}),
        "rigl": MappingProxyType(
            {
                "channel_sparsity": 0.0,
                "soft_bound": False,
                "scope": "layer",
                "drop_start": 0.3,
                "drop_end": 0.0,
                "explore_until": 0.75,
            }
        ),
        "set": MappingProxyType(
            {
                "channel_sparsity": 0.0,
                "soft_bound": False,
                "scope": "layer",
                "growth": "random",
                "drop_start": 0.3,
                "drop_end": 0.3,
            }
        ),
        "static": MappingProxyType({"channel_sparsity": 0.0, "explore": False}),
        "dense": MappingProxyType({"density": 1.0, "channel_sparsity": 0.0, "explore": False}),
    }
)
