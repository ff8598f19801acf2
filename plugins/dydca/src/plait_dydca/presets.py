"""Named settings: the method, its controls, and the methods it is compared with. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BASELINES"]

BASELINES: Mapping[str, Mapping[str, Any]] = {
    "dydca": {},
    "equal-stdo": {"blocks": (6, 2)},
    "three-paths": {"blocks": (4, 2, 1)},
    "random": {"labels": "random"},
    "inverted": {"labels": "inverted"},
    "whole": {"split": "whole", "blocks": (4,)},
    "whole-small": {"split": "whole", "blocks": (2,)},
    "stdo": {"split": "clusters", "blocks": (4, 4)},
    "chunks": {"split": "chunks", "blocks": (4, 4, 4, 4, 4)},
    "released": {"grid": (20, 10), "tau": 40.0, "halo": 0, "init": "paper"},
}
