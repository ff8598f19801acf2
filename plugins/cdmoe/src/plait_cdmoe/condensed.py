"""The condensed layer: kept experts of constant weight and the shared expert, as one dense MLP (card, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CdmoeError
from .families import Family, Layout, activation

__all__ = ["CondensedMLP", "SwiGLU", "condensed_layer", "fold"]


class SwiGLU(nn.Module):
    """y = W_down ( act(W_gate x) * (W_up x) * c ), d -> width -> d.

    With ``scale`` there is c [width]: a buffer, which `fold` moves into W_down.
    """

    scale: Tensor | None

    def __init__(self, hidden: int, width: int, act: nn.Module, *, scale: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)
        self.act_fn = act
        self.register_buffer("scale", torch.ones(width) if scale else None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        inner: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        if self.scale is not None:
            inner = inner * self.scale
        output: Tensor = self.down_proj(inner)
        return output


class CondensedMLP(nn.Module):
    """A condensed mixture-of-experts layer: no router, the same computation for every token.

    Args:
        config, layout: of the model and its family.
        kept: k, the number of routed experts.
        scale: keep their weights c apart, as fine-tuning needs it; else they are in W_down.

    Attributes:
        condensed: kept experts, and the shared expert too where it has no gate; None when there is nothing in it.
    """

    condensed: SwiGLU | None

    def __init__(self, config: Any, layout: Layout, kept: int, *, scale: bool = False) -> None:
        super().__init__()
        hidden, width = config.hidden_size, kept * config.moe_intermediate_size
        act = activation(config)
        if layout.shared is not None and layout.shared_gate is None:
            width += config.n_shared_experts * config.moe_intermediate_size
        elif layout.shared is not None and layout.shared_gate is not None:
            self.shared_expert = SwiGLU(hidden, config.shared_expert_intermediate_size, act)
            self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)
        self.gated = layout.shared_gate is not None
        self.condensed = SwiGLU(hidden, width, act, scale=scale) if width else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        output: Tensor | None = self.condensed(x) if self.condensed is not None else None
        if self.gated:
            shared: Tensor = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
            output = shared if output is None else output + shared
        assert output is not None
        return output


@torch.no_grad()
def condensed_layer(family: Family, layer: int, kept: Sequence[int], weights: Sequence[float]) -> CondensedMLP:
    """CD_l(x) = S(x) + sum of w_e f_e(x) over the kept experts, with copies of the model's weights.

    ``kept`` is C_l in its order, empty for CD-MoE-S, and ``weights`` has w_e of each of them.

    Raises:
        CdmoeError: an index out of range or given twice, a weight that is not finite, nothing left in the layer.
    """
    geometry = family.geometry()
    if not 0 <= layer < geometry.layers:
        raise CdmoeError(f"layer {layer} is out of range: the model has {geometry.layers} of them, 0 to L-1")
    if len(set(kept)) < len(kept):
        raise CdmoeError(f"layer {layer}: an expert is in the keep list twice: {list(kept)}")
    for expert, weight in zip(kept, weights, strict=True):
        if not 0 <= expert < geometry.experts:
            raise CdmoeError(f"layer {layer}: expert {expert} is out of range, there are {geometry.experts}")
        if not math.isfinite(weight):
            raise CdmoeError(f"layer {layer}: the weight of expert {expert} is {weight}")
    if not kept and not geometry.shared:
        raise CdmoeError(f"layer {layer}: without shared and kept experts nothing is left; that is layer trimming")
    block = family.block(layer)
    parts = [family.expert(layer, expert) for expert in kept]
    scales = [torch.full((geometry.width,), weight, dtype=torch.float64) for weight in weights]
    shared: Any = getattr(block, family.layout.shared) if family.layout.shared else None
    if shared is not None and not geometry.gated:
        parts.append((shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight))
        scales.append(torch.ones(geometry.shared, dtype=torch.float64))
    example = family.expert(layer, 0)[0]
    with torch.device("meta"):
        module = CondensedMLP(family.config, family.layout, len(kept), scale=bool(kept))
    module.to(example.dtype).to_empty(device=example.device)
    if module.condensed is not None:
        gates, ups, downs = zip(*parts, strict=True)
        module.condensed.gate_proj.weight.copy_(torch.cat(gates))
        module.condensed.up_proj.weight.copy_(torch.cat(ups))
        module.condensed.down_proj.weight.copy_(torch.cat(downs, 1))
        if module.condensed.scale is not None:
            module.condensed.scale.copy_(torch.cat(scales))
    if geometry.gated:
        module.shared_expert.load_state_dict(shared.state_dict())
        module.shared_expert_gate.load_state_dict(getattr(block, str(family.layout.shared_gate)).state_dict())
    return module.train(block.training)


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Move every c into its W_down, in place: what is written to disk.

    Not before fine-tuning: Adam does not feel the scale of a weight, so a W_down that has c in it takes steps 1/w times
    as large.
    """
    for module in model.modules():
        if isinstance(module, SwiGLU) and module.scale is not None:
            module.down_proj.weight.mul_(module.scale.to(module.down_proj.weight.dtype))
            module.scale = None
