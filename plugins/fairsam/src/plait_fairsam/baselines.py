"""What FairSAM is compared with (card section 6): GroupDRO and a fairness penalty; the presets are in `presets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import FairsamError
from .groups import check_index, group_means
from .weights import AdaptiveWeights

__all__ = ["GroupDRO", "group_gap_penalty"]


def group_gap_penalty(per_example: Tensor, groups: Tensor, num_groups: int | None = None) -> Tensor:
    """Gap between the groups' mean losses, ``|L_1 - L_0|``; for more groups ``max_a L_a - min_a L_a``.

    Args:
        per_example: ``[B]`` losses; the result is differentiable in them (gradient 0 where the gap is 0).
        groups: ``[B]`` int64.
        num_groups: G; default: largest group + 1, which reads the groups on the host.

    Returns:
        0-dim, in the loss's unit; 0 if only one group is in the batch. Source: the two-group form is the usual loss-gap
        regulariser, max - min is an extension [inferred].
    """
    size = check_index("groups", groups) if num_groups is None else num_groups
    means, present = group_means(per_example, groups, size)
    return torch.where(present, means, -torch.inf).amax() - torch.where(present, means, torch.inf).amin()


class GroupDRO(AdaptiveWeights):
    """GroupDRO (Sagawa et al. 2020, algorithm 1): minimise ``sum_a q_a L_a`` with ``q_a <- q_a exp(eta_q L_a)``
    normalised.

    Two ways to use it: `loss` is the paper's algorithm on a batch; as a weighting rule (``v = dro(groups)`` before the
    step, ``dro.update(losses, groups)`` on the *unperturbed* losses after it) it is the same objective over the
    training distribution, and composes with everything that takes instance weights.

    Args:
        group_counts: ``[G]`` training counts, all > 0.
        eta_q: step size of q. Default 0.01, the paper's.
        reduce: see `AdaptiveWeights`.
    """

    def __init__(
        self,
        group_counts: Tensor | Sequence[int],
        *,
        eta_q: float = 0.01,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(group_counts, eta_q=eta_q, clip=None, start="group", center=False, reduce=reduce)

    def loss(self, per_example: Tensor, groups: Tensor) -> Tensor:
        """Update q on these losses ``[B]``, then return ``sum_a q_a L_a`` (0-dim, differentiable) over the batch."""
        if per_example.shape != groups.shape:
            raise FairsamError(f"losses {tuple(per_example.shape)} and groups {tuple(groups.shape)} must be [B]")
        self.update(per_example, groups)
        means, _ = group_means(per_example, groups, self.num_groups)
        return (self.q.to(means) * means).sum()
