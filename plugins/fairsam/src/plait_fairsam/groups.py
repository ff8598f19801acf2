"""Group bookkeeping shared by the weights, the baselines and the metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import FairsamError


def check_index(option: str, values: Tensor, size: int | None = None) -> int:
    """Check a vector of class or group indices; reads the values on the host, so call it once, not every step.

    Args:
        option: what the vector is called in the message (``"groups"``, ``"labels"``).
        values: ``[N]`` integer tensor.
        size: number of valid indices; default: largest value + 1.

    Returns:
        ``size``, or the number of indices found.

    Raises:
        FairsamError: not a non-empty integer vector, or a value outside ``0..size-1`` (the first one is named).
    """
    if values.ndim != 1 or values.numel() == 0:
        raise FairsamError(f"{option} must be a non-empty vector [N], got shape {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise FairsamError(f"{option} must be integers 0, 1, ..., got {values.dtype}; convert with .long()")
    count = int(values.max()) + 1
    bad = (values < 0) | (values >= (count if size is None else size))
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        limit = "must not be negative" if size is None else f"is outside 0..{size - 1}"
        raise FairsamError(f"{option}[{at}]={int(values[at])} {limit}")
    return count if size is None else size


def check_outputs(outputs: Tensor, num_classes: int) -> None:
    """Check that a model's logits are ``[B, num_classes]``.

    Raises:
        FairsamError: another shape; the message names the width found and the width needed.
    """
    if outputs.ndim != 2 or outputs.shape[1] != num_classes:
        raise FairsamError(
            f"the model returns outputs of shape {tuple(outputs.shape)} but the data has {num_classes} classes;"
            f" its last layer must have width {num_classes}"
        )


def group_sums(values: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Sum values by group, without host synchronisation.

    Args:
        values: ``[B]`` floating point; the sums are differentiable in it.
        groups: ``[B]`` int64 in ``0..num_groups-1``.
        num_groups: G.

    Returns:
        ``(sums, counts)``, both ``[G]`` in the dtype of ``values``, in float32 for half precision, in which counts
        would be rounded.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    # where + sum rather than index_add: deterministic on CUDA, and a NaN in one group stays in that group.
    member = groups.to(values.device)[:, None] == torch.arange(num_groups, device=values.device)
    return torch.where(member, values[:, None], 0.0).sum(0), member.sum(0).to(values.dtype)


def group_means(values: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean by group and which groups are present: ``([G] means, [G] bool)``; an absent group's mean is 0."""
    sums, counts = group_sums(values, groups, num_groups)
    return sums / counts.clamp(min=1), counts > 0
