"""What a federation answers as a whole: the joint vote of some nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait_dbadfl.mixing import full
from plait_dbadfl.stacking import Stacked

AT_ONCE = 1 << 22
"""Input values, nodes times batch, in one pass."""


def votes(stack: Stacked, images: Tensor, members: Tensor) -> Tensor:
    """Logarithm of the members' mean softmax, [B, C]; as logits its cross-entropy is the vote's.

    Args:
        stack: N networks, in the mode in which they are to be asked.
        images: one batch [B, ch, H, W] for all of them.
        members: bool [N], at least one.
    """
    nodes = members.nonzero().flatten().to(images.device)
    sums = []
    for some in torch.split(nodes, max(1, AT_ONCE // max(1, images.numel()))):
        sums.append(full(stack(images, some, shared=True)).log_softmax(-1).logsumexp(0))
    return torch.stack(sums).logsumexp(0) - math.log(len(nodes))
