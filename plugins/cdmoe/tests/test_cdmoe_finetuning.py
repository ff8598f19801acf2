"""What is trained and what is not, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.families import Family
from plait_cdmoe.finetuning import as_control, finetune, freeze
from plait_cdmoe.search import condense

Small = Callable[..., Any]


def batches(count: int, mask: Tensor | None = None) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(64, (4, 12), generator=generator), mask) for _ in range(count)]


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v2"])
@pytest.mark.parametrize("mode", ["SR", "S"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_condensed_weights_move(
    small: Small, texts: list[Tensor], kind: str, mode: str, dtype: torch.dtype
) -> None:
    model = small(kind, dtype)
    found = condense(model, texts[:3], mode=mode, layers=2)
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    places = list(found.model.config.condensed_layers)
    report = finetune(found.model, batches(6), steps=5, lr=1e-2)
    assert report.steps == 5
    assert report.losses[-1] != report.losses[0]
    moved = {name for name, value in found.model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {
        name
        for name in before
        for place in places
        if name.startswith(f"model.layers.{place}.mlp.") and name.endswith("_proj.weight")
    }
    assert moved == expected
    assert not any("shared_expert_gate" in name or "scale" in name for name in moved)


def test_steps_of_bfloat16_are_kept_in_float32(small: Small, texts: list[Tensor]) -> None:
    """Steps that are too small for bfloat16, one by one, still add up."""
    found = condense(small("deepseek_v2", torch.bfloat16), texts[:2], layers=1)
    place = next(iter(found.model.config.condensed_layers))
    weight = found.model.model.layers[place].mlp.condensed.gate_proj.weight
    before = weight.detach().clone()
    finetune(found.model, batches(8), steps=8, lr=2e-5, warmup=0.0)
    assert int((weight != before).sum()) > 0


def test_padding_is_not_trained_on(small: Small, texts: list[Tensor]) -> None:
    mask = torch.ones(4, 12, dtype=torch.int64)
    mask[:, 9:] = 0
    ends = []
    for filled in (0, 7):
        found = condense(small("qwen2_moe", torch.float32), texts[:2], layers=1)
        ids = [(given.clone(), own) for given, own in batches(3, mask)]
        for given, _ in ids:
            given[:, 9:] = filled
        finetune(found.model, ids, steps=3, lr=1e-2)
        ends.append(found.model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-6)


def test_the_control_trains_the_same_tensors_of_the_original(small: Small, texts: list[Tensor]) -> None:
    model = small("qwen2_moe", torch.float32)
    found = condense(model, texts[:3], layers=2)
    entries = found.model.config.condensed_layers
    condensed_numbers = sum(found.model.get_parameter(name).numel() for name in freeze(found.model))
    ids = torch.randint(64, (2, 9))
    with torch.no_grad():
        expected = model(ids).logits
    names = as_control(model, {place: entry["experts"] for place, entry in entries.items()}, "shared_expert")
    assert sum(model.get_parameter(name).numel() for name in names) == condensed_numbers
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    family = Family(model)
    place = next(iter(entries))
    layer = family.moe_layers().index(place)
    before = [value.detach().clone() for value in family.stacked(layer)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    changed = (family.stacked(layer)[1] != before[1]).flatten(1).any(1)
    assert set(changed.nonzero().flatten().tolist()) == set(entries[place]["experts"])


def test_errors_are_one_line(small: Small, texts: list[Tensor]) -> None:
    with pytest.raises(CdmoeError, match="no layer is condensed"):
        freeze(small())
    found = condense(small("qwen2_moe", torch.float32), texts[:2], layers=1)
    with torch.no_grad():
        found.model.lm_head.weight[:] = torch.nan
    with pytest.raises(CdmoeError, match="fine-tuning step 1: the loss is nan"):
        finetune(found.model, batches(1), steps=1)
