"""Option values of what the method is compared with, and of its best variant. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]

_BCE = {"l_CL": 0.0, "l_TCL": 0.0, "l_TCCL": 0.0, "attention": "none", "decision": "head"}
_WIDE = {"m": 50.0, "attention": "none"}

BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "full": {},
        "wide-margin": _WIDE,
        "wide-margin-gain": {**_WIDE, "gain_aug": 0.2},
        "bce": _BCE,
        "bce-gain": {**_BCE, "gain_aug": 0.2},
        "centre-loss": {**_BCE, "l_CL": 1.0},
    }
)
"""Preset -> option values: the method as the card has it, its best variant on validation frames without and with random
thermal gain, the paper's baseline (a classifier alone), the same with gain, and with the centre loss (Wen et al. 2016).
"""
