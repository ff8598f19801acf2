"""The state of the global random generators, as a tree for a checkpoint, and what one forward pass draws from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def global_random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators of torch, numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        **dict(zip(("torch", "cuda"), random_state(device), strict=False)),
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(gauss)],
        },
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "next": gauss_next},
    }


def set_global_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators back."""
    set_random_state([state[kind] for kind in ("torch", "cuda") if kind in state], device)
    saved = state["numpy"]
    position, has_gauss, gauss = saved["rest"]
    np.random.set_state((saved["name"], saved["keys"].numpy().astype(np.uint32), position, has_gauss, gauss))
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["next"]))


def random_state(device: torch.device) -> list[Tensor]:
    """The state of torch's global generators that a forward pass can draw from."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Put the generators back to `random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
