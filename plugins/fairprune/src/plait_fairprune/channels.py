"""Whole channels as the units of a mask, and the physically narrower network. torch-pruning finds what hangs together.

The mask of a channel lies on the weights that read it: with these columns zero the network computes what it would
without the channel, whatever norm stands between, and theta * gu summed over them is the derivative by a factor on the
channel. What makes the channel is left alone until the mask is final, so that a channel can come back; then it is
zeroed as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FairpruneError

__all__ = ["Channels"]


@dataclass(frozen=True)
class Slot:
    """Where the channels of one group lie in one tensor.

    Attributes:
        tensor: its name.
        dim: the dimension.
        positions: int64 [m], along that dimension.
        channels: int64 [m], the channel at each position, 0..C-1.
        reads: whether the tensor reads the channels (else it makes them).
    """

    tensor: str
    dim: int
    positions: Tensor
    channels: Tensor
    reads: bool


@dataclass(frozen=True)
class Group:
    """Channels that can only go together: the layer that makes them, their number, and their place in all tensors."""

    root: str
    width: int
    slots: tuple[Slot, ...]


class Channels:
    """Units that are channels; see `plait_fairprune.units.Units`.

    Attributes:
        groups: in the order of the network.
        error: largest difference of the outputs of the masked and of the narrowed network, in logits; NaN before an
            export.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        self.names = tuple(dict.fromkeys(slot.tensor for group in groups for slot in group.slots))
        self.layers = {group.root: group.width for group in groups}
        self.error = float("nan")
        self._at = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def of(
        cls, model: nn.Module, example: Any, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
    ) -> Channels:
        """The channels of a network that can be removed, found on an example and proven on it.

        Args:
            model: the network; not changed.
            example: an input, or a tuple of inputs, for ``forward``.
            include, exclude: name patterns of the parameters that may be masked; a group needs all of its own.

        Raises:
            FairpruneError: no channel can be removed, torch-pruning cannot follow the network, or removing channels
                would change more than their mask does.
        """
        traced = copy.deepcopy(model).eval()
        groups = [
            group
            for group in _groups(traced, example)
            if all(_allowed(slot.tensor, include, exclude) for slot in group.slots)
        ]
        if not groups:
            raise FairpruneError(
                f"{type(model).__name__} has no channel that can be removed: structure = 'unstructured'"
            )
        channels = cls(groups)
        channels._prove(traced, example)
        return channels

    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Mean |w| of each channel's filters, over the mean of its layer, [C]: layers differ in their initial scale."""
        scores = []
        for group in self.groups:
            makers = [slot for slot in group.slots if not slot.reads and weights[self._at[slot.tensor]].ndim > 1]
            size = torch.zeros(group.width, device=weights[0].device)
            for slot in makers:
                filters = weights[self._at[slot.tensor]].detach().abs().flatten(1).mean(1)
                size.index_add_(0, slot.channels.to(size.device), filters[slot.positions.to(size.device)].float())
            scores.append(size / (size.mean() + 1e-12))
        return torch.cat(scores)

    def sums(self, products: Sequence[Tensor]) -> Tensor:
        """Products summed over the weights that read each channel, [C]."""
        sums = []
        for group in self.groups:
            total = torch.zeros(group.width, device=products[0].device)
            for slot in group.slots:
                if slot.reads:
                    product = products[self._at[slot.tensor]]
                    along = product.sum([d for d in range(product.ndim) if d != slot.dim]).float()
                    total.index_add_(0, slot.channels.to(total.device), along[slot.positions.to(total.device)])
            sums.append(total)
        return torch.cat(sums)

    @torch.no_grad()
    def write(self, kept: Tensor, masks: Sequence[Tensor], *, last: bool) -> None:
        """As of `plait_fairprune.units.Units`."""
        for mask in masks:
            mask.fill_(1)
        for group, stays in zip(self.groups, torch.split(kept, list(self.layers.values())), strict=True):
            for slot in group.slots:
                if slot.reads or last:
                    mask = masks[self._at[slot.tensor]]
                    along = torch.ones(mask.shape[slot.dim], dtype=mask.dtype, device=mask.device)
                    along[slot.positions.to(mask.device)] = stays.to(mask)[slot.channels.to(mask.device)]
                    mask.mul_(along.view([-1 if d == slot.dim else 1 for d in range(mask.ndim)]))

    def filters(self, model: nn.Module) -> list[Tensor]:
        """The weights that make each channel of a layer, [C_l, n_l] for each group."""
        return [model.get_submodule(group.root).get_parameter("weight").detach().flatten(1) for group in self.groups]

    def narrowed(self, model: nn.Module, example: Any, kept: Tensor) -> nn.Module:
        """The network without the channels that do not stay; changed in place, and returned.

        Args:
            model: the network that the channels were found in, or a copy.
            example: as of `of`.
            kept: boolean [C] over all groups.
        """
        graph = _graph(model, example)
        for group, stays in zip(self.groups, torch.split(kept.cpu(), list(self.layers.values())), strict=True):
            removed = (~stays).nonzero().flatten().tolist()
            if removed:
                root = model.get_submodule(group.root)
                pruner = graph.get_pruner_of_module(root)
                graph.get_pruning_group(root, pruner.prune_out_channels, removed).prune()
        return model

    @torch.no_grad()
    def _prove(self, model: nn.Module, example: Any) -> None:
        """Removing every other channel must give what masking it gives."""
        kept = torch.arange(sum(self.layers.values())) % 2 == 0
        masked = copy.deepcopy(model)
        parameters = dict(masked.named_parameters())
        masks = [torch.ones_like(parameters[name]) for name in self.names]
        self.write(kept, masks, last=False)
        for name, mask in zip(self.names, masks, strict=True):
            parameters[name].mul_(mask)
        inputs = example if isinstance(example, tuple) else (example,)
        wanted = masked(*inputs)
        narrow = self.narrowed(copy.deepcopy(model), example, kept)
        with torch.no_grad():
            given = narrow(*inputs)
        if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=1e-3, atol=1e-4):
            raise FairpruneError(
                f"removing channels of {type(model).__name__} changes its outputs beyond their mask (one of the layers"
                f" {', '.join(self.layers)}): exclude them, or take structure = 'unstructured'"
            )


def _allowed(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)


def _graph(model: nn.Module, example: Any) -> Any:
    """torch-pruning's dependency graph.

    Raises:
        FairpruneError: it cannot follow the network.
    """
    pruning = import_module("torch_pruning")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:  # it follows gradients
            parameter.requires_grad_(True)
        with torch.enable_grad():
            return pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    except Exception as error:  # a stranger's model may raise anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise FairpruneError(f"torch-pruning cannot follow {type(model).__name__}: {lines[0]}") from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _groups(model: nn.Module, example: Any) -> list[Group]:
    """The groups that a mask on their readers can stand for."""
    kinds = import_module("torch_pruning.ops")
    kind = kinds.OPTYPE
    graph = _graph(model, example)
    modules = {module: name for name, module in model.named_modules()}
    parameters = {name for name, _ in model.named_parameters()}
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    groups = []
    for members in graph.get_all_groups(root_module_types=layers):
        slots: list[Slot] = []
        clean = True
        root = members[0].dep.target.module
        for member in members:
            module, type_ = member.dep.target.module, kinds.module2type(member.dep.target.module)
            makes = bool(graph.is_out_channel_pruning_fn(member.dep.handler))
            if type_ in (kind.ELEMENTWISE, kind.RESHAPE):
                continue
            if type_ not in (kind.CONV, kind.DEPTHWISE_CONV, kind.LINEAR, kind.BN) or module not in modules:
                clean = False
                break
            if getattr(module, "transposed", False) or (type_ == kind.CONV and module.groups != 1):
                clean = False
                break
            reads = not makes and type_ in (kind.CONV, kind.LINEAR)
            positions, channels = torch.tensor(member.idxs), torch.tensor(member.root_idxs)
            for leaf in ("weight",) if reads else ("weight", "bias"):
                name = f"{modules[module]}.{leaf}" if modules[module] else leaf
                if name in parameters:
                    slots.append(Slot(name, 1 if reads else 0, positions, channels, reads))
                elif leaf == "weight" and type_ != kind.BN:
                    clean = False  # tied or computed
        if clean and any(slot.reads for slot in slots):
            groups.append(Group(modules[root], int(graph.get_out_channels(root)), tuple(slots)))
    return groups
