"""The auxiliary loss: how far apart the outputs of each predicted class and of all other nodes lie. Card section 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait_glt.errors import GLTError
from plait_glt.transport import Exact, Sinkhorn, Solved

DENSE_ENTRIES = 1 << 24
"""Above so many distances between a class and the rest, the exact loss is evaluated in blocks (64 MiB of float32)."""


Transport = Exact | Sinkhorn


@dataclass(frozen=True)
class AuxiliaryLoss:
    """The loss and what it was made of.

    Args:
        loss: ``- sum_c WD(Z^c, Z^notc)``, a scalar; 0 where no class could be compared.
        distances: WD of each class [C], detached; 0 where skipped.
        counted: classes that have both members and non-members [C], bool.
        iterations: Sinkhorn sweeps (the most of any class).
        marginal_error: largest L1 error of a plan's marginal; above the tolerance when the sweeps ran out.
    """

    loss: Tensor
    distances: Tensor
    counted: Tensor
    iterations: int
    marginal_error: float


def auxiliary_loss(
    probabilities: Tensor,
    member: Tensor | None = None,
    *,
    samples: int = 256,
    generator: torch.Generator | None = None,
    eps: float | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    block_entries: int = DENSE_ENTRIES,
) -> AuxiliaryLoss:
    """``L_aux = - sum_c WD(Z^c, Z^notc)``, Euclidean metric [paper]; its entropic form [code-TEDDY].

    Classes are the predicted ones, ``argmax_c Z_ic`` without gradient, so every node takes part. A class of no node
    or of all nodes is skipped.

    Args:
        probabilities: Z = softmax of the logits [n, C], of all nodes; or any outputs whose distances count.
        member: classes of another kind, bool [n, K]: which rows are in each; default the predicted classes.
        samples: rows drawn per side and class without replacement; default 256. 0 compares all nodes.
        generator: for the draw; needed when ``samples`` is not 0.
        eps: None (default) for the exact distance; else the entropy of Sinkhorn's sweeps, in the units of the distance
            (at most sqrt(2)): 0.05 overstates the distance, and a smaller one takes more sweeps than the default's.
        max_iterations, tolerance: sweeps, and the L1 error of a marginal at which they stop; default 50 and 1e-3.
        block_entries: distances held at a time when ``samples`` is 0; default 2^24.

    Raises:
        GLTError: probabilities that are no [n, C] or not finite, eps <= 0, no generator; an exact problem
            that is too large.
    """
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise GLTError(f"auxiliary loss: probabilities {tuple(probabilities.shape)} must be [nodes, classes].")
    if samples < 0:
        raise GLTError(f"wd_samples={samples} must be at least 0 (0: all nodes).")
    if samples and generator is None:
        raise GLTError("auxiliary loss: sampling needs a torch.Generator (generator=...), or samples=0.")
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise GLTError(f"auxiliary loss: eps={eps} must be above 0 and finite (in the units of the distance).")
    if max_iterations < 1 or not tolerance >= 0:
        raise GLTError(f"auxiliary loss: max_iterations={max_iterations} must be at least 1, tolerance={tolerance} 0.")
    z = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    if not bool(z.isfinite().all()):
        bad = int((~z.isfinite()).any(1).sum())
        raise GLTError(
            f"auxiliary loss: the outputs of {bad} of {len(z)} nodes are not finite; lower the learning rate."
        )
    if member is None:
        member = z.detach().argmax(1, keepdim=True) == torch.arange(z.shape[1], device=z.device)
    elif member.dtype != torch.bool or member.ndim != 2 or len(member) != len(z):
        raise GLTError(f"auxiliary loss: member {tuple(member.shape)} must be bool [{len(z)}, classes].")
    sizes = member.sum(0)
    counted = (sizes > 0) & (sizes < len(z))
    classes = counted.nonzero().squeeze(1)
    distances = z.new_zeros(len(counted))
    if not len(classes):
        return AuxiliaryLoss(z.sum() * 0, distances, counted, 0, 0.0)
    transport = Exact() if eps is None else Sinkhorn(eps, max_iterations, tolerance, block_entries)
    member = member[:, classes]
    if generator is not None and samples:
        solved = _sampled(z, member, samples, generator, transport)
    else:
        solved = _each([(z[inside], z[~inside]) for inside in member.unbind(1)], transport)
    distances = distances.index_put((classes,), solved.cost.detach())
    return AuxiliaryLoss(-solved.cost.sum(), distances, counted, solved.sweeps, solved.error)


def draw_rows(member: Tensor, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most ``samples`` members and non-members of each class, uniformly without replacement.

    One permutation serves all classes: restricted to the members, and to the others, it is uniform.

    Args:
        member: whether each node is in each class, bool [n, K].
        samples: S.
        generator: of any device.

    Returns:
        Node ids of the members [K, S1] and of the others [K, S2], each with its weights (1 / drawn, 0 for padding).
    """
    order = torch.randperm(len(member), generator=generator, device=generator.device).to(member.device)
    member = member.t()[:, order]
    rank = member.cumsum(1, dtype=torch.int32)
    position = torch.arange(1, len(order) + 1, device=rank.device, dtype=torch.int32)
    sides = []
    for chosen, place in ((member, rank), (~member, position - rank)):
        row, column = (chosen & (place <= samples)).nonzero(as_tuple=True)
        slot = place[row, column].long() - 1
        count = torch.bincount(row, minlength=len(member))
        width = int(count.max())
        index = order.new_zeros(len(member), width).index_put((row, slot), order[column])
        filled = torch.arange(width, device=count.device) < count.unsqueeze(1)
        sides += [index, filled / count.unsqueeze(1)]
    return sides[0], sides[1], sides[2], sides[3]


def _sampled(z: Tensor, member: Tensor, samples: int, generator: torch.Generator, transport: Transport) -> Solved:
    inside, a, outside, b = draw_rows(member, samples, generator)
    if z.is_cuda and isinstance(transport, Sinkhorn):
        return transport.padded(z[inside], z[outside], a.to(z), b.to(z))
    drawn = zip(inside, a > 0, outside, b > 0, strict=True)
    return _each([(z[rows[filled]], z[others[present]]) for rows, filled, others, present in drawn], transport)


def _each(pairs: Sequence[tuple[Tensor, Tensor]], transport: Transport) -> Solved:
    solutions = [transport.between(inside, outside) for inside, outside in pairs]
    costs, sweeps, errors = zip(*solutions, strict=True)
    return Solved(torch.stack(costs), max(sweeps), max(errors))
