"""Where the experts, routers and shared experts of a model are, whatever its family and the release of transformers.

Notation of the card: L mixture-of-experts layers, counted from 0 without the dense ones; d hidden size, E routed
experts of width m, K of them for each token, a shared expert of width s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CdmoeError

__all__ = ["LAYOUTS", "Family", "Geometry", "Layout", "activation"]


@dataclass(frozen=True)
class Layout:
    """Names inside a family's block: of the shared expert (one MLP whatever their number), and of the linear layer
    [1, d] whose sigmoid scales it; None: the family has none."""

    shared: str | None = "shared_experts"
    shared_gate: str | None = None


LAYOUTS: dict[str, Layout] = {
    "qwen2_moe": Layout("shared_expert", "shared_expert_gate"),
    "qwen3_moe": Layout(None),
    "deepseek_v2": Layout(),
    "deepseek_v3": Layout(),
    "deepseek": Layout(),
}
"""Families by ``config.model_type``."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of the mixture-of-experts layers: L, d, m, E, K, s (0 without a shared expert), and whether the shared
    expert has a gate for each token."""

    layers: int
    hidden: int
    width: int
    experts: int
    per_token: int
    shared: int
    gated: bool

    def removed(self, kept: int) -> int:
        """Parameters that a condensed layer with ``kept`` routed experts has less: (E-k) 3dm + Ed."""
        return (self.experts - kept) * 3 * self.hidden * self.width + self.experts * self.hidden


class Family:
    """A causal language model of transformers, seen as its mixture-of-experts layers.

    Transformers 5 keeps the experts of a layer in two stacked tensors, 4.57 in a list of MLPs; routers return their
    results in different orders. Both are read from what is there.

    Args:
        model: ``...ForCausalLM`` of a family in `LAYOUTS`.

    Raises:
        CdmoeError: another family, no such layer, a model that is condensed already, or MLPs with biases.
    """

    def __init__(self, model: Any) -> None:
        config: Any = getattr(model, "config", None)
        kind = str(getattr(config, "model_type", type(model).__name__))
        if getattr(config, "condensed_layers", None):
            raise CdmoeError(
                f"the model is condensed already (layers {sorted(config.condensed_layers)}): give the original one"
            )
        if kind not in LAYOUTS:
            raise CdmoeError(f"model_type {kind!r} has no adapter; there are adapters for {', '.join(LAYOUTS)}")
        self.model: Any = model
        self.kind, self.layout, self.config = kind, LAYOUTS[kind], config
        if getattr(config, "mlp_bias", False):
            raise CdmoeError("mlp_bias = true: expert MLPs with biases cannot be fused into one")
        layers: Any = self.model.model.layers
        self._places = [
            place for place, layer in enumerate(layers) if hasattr(layer.mlp, "experts") and hasattr(layer.mlp, "gate")
        ]
        if not self._places:
            raise CdmoeError(f"this {kind} model has no mixture-of-experts layer: there is nothing to condense")

    def moe_layers(self) -> list[int]:
        """Decoder index of each of the L layers."""
        return list(self._places)

    def block(self, layer: int) -> Any:
        """The mixture-of-experts block of layer l."""
        return self.model.model.layers[self._places[layer]].mlp

    def geometry(self) -> Geometry:
        """Sizes, read from the tensors of the first layer."""
        return self._geometry

    @cached_property
    def _geometry(self) -> Geometry:
        block = self.block(0)
        if isinstance(block.experts, nn.ModuleList):
            first: Any = block.experts[0]
            experts, (width, hidden) = len(block.experts), first.gate_proj.weight.shape
        else:
            experts, hidden, width = block.experts.down_proj.shape
        shared: Any = getattr(block, self.layout.shared) if self.layout.shared else None
        return Geometry(
            len(self._places),
            int(hidden),
            int(width),
            int(experts),
            int(self.config.num_experts_per_tok),
            int(shared.gate_proj.weight.shape[0]) if shared is not None else 0,
            self.layout.shared_gate is not None,
        )

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """W_gate [m, d], W_up [m, d], W_down [d, m] of one expert."""
        experts = self.block(layer).experts
        if isinstance(experts, nn.ModuleList):
            mlp: Any = experts[expert]
            return mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        gate, up = experts.gate_up_proj[expert].chunk(2)
        return gate, up, experts.down_proj[expert]

    def stacked(self, layer: int) -> tuple[Tensor, Tensor]:
        """All experts: gate above up [E, 2m, d], and down [E, d, m]."""
        experts = self.block(layer).experts
        if not isinstance(experts, nn.ModuleList):
            return experts.gate_up_proj, experts.down_proj
        parts = [self.expert(layer, e) for e in range(len(experts))]
        return torch.stack([torch.cat(part[:2]) for part in parts]), torch.stack([part[2] for part in parts])

    def gates(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token, int64 [N, K], and the number that multiplies each [N, K]; x is [N, d]."""
        block = self.block(layer)
        if isinstance(block.gate, nn.Linear):  # 4.57's qwen: the choice is made in the block
            probabilities = block.gate(x).softmax(-1, dtype=torch.float32)
            weight, index = probabilities.topk(self.config.num_experts_per_tok, dim=-1)
            if self.config.norm_topk_prob:
                weight = weight / weight.sum(-1, keepdim=True)
            return index, weight.to(x.dtype)
        results = [part for part in block.gate(x.unsqueeze(0)) if isinstance(part, Tensor)]
        index = next(part for part in results if not part.is_floating_point())
        weight = next(p for p in reversed(results) if p.is_floating_point() and p.numel() == index.numel())
        return index.reshape(len(x), -1), weight.reshape(len(x), -1)

    def shared(self, layer: int, x: Tensor) -> Tensor:
        """S(x): the shared expert times its gate; zeros where there is none. x is [N, d]."""
        block = self.block(layer)
        if self.layout.shared is None:
            return torch.zeros_like(x)
        output: Tensor = getattr(block, self.layout.shared)(x)
        if self.layout.shared_gate is not None:
            output = torch.sigmoid(getattr(block, self.layout.shared_gate)(x)) * output
        return output


def activation(config: Any) -> nn.Module:
    """The nonlinearity of the experts (SiLU in all of these families)."""
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[config.hidden_act]
    return module
