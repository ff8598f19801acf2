"""Which parameters Chase owns: weights that are what the network multiplies by, and that are trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from plait_chase.channels import ChannelGroup, tensor_name
from plait_chase.errors import ChaseError
from plait_chase.shrink import copied, recomputed, require_shapes, same_random_numbers

__all__ = ["Owned", "owned_weights", "unreached"]

PARAMETRIZED = "parametrized: the effective weight is another tensor"
COMPUTED = "the forward pass computes its weight from it"
EXCLUDED = "excluded"
NOT_INCLUDED = "not included"
NOT_TRAINED = "frozen"
NOT_REACHED = "the loss gives it no gradient"


@dataclass(frozen=True)
class Owned:
    """What Chase takes of a model.

    Args:
        names: parameters with a mask, in the model's order.
        groups: the channel groups whose layers are all owned.
        alone: name -> why it stays as it is, of weights with two or more dimensions.
    """

    names: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    alone: Mapping[str, str] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """A line for each reason that nobody asked for."""
        lines = []
        for why in (PARAMETRIZED, COMPUTED, NOT_TRAINED, NOT_REACHED):
            names = [name for name, reason in self.alone.items() if reason == why]
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{names[0]!r}{more} left alone ({why})")
        return lines


def owned_weights(
    model: nn.Module,
    groups: Sequence[ChannelGroup] = (),
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    computed: Collection[str] = (),
    without_gradient: Collection[str] = (),
) -> Owned:
    """Choose the weights of two or more dimensions that are masked, and the groups whose channels may go.

    Left alone are weights that are not the network's (of parametrized layers, or computed in the forward pass), and
    weights without gradients, unless a pattern of ``include`` names nothing else: that asks for them. A group with a
    layer that is not owned keeps its channels.

    Args:
        model: the network.
        groups: its channel groups.
        include, exclude: globs of parameter names; a tied weight goes by any of its names.
        computed: parameters that the forward pass computes its weights from.
        without_gradient: parameters that the loss does not reach, beside those that do not require a gradient.

    Raises:
        ChaseError: a pattern that matches nothing, or a model with lazy parameters.
    """
    require_shapes(model)
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    parameters = dict(model.named_parameters())

    def matches(name: str, pattern: str) -> bool:
        return any(fnmatchcase(alias, pattern) for alias in aliases[id(parameters[name])])

    parametrized = _parametrized(model)
    reasons: dict[str, str] = {}
    for name, parameter in parameters.items():
        if any(matches(name, pattern) for pattern in exclude):
            reasons[name] = EXCLUDED
        elif not any(matches(name, pattern) for pattern in include):
            reasons[name] = NOT_INCLUDED
        elif name in parametrized:
            reasons[name] = PARAMETRIZED
        elif name in computed:
            reasons[name] = COMPUTED
        elif not parameter.requires_grad:
            reasons[name] = NOT_TRAINED
        elif name in without_gradient:
            reasons[name] = NOT_REACHED
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            named = [name for name in parameters if matches(name, pattern)]
            if not named:
                raise ChaseError(f"{option}={pattern!r} matches no parameter")
            idle = all(reasons.get(name) in (NOT_TRAINED, NOT_REACHED) for name in named)
            if option == "include" and pattern != "*" and idle:
                for name in named:
                    del reasons[name]
    kept = []
    for group in groups:
        weights = [tensor_name(module, "weight") for module in (*group.producers, *group.consumers)]
        if not any(weight in reasons for weight in weights):
            kept.append(group)
    biases = {tensor_name(module, "bias") for group in kept for module in group.producers}
    names = [n for n, p in parameters.items() if n not in reasons and (p.ndim >= 2 or n in biases)]
    return Owned(tuple(names), tuple(kept), {n: r for n, r in reasons.items() if parameters[n].ndim >= 2})


def _parametrized(model: nn.Module) -> set[str]:
    """Parameters behind torch's parametrizations, and behind hooks that set a weight anew before each pass."""
    names = set()
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            inner = module.parametrizations
            names |= {tensor_name(path, f"parametrizations.{name}") for name, _ in inner.named_parameters()}
        names |= {tensor_name(path, name) for name in recomputed(module)}
    return names


def unreached(model: nn.Module, outputs: Callable[[nn.Module], Any]) -> set[str]:
    """Parameters that require a gradient and get none, neither with the model's present modes nor in eval mode.

    The model and the generators stay as they are.

    Args:
        model: the network.
        outputs: a copy of the model -> what is differentiated: a loss, or all that the model returns.
    """
    copy = copied(model)
    parameters = {name: p for name, p in copy.named_parameters() if p.requires_grad}
    missing = set(parameters)
    with same_random_numbers(model), torch.enable_grad():
        for attempt in (suppress(Exception), nullcontext()):  # a batch of one cannot pass a norm in train mode
            with attempt:
                tensors = [t for t in tree_leaves(outputs(copy)) if isinstance(t, Tensor) and t.requires_grad]
                if not tensors:
                    return set()  # outputs of a stranger's type say nothing
                sums = [t.abs().sum() for t in tensors]
                gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
                missing -= {name for name, g in zip(parameters, gradients, strict=True) if g is not None}
            copy.eval()
    return missing
