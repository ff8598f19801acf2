"""Adapters: what they read, put together again, is the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from plait_cdmoe.deepseek import DeepseekConfig, DeepseekForCausalLM
from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.families import Family

KINDS = ("qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek")


def by_hand(family: Family, layer: int, x: torch.Tensor) -> torch.Tensor:
    """S(x) + sum of gates times experts, token by token."""
    index, weight = family.gates(layer, x)
    output = family.shared(layer, x)
    for token in range(len(x)):
        for e, g in zip(index[token].tolist(), weight[token], strict=True):
            gate, up, down = family.expert(layer, e)
            output[token] += g * (down @ (nn.functional.silu(gate @ x[token]) * (up @ x[token])))
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_gates_experts_and_shared_make_the_layer(small: Callable[..., Any], kind: str) -> None:
    family = Family(small(kind))
    assert family.moe_layers() == ([0, 1, 2, 3] if kind.startswith("qwen") else [1, 2, 3])
    x = torch.randn(7, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(by_hand(family, 1, x), family.block(1)(x[None])[0], rtol=1e-6, atol=1e-7)
        gate_up, down = family.stacked(1)
    gate, up, single = family.expert(1, 4)
    assert torch.equal(gate_up[4], torch.cat([gate, up]))
    assert torch.equal(down[4], single)


@pytest.mark.parametrize("kind", KINDS)
def test_the_geometry_is_the_configuration(small: Callable[..., Any], kind: str) -> None:
    sizes = Family(small(kind)).geometry()
    shared = {"qwen2_moe": 12, "qwen3_moe": 0}.get(kind, 16)
    assert (sizes.hidden, sizes.width, sizes.experts, sizes.per_token, sizes.shared) == (32, 8, 6, 2, shared)
    assert sizes.gated == (kind == "qwen2_moe")


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, width, bias=False), nn.Linear(8, width, bias=False)
        self.down_proj = nn.Linear(width, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class _ReversedRouter(nn.Module):
    """4.57's DeepSeek-V2: three dimensions in; index first, then the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.ndim == 3
        weight, index = (x.reshape(-1, 8) @ self.weight.T).softmax(-1).topk(2)
        return index, weight


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v2"])
@pytest.mark.parametrize("renormalised", [False, True])
def test_the_layout_of_transformers_4_is_read_as_well(kind: str, renormalised: bool) -> None:
    torch.manual_seed(0)
    block = nn.Module()
    block.experts = nn.ModuleList([_Mlp(3) for _ in range(5)])
    block.gate = nn.Linear(8, 5, bias=False) if kind == "qwen2_moe" else _ReversedRouter()
    setattr(block, "shared_expert" if kind == "qwen2_moe" else "shared_experts", _Mlp(6))
    block.shared_expert_gate = nn.Linear(8, 1, bias=False)
    layer = nn.Module()
    layer.mlp = block
    config = SimpleNamespace(model_type=kind, num_experts_per_tok=2, norm_topk_prob=renormalised, hidden_act="silu")
    family = Family(SimpleNamespace(config=config, model=SimpleNamespace(layers=[layer])))
    x = torch.randn(4, 8)
    index, weight = family.gates(0, x)
    probabilities = (x @ block.gate.weight.T).softmax(-1)
    expected, places = probabilities.topk(2)
    if renormalised and kind == "qwen2_moe":
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(index, places)
    torch.testing.assert_close(weight, expected)
    sizes = family.geometry()
    assert (sizes.experts, sizes.width, sizes.shared) == (5, 3, 6)
    up, down = family.stacked(0)
    assert up.shape == (5, 6, 8) and down.shape == (5, 8, 3)
    assert by_hand(family, 0, x).shape == x.shape


def test_widths_that_the_grouped_kernel_cannot_do_are_computed_one_by_one(small: Callable[..., Any]) -> None:
    from plait_cdmoe.search import condense

    model = small("qwen2_moe", torch.bfloat16, moe_intermediate_size=11, shared_expert_intermediate_size=11)
    assert condense(model, [torch.arange(9), torch.arange(5, 20)], layers=1).state.order


def test_published_sizes_of_deepseek_and_qwen() -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    with torch.device("meta"):
        deepseek = DeepseekForCausalLM(DeepseekConfig(num_key_value_heads=16, tie_word_embeddings=False))
        qwen = Qwen2MoeForCausalLM(Qwen2MoeConfig())
    for model, whole, shared_only, kept, with_experts, layers in (
        (deepseek, 16_375_728_128, 553_779_200, 6, 501_874_688, 27),
        (qwen, 14_315_784_192, 519_168_000, 4, 484_564_992, 24),
    ):
        assert sum(p.numel() for p in model.parameters()) == whole
        sizes = Family(model).geometry()
        assert sizes.layers == layers
        assert sizes.removed(0) == shared_only
        assert sizes.removed(kept) == with_experts


def test_what_has_no_adapter_is_named(small: Callable[..., Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(CdmoeError, match=r"'llama' has no adapter; there are adapters for qwen2_moe, .*deepseek_v3"):
        Family(llama)
    with pytest.raises(CdmoeError, match="no mixture-of-experts layer"):
        Family(small("qwen2_moe", mlp_only_layers=[0, 1, 2, 3]))
    with pytest.raises(ValueError, match="not renormalised"):
        DeepseekConfig(norm_topk_prob=True)
