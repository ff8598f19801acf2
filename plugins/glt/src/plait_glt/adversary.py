"""The maximising player on the graph mask. Card section 4.

Functions on tensors: gradients go in, new masks or removed edges come out. All are over mask entries [U], one per
undirected edge when the two directions are tied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait_glt.errors import GLTError


@torch.no_grad()
def delta_removed(gradient: Tensor, edge_mask: Tensor, kept: Tensor, rho: float) -> Tensor:
    """The kept edges whose removal raises the loss most: ``delta`` [inferred].

    To first order removing edge e changes the loss by ``- s_e * dL/ds_e``. Only edges with a positive gain go.

    Args:
        gradient: dCE/ds [U] at the masks as they are.
        edge_mask: s [U].
        kept: b_g [U], bool.
        rho: share of the kept edges, in [0, 1).

    Returns:
        Removed for this pass [U], bool; at most ``round(rho * |E_kept|)``, ties by index.

    Raises:
        GLTError: rho outside [0, 1), or shapes that differ.
    """
    if not 0 <= rho < 1:
        raise GLTError(f"rho={rho} is outside [0, 1).")
    if not gradient.shape == edge_mask.shape == kept.shape:
        raise GLTError(
            f"delta: gradient {tuple(gradient.shape)}, edge mask {tuple(edge_mask.shape)} and kept "
            f"{tuple(kept.shape)} differ in shape."
        )
    kept = kept.bool()
    removed = torch.zeros_like(kept)
    count = round(rho * int(kept.sum()))
    if count:
        gain = (-edge_mask * gradient).masked_fill(~kept, -torch.inf)
        first = gain.argsort(descending=True, stable=True)[:count]
        removed[first] = gain[first] > 0
    return removed


@torch.no_grad()
def ascend(edge_mask: Tensor, gradient: Tensor, kept: Tensor, step: float) -> Tensor:
    """``clip_[0,1](m + eta1 * dL/dm)`` on the kept edges, 0 on the others [paper, card section 4].

    Args:
        edge_mask, gradient: m and dL/dm [U].
        kept: b_g [U].
        step: eta1.
    """
    return (edge_mask + step * gradient).clamp_(0, 1) * kept.to(edge_mask.dtype)


@torch.no_grad()
def unclipped(edge_mask: Tensor, gradient: Tensor, kept: Tensor, step: float) -> Tensor:
    """Entries [U] that the ascent moved freely: kept, and inside [0, 1] before the clip."""
    moved = edge_mask + step * gradient
    return kept.bool() & (moved >= 0) & (moved <= 1)


def implicit_term(before: Tensor, after: Tensor, free: Tensor, *, alpha: float, step: float) -> Tensor:
    """``alpha * eta1 * <v, dL/dm (m^t, Theta)>``, whose gradient in Theta is the implicit part of the descent.

    m^{t+1} depends on Theta through the ascent step, with ``dm^{t+1}/dTheta = eta1 d2L/(dm dTheta)`` where the clip is
    inactive. Add the term to the loss of the descent; it costs one more vector-Jacobian product.

    Args:
        before: dL/dm at (m^t, Theta) [U], made with ``create_graph=True``.
        after: dL/dm at (m^{t+1}, Theta) [U]; taken as a constant.
        free: `unclipped` entries [U], bool.
        alpha: at least 0.
        step: eta1.
    """
    v = after.detach().masked_fill(~free, 0)
    return alpha * step * (v * before).sum()
