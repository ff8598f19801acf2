"""Option values of the method's ablations and of what it is compared with. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]

_BCE = {"l_CL": 0.0, "l_TCL": 0.0, "l_TCCL": 0.0, "attention": "none", "decision": "head"}

BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "full": {},
        "bce": _BCE,
        "bce-gain": {**_BCE, "gain_aug": 0.2},
        "full-gain": {"gain_aug": 0.2},
        "centre-loss": {**_BCE, "l_CL": 1.0},
        "without-centre-loss": {"l_CL": 0.0},
        "without-attention": {"attention": "none"},
        "dacl": {"attention": "dacl"},
        "per-loss-global": {"attention": "per_loss_global"},
        "per-loss-gated": {"attention": "per_loss_gated"},
        "delta": {"center_update": "delta"},
        "reconstruction": {"l_rec": 1.0},
        "margin-1": {"m_c": 1.0},
    }
)
"""Preset -> option values; data, budget and optimizer stay as they are given beside them.

| name | what it is |
| --- | --- |
| full | the method |
| bce | the paper's baseline: the same encoder with a binary classifier alone |
| bce-gain | the same with random thermal gain and offset: the rival that the paper lacks |
| full-gain | both |
| centre-loss | classifier and centre loss (Wen et al. 2016) |
| without-centre-loss | the two triplet losses alone |
| without-attention, dacl, per-loss-global, per-loss-gated | the other forms of attention |
| delta | centres that follow their classes after the step, instead of by gradient |
| reconstruction | a decoder that rebuilds the thermal patch |
| margin-1 | the margin of two public codes of the cosine loss |
"""
