"""Which channels of which tensors live: the bookkeeping between channel groups and mask tensors."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from math import prod

import torch
from torch import Tensor

from plait_chase.channels import ChannelGroup, Slot, group_slots, group_width, tensor_name
from plait_chase.errors import ChaseError
from plait_chase.shrink import Plan, slice_tensor


class ChannelLayout:
    """Living and physically present channels of a network, and the mask positions they occupy.

    Args:
        masks: tensor name -> mask in the ORIGINAL shape, 0/1.
        groups: channel groups.

    Attributes:
        masks: the dict as given; its tensors are changed in place, or replaced by :meth:`compact`.
        names: maskable tensors (two or more dimensions), in the order of ``masks``: the layer order of all ties.
        shapes: their original shapes.
        alive: producer -> boolean ``[C]`` over original channels.
        present: producer -> int64 original indices of the channels physically there.

    Raises:
        ChaseError: a group that does not fit its tensors, or two groups on one dimension of a tensor.
    """

    def __init__(self, masks: MutableMapping[str, Tensor], groups: Sequence[ChannelGroup]) -> None:
        self.masks = masks
        self.groups = tuple(groups)
        self.names = [name for name, mask in masks.items() if mask.ndim >= 2]
        self.shapes = {name: tuple(masks[name].shape) for name in self.names}
        everything = {name: tuple(mask.shape) for name, mask in masks.items()}
        self._touch: dict[str, list[tuple[str, Slot]]] = {}
        for group in self.groups:
            for slot in group_slots(group, everything):
                others = self._touch.setdefault(slot.tensor, [])
                if any(slot.dim == taken.dim for _, taken in others):
                    raise ChaseError(f"{slot.tensor!r} dimension {slot.dim} is in two channel groups")
                others.append((group.producer, slot))
        self.widths = {group.producer: group_width(group, everything) for group in self.groups}
        self.alive = {name: torch.ones(width, dtype=torch.bool) for name, width in self.widths.items()}
        self.present = {name: torch.arange(width) for name, width in self.widths.items()}

    @property
    def alive_channels(self) -> int:
        """Living channels over all groups."""
        return sum(int(alive.sum()) for alive in self.alive.values())

    def alive_now(self) -> dict[str, Tensor]:
        """Producer -> boolean ``[C present]``: what :func:`plait_chase.shrink.shrink_plan` wants."""
        return {name: alive[self.present[name]] for name, alive in self.alive.items()}

    def alive_shapes(self) -> dict[str, tuple[int, ...]]:
        """Maskable tensor -> the shape it has once dead channels are gone."""
        counts = {name: int(alive.sum()) for name, alive in self.alive.items()}
        return {name: self._sized(name, counts) for name in self.names}

    def capacity(self) -> dict[str, int]:
        """Positions of living channels per maskable tensor."""
        return {name: prod(shape) for name, shape in self.alive_shapes().items()}

    def nnz(self) -> dict[str, int]:
        """Non-zeros per maskable tensor."""
        home = self.masks[self.names[0]].device
        counts = torch.stack([torch.count_nonzero(self.masks[name]).to(home) for name in self.names]).tolist()
        return dict(zip(self.names, counts, strict=True))

    def allowed(self, name: str) -> Tensor:
        """Boolean tensor of the mask's present shape: positions whose channels live."""
        mask = self.masks[name]
        allowed = torch.ones_like(mask, dtype=torch.bool)
        for dim, living in self._living(name):
            shape = [1] * mask.ndim
            shape[dim] = -1
            allowed &= living.view(shape)
        return allowed

    def kill(self, dead: Mapping[str, Tensor]) -> int:
        """Bury channels and zero their mask entries in place.

        Args:
            dead: producer -> boolean ``[C present]``.

        Returns:
            The number of channels buried.
        """
        for producer, gone in dead.items():
            self.alive[producer][self.present[producer][gone]] = False
        for name in self._touch:
            for dim, living in self._living(name):
                self.masks[name].index_fill_(dim, (~living).nonzero()[:, 0], 0)
        return sum(int(gone.sum()) for gone in dead.values())

    def compact(self, plan: Plan, masks: MutableMapping[str, Tensor] | None = None) -> None:
        """Follow a physical slice of the network; see :meth:`plait_chase.engine.ChaseEngine.compact`."""
        present = dict(self.present)
        for producer in present:
            for dim, kept in plan.get(tensor_name(producer, "weight"), ()):
                if dim == 0:
                    present[producer] = present[producer][kept.cpu()]
        for producer, index in present.items():
            if int(self.alive[producer][index].sum()) != int(self.alive[producer].sum()):
                raise ChaseError(f"the plan cuts living channels of {producer!r}")
        sliced = {
            name: slice_tensor(mask, plan[name]) if masks is None and name in plan else mask
            for name, mask in (self.masks if masks is None else masks).items()
        }
        counts = {name: index.numel() for name, index in present.items()}
        for name in self.names:
            if tuple(sliced[name].shape) != self._sized(name, counts):
                raise ChaseError(
                    f"mask {name!r} has shape {tuple(sliced[name].shape)}, expected {self._sized(name, counts)}"
                )
        if masks is None:
            self.masks.update(sliced)
        else:
            self.masks = masks
        self.present = present

    def _sized(self, name: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        shape = list(self.shapes[name])
        for producer, slot in self._touch.get(name, ()):
            shape[slot.dim] = counts[producer] * slot.repeat
        return tuple(shape)

    def _living(self, name: str) -> list[tuple[int, Tensor]]:
        device = self.masks[name].device
        return [
            (slot.dim, self.alive[producer][self.present[producer]].repeat_interleave(slot.repeat).to(device))
            for producer, slot in self._touch.get(name, ())
        ]
