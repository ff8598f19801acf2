"""Chase: dynamic sparse training that ends in a physically smaller network.

Yin et al., "Dynamic Sparsity Is Channel-Level Sparsity Learner", NeurIPS 2023, arXiv:2305.19454.

Names are resolved on first use, so ``import plait_chase`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait_chase.channels import ChannelGroup as ChannelGroup
    from plait_chase.channels import min_channels as min_channels
    from plait_chase.channels import rounded_alive as rounded_alive
    from plait_chase.channels import select_channels as select_channels
    from plait_chase.chase import Chase as Chase
    from plait_chase.chase import initialise as initialise
    from plait_chase.config import ChaseConfig as ChaseConfig
    from plait_chase.engine import ChaseEngine as ChaseEngine
    from plait_chase.engine import Update as Update
    from plait_chase.engine import present_channels as present_channels
    from plait_chase.erk import budget as budget
    from plait_chase.erk import erk_densities as erk_densities
    from plait_chase.erk import random_masks as random_masks
    from plait_chase.errors import ChaseError as ChaseError
    from plait_chase.flops import TrainFlops as TrainFlops
    from plait_chase.flops import layer_costs as layer_costs
    from plait_chase.flops import layer_table as layer_table
    from plait_chase.groups import find_channel_groups as find_channel_groups
    from plait_chase.presets import BASELINES as BASELINES
    from plait_chase.residual import SmallResNet as SmallResNet
    from plait_chase.shrink import apply_shrink as apply_shrink
    from plait_chase.shrink import bn_recalibrate as bn_recalibrate
    from plait_chase.shrink import check_groups as check_groups
    from plait_chase.shrink import reslice_optimizer as reslice_optimizer
    from plait_chase.shrink import shrink_plan as shrink_plan
    from plait_chase.shrink import slice_tensor as slice_tensor
    from plait_chase.timing import compare_throughput as compare_throughput
    from plait_chase.vgg import bn_vgg as bn_vgg
    from plait_chase.yardsticks import prune_with_torch_pruning as prune_with_torch_pruning
    from plait_chase.yardsticks import random_channels as random_channels

__version__ = "0.1.0"

_HOME = {
    "BASELINES": "presets",
    "ChannelGroup": "channels",
    "Chase": "chase",
    "ChaseConfig": "config",
    "ChaseEngine": "engine",
    "ChaseError": "errors",
    "SmallResNet": "residual",
    "TrainFlops": "flops",
    "Update": "engine",
    "apply_shrink": "shrink",
    "bn_recalibrate": "shrink",
    "bn_vgg": "vgg",
    "budget": "erk",
    "check_groups": "shrink",
    "compare_throughput": "timing",
    "erk_densities": "erk",
    "find_channel_groups": "groups",
    "initialise": "chase",
    "layer_costs": "flops",
    "layer_table": "flops",
    "min_channels": "channels",
    "present_channels": "engine",
    "prune_with_torch_pruning": "yardsticks",
    "random_channels": "yardsticks",
    "random_masks": "erk",
    "reslice_optimizer": "shrink",
    "rounded_alive": "channels",
    "select_channels": "channels",
    "shrink_plan": "shrink",
    "slice_tensor": "shrink",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
