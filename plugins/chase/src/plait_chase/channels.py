"""Channel groups: which tensors a channel occupies, and which channels go next. Card sections 2, 6 and 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor

from plait_chase.errors import ChaseError

__all__ = ["ChannelGroup", "min_channels", "rounded_alive", "select_channels"]


def tensor_name(module: str, leaf: str) -> str:
    """Name of a module's parameter or buffer in the whole model (the root module has the empty name)."""
    return f"{module}.{leaf}" if module else leaf


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be removed together, given by module names.

    Args:
        producer: convolution (or linear layer) whose filters are the channels, and are scored.
        norm: batch norm on the producer's output, or None.
        consumers: layers that read the channels: convolutions, or linear layers after a flatten, where each channel
            covers ``in_features / C_out`` neighbouring columns.
        members: further producers that write into the same channels (a residual stream).
        norms: further batch norms on the same channels.
    """

    producer: str
    norm: str | None
    consumers: tuple[str, ...]
    members: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()

    @property
    def producers(self) -> tuple[str, ...]:
        """All producers, the first one included."""
        return (self.producer, *self.members)

    @property
    def all_norms(self) -> tuple[str, ...]:
        """All batch norms."""
        return (*(() if self.norm is None else (self.norm,)), *self.norms)


@dataclass(frozen=True)
class Slot:
    """Where a group's channels lie in one tensor: channel i is ``repeat`` entries of ``dim`` from i*repeat."""

    tensor: str
    dim: int
    repeat: int = 1


def group_width(group: ChannelGroup, shapes: Mapping[str, Sequence[int]]) -> int:
    """Number of channels C_out of the group's producer.

    Raises:
        ChaseError: the producer has no weight in ``shapes``.
    """
    name = tensor_name(group.producer, "weight")
    if name not in shapes:
        raise ChaseError(f"channel group: producer {group.producer!r} has no masked weight {name!r}")
    return int(shapes[name][0])


def group_slots(group: ChannelGroup, shapes: Mapping[str, Sequence[int]]) -> list[Slot]:
    """Where the group's channels lie, in all tensors that ``shapes`` lists (weights must be there, others may).

    Args:
        group: the channel group.
        shapes: tensor name -> shape: the masks' shapes, or those of all parameters and buffers.

    Raises:
        ChaseError: a producer or consumer is missing, or its number of channels does not match.
    """
    width = group_width(group, shapes)
    slots: list[Slot] = []
    for module in group.producers:
        weight = tensor_name(module, "weight")
        if weight not in shapes or int(shapes[weight][0]) != width:
            there = shapes[weight][0] if weight in shapes else "no"
            raise ChaseError(f"channel group {group.producer!r}: member {module!r} has {there} channels, not {width}")
        slots.append(Slot(weight, 0))
        slots += [Slot(name, 0) for name in (tensor_name(module, "bias"),) if name in shapes]
    for module in group.all_norms:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            name = tensor_name(module, leaf)
            if name not in shapes:
                continue
            if tuple(shapes[name]) != (width,):
                raise ChaseError(f"channel group {group.producer!r}: norm {name!r} has shape {tuple(shapes[name])}")
            slots.append(Slot(name, 0))
    if not group.consumers:
        raise ChaseError(f"channel group {group.producer!r} has no consumer")
    for module in group.consumers:
        weight = tensor_name(module, "weight")
        if weight not in shapes or len(shapes[weight]) < 2:
            raise ChaseError(f"channel group {group.producer!r}: consumer {module!r} has no masked weight {weight!r}")
        inputs = int(shapes[weight][1])
        repeat, rest = divmod(inputs, width)
        if rest or repeat < 1 or (repeat > 1 and len(shapes[weight]) > 2):
            raise ChaseError(
                f"channel group {group.producer!r} has {width} channels, but {module!r} reads in_channels={inputs}"
            )
        slots.append(Slot(weight, 1, repeat))
    return slots


def min_channels(width: int, channel_sparsity: float, min_layer_factor: float) -> int:
    """Floor of a layer: ``max(1, floor(C_out * (1 - S_c) * beta))`` channels [code]."""
    # The tiny addition undoes binary rounding: 100 * (1 - 0.3) * 0.1 is 7, not 6.
    return max(1, floor(width * (1.0 - channel_sparsity) * min_layer_factor + 1e-9))


def kept_channels(total: int, share: float) -> int:
    """Channels that stay when ``share`` of ``total`` must be gone: ``round(C * (1 - share))``."""
    return round(total * (1.0 - share))


def check_reachable(widths: Mapping[str, int], channel_sparsity: float, min_layer_factor: float) -> None:
    """Raise :class:`ChaseError` if the floors forbid the requested channel sparsity, with the largest reachable one."""
    floors = {name: min_channels(width, channel_sparsity, min_layer_factor) for name, width in widths.items()}
    total = sum(widths.values())
    if kept_channels(total, channel_sparsity) < sum(floors.values()):
        reachable = 1.0 - sum(floors.values()) / total
        layers = ", ".join(f"{name}>={floors[name]}" for name in widths)
        raise ChaseError(
            f"channel_sparsity={channel_sparsity} cannot be reached with min_layer_factor={min_layer_factor}: "
            f"floors of {layers} allow at most {reachable:.4f}"
        )


def select_channels(
    scores: Sequence[Tensor], alive: Sequence[Tensor], need: int, floors: Sequence[int]
) -> list[Tensor]:
    """Choose exactly the ``need`` living channels of smallest score over all layers, no layer falling below its floor.

    A layer at its floor keeps its strongest channels and its share is taken from the others. Ties by (layer, index).

    Args:
        scores: one finite ``[C_l]`` tensor per layer (entries of dead channels are ignored).
        alive: boolean ``[C_l]`` per layer.
        need: number of channels to remove.
        floors: smallest number of living channels per layer.

    Returns:
        Boolean ``[C_l]`` per layer on the CPU: the channels to remove.

    Raises:
        ChaseError: the floors leave fewer than ``need`` channels.
    """
    living = [a.cpu() for a in alive]
    picked = [torch.zeros_like(a) for a in living]
    if need <= 0 or not living:
        return picked
    eligible: list[Tensor] = []
    for score, a, low in zip(scores, living, floors, strict=True):
        index = a.nonzero()[:, 0]
        order = torch.argsort(score.cpu()[index], stable=True)
        # sort() restores index order so that ties between layers are broken by (layer, index).
        eligible.append(index[order[: max(0, index.numel() - low)]].sort().values)
    layer = torch.cat([torch.full_like(e, number) for number, e in enumerate(eligible)])
    if layer.numel() < need:
        at_floor = ", ".join(str(number) for number in range(len(living)))
        raise ChaseError(f"{need} channels must go but the floors spare all but {layer.numel()} (layers {at_floor})")
    index = torch.cat(eligible)
    values = torch.cat([score.cpu().double()[e] for score, e in zip(scores, eligible, strict=True)])
    chosen = torch.argsort(values, stable=True)[:need]
    for number, out in enumerate(picked):
        out[index[chosen[layer[chosen] == number]]] = True
    return picked


def rounded_alive(
    alive: Mapping[str, Tensor],
    multiple: int,
    scores: Mapping[str, Tensor] | None = None,
    available: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Keep extra channels so that every layer's width is a multiple; never removes one.

    Channel counts that are multiples of 8 (GPU) or 16 (AVX-512) run faster. Channels added to ``alive`` after their
    removal are zero filters: the network computes the same.

    Args:
        alive: producer -> boolean ``[C]``.
        multiple: wanted divisor of the widths, at least 1.
        scores: producer -> ``[C]``: the strongest are added first; ties, and all without scores, by index.
        available: producer -> boolean ``[C]``: channels that may be added; default all. A layer with too few of them
            keeps what it has available.

    Returns:
        Producer -> boolean ``[C]`` on the CPU.

    Raises:
        ChaseError: multiple below 1.
    """
    if multiple < 1:
        raise ChaseError(f"round_channels={multiple} must be at least 1")
    rounded: dict[str, Tensor] = {}
    for name, keep in alive.items():
        out = keep.cpu().clone()
        extra = ceil(int(out.sum()) / multiple) * multiple - int(out.sum())
        spare = ~out if available is None else ~out & available[name].cpu()
        index = spare.nonzero()[:, 0]
        if scores is not None:
            index = index[torch.argsort(-scores[name].cpu()[index], stable=True)]
        out[index[:extra]] = True
        rounded[name] = out
    return rounded
