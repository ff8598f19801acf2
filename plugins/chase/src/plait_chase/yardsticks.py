"""Other ways to make a network narrower, to measure Chase against: torch-pruning's pruners, and random channels."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import nn

from plait_chase.channels import (
    ChannelGroup,
    check_reachable,
    group_width,
    kept_channels,
    min_channels,
    select_channels,
)
from plait_chase.errors import ChaseError
from plait_chase.flops import dense_macs, layer_costs
from plait_chase.shrink import apply_shrink, shrink_plan, unwrapped

__all__ = ["prune_with_torch_pruning", "random_channels"]

KINDS = ("magnitude", "bn-scale")


def prune_with_torch_pruning(
    model: nn.Module,
    example_input: Any,
    kind: str = "magnitude",
    *,
    channel_ratio: float | None = None,
    mac_ratio: float | None = None,
    weights: int | None = None,
    ignored: Sequence[str] = (),
    global_pruning: bool = True,
    layer_ratio: float = 1.0,
    steps: int = 100,
) -> nn.Module:
    """A narrower copy of ``model`` by torch-pruning; fine-tune it afterwards.

    Args:
        model: a trained dense network; not changed.
        example_input: one argument of ``forward``, ``[B, ...]``.
        kind: ``"magnitude"`` (default; ``MagnitudePruner``, group L2 norm) or ``"bn-scale"`` (``BNScalePruner``,
            network slimming's importance; train with its L1 term beforehand for the full method).
        channel_ratio: share of channels to remove, in (0, 1). Exactly one of the three goals is given.
        mac_ratio: remove channels step by step until MACs are at most this share of the dense ones, in (0, 1).
        weights: remove channels step by step until at most so many weights (of two or more dimensions) are left.
        ignored: module names whose outputs keep their width. Classifiers (every linear layer whose output is the
            network's, i.e. the last linear layer) are always kept.
        global_pruning: rank channels over all layers (default) or in each.
        layer_ratio: largest share of a layer's channels that may go, in (0, 1]; default 1, no floor. Chase's floor is
            ``1 - (1 - S_c) * beta``.
        steps: how finely ``mac_ratio`` and ``weights`` are approached; default 100.

    Raises:
        ChaseError: bad options, or a goal that cannot be reached.
    """
    if kind not in KINDS:
        raise ChaseError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if (channel_ratio, mac_ratio, weights).count(None) != 2:
        raise ChaseError(
            f"give one of channel_ratio, mac_ratio and weights, not {channel_ratio}, {mac_ratio} and {weights}"
        )
    if weights is not None and weights < 1:
        raise ChaseError(f"weights={weights} must be at least 1")
    for option, value in (("channel_ratio", channel_ratio), ("mac_ratio", mac_ratio)):
        if value is not None and not 0.0 < value < 1.0:
            raise ChaseError(f"{option}={value} is outside (0, 1)")
    if not 0.0 < layer_ratio <= 1.0:
        raise ChaseError(f"layer_ratio={layer_ratio} is outside (0, 1]")
    tp = import_module("torch_pruning")
    copy = deepcopy(unwrapped(model)).eval()
    linears = [module for module in copy.modules() if isinstance(module, nn.Linear)]
    kept = [copy.get_submodule(name) for name in ignored] + linears[-1:]
    importance = tp.importance.MagnitudeImportance(p=2) if kind == "magnitude" else tp.importance.BNScaleImportance()
    pruner_class = tp.pruner.MagnitudePruner if kind == "magnitude" else tp.pruner.BNScalePruner
    pruner = pruner_class(
        copy,
        example_input,
        importance=importance,
        pruning_ratio=channel_ratio if channel_ratio is not None else 0.99,
        iterative_steps=1 if channel_ratio is not None else steps,
        global_pruning=global_pruning,
        max_pruning_ratio=layer_ratio,
        ignored_layers=kept,
    )
    if channel_ratio is not None:
        pruner.step()
        return copy.train(model.training)
    macs = (mac_ratio or 1.0) * dense_macs(layer_costs(model, example_input))
    for _ in range(steps):
        pruner.step()
        if weights is not None and count_weights(copy) <= weights:
            break
        if weights is None and dense_macs(layer_costs(copy, example_input)) <= macs:
            break
    else:
        goal = f"mac_ratio={mac_ratio}" if weights is None else f"weights={weights}"
        raise ChaseError(f"{goal} cannot be reached by the {kind} pruner in {steps} steps")
    return copy.train(model.training)


def count_weights(model: nn.Module) -> int:
    """Entries of the parameters of two or more dimensions, the ones that Chase counts in N."""
    return sum(p.numel() for p in model.parameters() if p.ndim >= 2)


def random_channels(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    channel_sparsity: float,
    generator: torch.Generator,
    min_layer_factor: float = 0.2,
) -> nn.Module:
    """A narrower copy of ``model`` without randomly chosen channels, under the floors that Chase obeys.

    To train with channels going at random step by step, use Chase with ``score="random"`` instead.

    Args:
        model: any network; not changed.
        groups: its channel groups.
        channel_sparsity: S_c, share of the prunable channels to remove, in [0, 1).
        generator: source of randomness.
        min_layer_factor: beta, default 0.2.

    Raises:
        ChaseError: channel sparsity outside [0, 1) or unreachable.
    """
    if not 0.0 <= channel_sparsity < 1.0:
        raise ChaseError(f"channel_sparsity={channel_sparsity} is outside [0, 1)")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    widths = {group.producer: group_width(group, shapes) for group in groups}
    check_reachable(widths, channel_sparsity, min_layer_factor)
    total = sum(widths.values())
    alive = [torch.ones(width, dtype=torch.bool) for width in widths.values()]
    scores = [torch.rand(w, dtype=torch.float64, generator=generator, device=generator.device) for w in widths.values()]
    floors = [min_channels(width, channel_sparsity, min_layer_factor) for width in widths.values()]
    gone = select_channels(scores, alive, total - kept_channels(total, channel_sparsity), floors)
    copy = deepcopy(unwrapped(model))
    apply_shrink(copy, shrink_plan(copy, groups, {name: ~dead for name, dead in zip(widths, gone, strict=True)}))
    return copy
