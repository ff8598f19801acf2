"""How far apart two hidden states are (card, section 4); minimised is the mean over texts of the mean over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from .options import Kind

__all__ = ["KINDS", "Distance", "distance", "jensen_shannon"]

KINDS: tuple[Kind, ...] = get_args(Kind)
EPSILON = 1e-10
WORKING = 96 * 2**20
"""Bytes of a distance's own tensors at a time: eight of the size of the states, in float32."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""``(reference [..., n, d], states [..., n, d]) -> [..., n]`` float32 (float64 stays float64), one number a token."""


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """JS divergence of softmax(a) and softmax(b) over the last dimension, nats, in [0, ln 2].

    Args:
        a, b: [..., d], broadcast against each other; computed in float32 (float64 stays float64).
    """
    a, b = _wide(a), _wide(b)
    p, q = a.softmax(-1).add_(EPSILON), b.softmax(-1).add_(EPSILON)
    log_m = (p + q).mul_(0.5).log_()
    return 0.5 * ((p * (p.log() - log_m)).sum(-1) + (q * (q.log() - log_m)).sum(-1))


def distance(kind: Kind, logits: Callable[[Tensor], Tensor] | None = None, span: int = 0) -> Distance:
    """The distance of a name, over some of the tokens at a time where all do not fit into `WORKING`.

    Args:
        kind: ``js_hidden`` (the paper's) takes the hidden channels as they are; ``js_logits`` the distribution of the
            next token; ``mse`` and ``cosine`` (1 - cosine) the states as vectors.
        logits: of ``js_logits``: states [..., d] -> logits [..., V].
        span: of ``js_logits``: V.
    """

    def whole(a: Tensor, b: Tensor) -> Tensor:
        if kind == "js_hidden":
            return jensen_shannon(a, b)
        if kind == "js_logits":
            assert logits is not None
            return jensen_shannon(logits(a), logits(b))
        if kind == "mse":
            return (_wide(a) - _wide(b)).square().mean(-1)
        return 1 - torch.cosine_similarity(_wide(a), _wide(b), dim=-1)

    def in_parts(a: Tensor, b: Tensor) -> Tensor:
        rows, tokens, hidden = b.numel() // (b.shape[-1] * b.shape[-2]), b.shape[-2], b.shape[-1]
        step = max(1, WORKING // max(1, 32 * rows * max(hidden, span)))
        if step >= tokens:
            return whole(a, b)
        starts = range(0, tokens, step)
        return torch.cat([whole(a[..., s : s + step, :], b[..., s : s + step, :]) for s in starts], -1)

    return in_parts


def _wide(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()
