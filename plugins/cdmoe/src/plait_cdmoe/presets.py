"""What the method is compared with, by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASELINES: Mapping[str, Mapping[str, Any]] = {
    "cd-moe-sr": {"mode": "SR"},
    "cd-moe-s": {"mode": "S"},
    "layer-trimming": {"mode": "layer-trimming"},
    "block-trimming": {"mode": "block-trimming"},
    "layer-drop": {"mode": "layer-drop"},
    "random-experts": {"experts": "random"},
    "frequency-experts": {"experts": "frequency"},
    "weight-experts": {"experts": "weight"},
    "unconditional": {"weights": "unconditional"},
}
