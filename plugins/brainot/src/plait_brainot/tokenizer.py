"""The voxel tokenizer: Linear(1, L) on every voxel, then Linear(V, H) over the voxels (card, 2.3).

Without a non-linearity between them a token is of rank one, and the B x V x L tensor need not be built:

    z = x A^T,  r = A 1,  tokens[b, l] = w[l] z[b] + c[l] r + d
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["tokens_naive", "tokens_of_rank_one"]


def tokens_of_rank_one(x: Tensor, lin1: nn.Linear, lin2: nn.Linear) -> Tensor:
    """The tokens [B, L, H] in 2 B V H operations.

    Args:
        x: voxels [B, V].
        lin1: ``w`` and ``c``, Linear(1, L).
        lin2: ``A`` and ``d``, Linear(V, H).
    """
    z = x @ lin2.weight.T
    shared = lin1.bias[:, None] * lin2.weight.sum(1) + lin2.bias
    return lin1.weight * z[:, None, :] + shared


def tokens_naive(x: Tensor, lin1: nn.Linear, lin2: nn.Linear, between: nn.Module | None = None) -> Tensor:
    """The same as it is written down, in 2 B L V H operations, with ``between`` on [B, V, L] where there is any."""
    each = lin1(x.unsqueeze(-1))
    if between is not None:
        each = between(each)
    tokens: Tensor = lin2(each.transpose(1, 2))
    return tokens
