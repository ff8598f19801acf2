"""The dense layer against a sum over experts, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from plait_cdmoe.condensed import condensed_layer, fold
from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.families import Family

pytestmark = pytest.mark.smoke

KINDS = ("qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [[3, 0, 5], []])
def test_fused_equals_the_loop_over_experts(small: Callable[..., Any], kind: str, kept: list[int]) -> None:
    if kind == "qwen3_moe" and not kept:
        pytest.skip("nothing would be left")
    family, weights = Family(small(kind)), [0.31, 0.07, 0.2][: len(kept)]
    layer = condensed_layer(family, 1, kept, weights)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = family.shared(1, x.reshape(-1, 32))
        for e, w in zip(kept, weights, strict=True):
            gate, up, down = family.expert(1, e)
            inner = nn.functional.silu(x.reshape(-1, 32) @ gate.T) * (x.reshape(-1, 32) @ up.T)
            expected = expected + w * (inner @ down.T)
        assert float((layer(x).reshape(-1, 32) - expected).abs().max()) < 1e-12
        before = layer(x)
        fold(layer)
        assert float((layer(x) - before).abs().max()) < 1e-12
    assert not any("scale" in name for name in layer.state_dict())
    assert (layer.condensed is None) == (kind == "qwen2_moe" and not kept)


def test_its_tensors_are_copies_and_as_many_as_the_formula_says(small: Callable[..., Any]) -> None:
    for kind in KINDS:
        model = small(kind)
        family = Family(model)
        sizes = family.geometry()
        layer = condensed_layer(family, 0, [1, 2], [0.1, 0.2])
        removed = sum(p.numel() for p in family.block(0).parameters()) - sum(p.numel() for p in layer.parameters())
        assert removed == sizes.removed(2) == 4 * 3 * 32 * 8 + 6 * 32
        mine = {p.data_ptr() for p in layer.parameters()}
        assert not mine & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [1, 1], [0.1, 0.1]), "layer 0: an expert is in the keep list twice"),
        ((0, [6], [0.1]), "layer 0: expert 6 is out of range, there are 6"),
        ((0, [-1], [0.1]), "expert -1 is out of range"),
        ((4, [0], [0.1]), "layer 4 is out of range"),
        ((2, [3], [math.nan]), "layer 2: the weight of expert 3 is nan"),
        ((2, [3], [math.inf]), "layer 2: the weight of expert 3 is inf"),
    ],
)
def test_bad_lists_are_named(small: Callable[..., Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CdmoeError, match=message):
        condensed_layer(Family(small()), *arguments)


def test_without_a_shared_expert_something_must_be_kept(small: Callable[..., Any]) -> None:
    with pytest.raises(CdmoeError, match="layer trimming"):
        condensed_layer(Family(small("qwen3_moe")), 0, [], [])
