"""Seeds: of any named part of a run, and of the global generators. torch is imported where it is seeded."""

from __future__ import annotations

import hashlib
from typing import Any


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python for building data and model."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_noise(seed: int, rank: int, step: int = 0) -> None:
    """Seed what is drawn during training (dropout), differently on every rank."""
    import torch

    torch.manual_seed(seed_of(seed, "noise", rank, step))
