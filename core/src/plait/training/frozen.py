"""Passes that leave no trace: running statistics and every other buffer stay as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextlib.contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model run in training mode without changing any buffer.

    Normalisation layers use batch statistics but record none (their momentum and counters stay untouched); buffers of
    every other module are put back afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    known = {id(b) for m in norms for b in m.buffers(recurse=False)}
    others = [(b, b.clone()) for b in model.buffers() if id(b) not in known]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for buffer, before in others:
                buffer.copy_(before)
