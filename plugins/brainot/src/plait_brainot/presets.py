"""Option values of the losses that the method is compared with. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]

BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ot": {"align": "emd"},
        "published": {"align": "partial", "m": 0.5},
        "as-commented": {"align": "entropic_partial", "m": 0.5, "eps": 1.0},
        "umbrae": {"align": "mse"},
        "squared-ot": {"align": "emd", "cost": "sqeuclidean"},
        "entropic": {"align": "entropic_partial"},
        "fused": {"align": "fused"},
        "unbalanced": {"align": "unbalanced"},
        "sinkhorn-divergence": {"align": "sinkhorn_div"},
        "mmd": {"align": "mmd"},
        "jsd": {"align": "jsd"},
        "l1": {"align": "l1"},
        "huber": {"align": "huber"},
        "quantile": {"align": "quantile"},
        "hybrid": {"align": "hybrid"},
    }
)
"""Preset -> option values; data, budget and optimizer stay as they are given beside them.

| name | what it is |
| --- | --- |
| ot | all mass is moved, exactly: the embedded default |
| published | exact partial transport of half of the mass, the one variant that the public code fully specifies |
| as-commented | its entropic variant with the strength that stands in its comments |
| umbrae | mean squared error, token by token: the base method |
| squared-ot | transport by squared distance, so that the gain is not one of the exponent |
| others | the card's other losses |
"""
