"""Counting work: multiply-accumulates dense, sparse and after shrinking, and the training total. Card "Metrics".

FLOPs are twice the MACs; everything here is in MACs per sample unless a name says otherwise. Only convolutions and
linear layers are counted (batch norms and activations are not).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from plait_chase.channels import tensor_name

__all__ = ["TrainFlops", "layer_costs", "layer_table"]


@dataclass(frozen=True)
class LayerCost:
    """Work of one weight tensor per sample.

    Args:
        numel: entries of the weight.
        positions: how often each entry is used per sample: ``H_out * W_out`` of a convolution.
    """

    numel: int
    positions: int

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates per sample."""
        return self.numel * self.positions


@torch.no_grad()
def layer_costs(model: nn.Module, example_input: Any) -> dict[str, LayerCost]:
    """Run the model once (in eval mode) and count the positions of each convolution and linear layer.

    Args:
        model: the network; its training mode is restored.
        example_input: a batch ``[B, ...]``, or a tuple of arguments whose first has the batch in dimension 0.

    Returns:
        Weight tensor name -> cost per sample, in order of execution. A layer called twice counts twice the positions.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    batch = inputs[0].shape[0]
    costs: dict[str, LayerCost] = {}
    handles = []

    def record(name: str, module: nn.Module, received: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            positions = output.numel() // (batch * output.shape[-1])
        elif getattr(module, "transposed", False):
            positions = prod(received[0].shape[2:])
        else:
            positions = prod(output.shape[2:])
        weight = module.weight
        before = costs[name].positions if name in costs else 0
        costs[name] = LayerCost(weight.numel() if isinstance(weight, Tensor) else 0, before + positions)

    for path, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            name = tensor_name(path, "weight")
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: record(name, m, i, o)))
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return costs


def dense_macs(costs: Mapping[str, LayerCost]) -> int:
    """MACs per sample with dense kernels: of a shrunk model, what ordinary hardware computes."""
    return sum(cost.macs for cost in costs.values())


def sparse_macs(costs: Mapping[str, LayerCost], nnz: Mapping[str, int]) -> int:
    """Theoretical MACs per sample if zeros were free: ``sum nnz_l * H_l * W_l``; layers without a mask count dense."""
    return sum(nnz.get(name, cost.numel) * cost.positions for name, cost in costs.items())


def layer_table(
    model: nn.Module, masks: Mapping[str, Tensor], original_shapes: Mapping[str, tuple[int, ...]], shrunk: nn.Module
) -> list[dict[str, Any]]:
    """One row per maskable tensor: its width before and after shrinking, and how dense it is inside.

    Args:
        model: the masked network (names only).
        masks: tensor name -> 0/1 mask.
        original_shapes: tensor name -> shape in the original dense network.
        shrunk: the network without dead channels.

    Returns:
        Rows with ``tensor``, ``channels_before``, ``channels_after``, ``inputs_before``, ``inputs_after``, ``nnz``,
        ``density`` (of the original tensor) and ``density_inside`` (of the shrunk one).
    """
    after = dict(shrunk.named_parameters())
    rows: list[dict[str, Any]] = []
    for name, _ in model.named_parameters():
        if name not in original_shapes:
            continue
        before = original_shapes[name]
        nnz = int(torch.count_nonzero(masks[name]))
        rows.append(
            {
                "tensor": name,
                "channels_before": before[0],
                "channels_after": after[name].shape[0],
                "inputs_before": before[1],
                "inputs_after": after[name].shape[1],
                "nnz": nnz,
                "density": nnz / prod(before),
                "density_inside": nnz / after[name].numel(),
            }
        )
    return rows


class TrainFlops:
    """Integrates the theoretical training work of a run, relative to dense training.

    A step costs 3 x the sparse forward pass per sample; a growth step adds one dense weight gradient (1 x the dense
    forward pass) for its batch.

    Args:
        costs: from :func:`layer_costs` of the ORIGINAL dense network.
    """

    def __init__(self, costs: Mapping[str, LayerCost]) -> None:
        self.costs = dict(costs)
        self._dense = dense_macs(costs)
        self.macs = 0
        self.samples = 0

    def add(self, samples: int, nnz: Mapping[str, int], dense_gradient: bool = False) -> None:
        """Count a step.

        Args:
            samples: batch size of the step.
            nnz: tensor name -> non-zeros during the step.
            dense_gradient: whether the step computed dense weight gradients for growth.
        """
        self.macs += samples * (3 * sparse_macs(self.costs, nnz) + (self._dense if dense_gradient else 0))
        self.samples += samples

    @property
    def flops(self) -> int:
        """FLOPs so far (2 x MACs)."""
        return 2 * self.macs

    @property
    def ratio(self) -> float:
        """Share of the work of dense training on the same samples; 0 before the first step."""
        return self.macs / (3 * self._dense * self.samples) if self.samples else 0.0

    def state_dict(self) -> dict[str, int]:
        """Counters, as JSON scalars."""
        return {"macs": self.macs, "samples": self.samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume counting."""
        self.macs, self.samples = int(state["macs"]), int(state["samples"])
