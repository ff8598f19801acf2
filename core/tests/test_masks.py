"""Masks: exact zeros, one owner, optimizer state, dense gradients for the owner, bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plait.errors import BadCheckpoint, BadInput
from plait.training.masks import MaskSet, pack, unpack
from plait.training.slicing import slice_tensors


def masked_linear(seed: int = 0) -> tuple[nn.Linear, MaskSet]:
    torch.manual_seed(seed)
    model = nn.Linear(6, 4)
    masks = MaskSet(model)
    masks.own("owner", ["weight"])["weight"].copy_((torch.rand(4, 6) < 0.5).float())
    masks.changed()
    masks.hold()
    return model, masks


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_pack_round_trip_in_bits(bits: list[bool]) -> None:
    mask = torch.tensor(bits, dtype=torch.float32)
    packed = pack(mask)
    assert packed.numel() == -(-len(bits) // 8) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, mask.shape).float(), mask)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam", "adamw"])
def test_masked_weights_never_move_and_come_back_from_zero(kind: str) -> None:
    model, masks = masked_linear()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    }
    optimizer = make[kind](model.parameters())
    x = torch.randn(8, 6)

    def step() -> None:
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        masks.mask_gradients(keep=False, accumulate=False)
        optimizer.step()
        masks.hold()

    for _ in range(3):
        step()
        assert torch.all(model.weight[masks.mask["weight"] == 0] == 0)
    flipped = 1 - masks.mask["weight"]
    masks.mask["weight"].copy_(flipped)
    masks.changed()
    masks.hold_state(optimizer)
    gone = masks.mask["weight"] == 0
    assert torch.all(model.weight == 0)
    for value in optimizer.state[model.weight].values():
        if isinstance(value, torch.Tensor) and value.shape == model.weight.shape:
            assert torch.all(value[gone] == 0)
    step()
    assert torch.all(model.weight[gone] == 0) and bool((model.weight[~gone] != 0).any())


def test_dense_gradient_is_the_unmasked_gradient_also_when_accumulated() -> None:
    model, masks = masked_linear()
    masks.keep_dense("owner")
    parts = torch.randn(3, 8, 6)
    for number, x in enumerate(parts):
        model(x).pow(2).mean().backward()
        masks.mask_gradients(keep=True, accumulate=number > 0)
    (expected,) = torch.autograd.grad(sum(model(x).pow(2).mean() for x in parts), [model.weight])
    torch.testing.assert_close(masks.dense_gradient("weight"), expected)
    torch.testing.assert_close(model.weight.grad, expected * masks.mask["weight"])


def test_dense_gradient_must_be_asked_for() -> None:
    model, masks = masked_linear()
    model(torch.randn(2, 6)).sum().backward()
    masks.mask_gradients(keep=True, accumulate=False)
    with pytest.raises(BadInput, match="keep_dense"):
        masks.dense_gradient("weight")


def test_two_owners_and_unknown_tensors_are_refused() -> None:
    _, masks = masked_linear()
    with pytest.raises(BadInput, match=r"'thief' and 'owner' both own"):
        masks.own("thief", ["weight"])
    with pytest.raises(BadInput, match="does not have"):
        masks.own("owner", ["no.such"])


def test_state_of_other_tensors_or_owner_is_refused() -> None:
    _, masks = masked_linear()
    state = masks.state_dict()
    with pytest.raises(BadCheckpoint, match="bias"):
        masks.load_state_dict({**state, "bias": state["weight"]})
    with pytest.raises(BadCheckpoint, match="weight"):
        masks.load_state_dict({"weight": {**state["weight"], "owner": "other"}})


def test_slicing_keeps_weights_masks_and_momentum_together() -> None:
    model, masks = masked_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 6)).pow(2).sum().backward()
    optimizer.step()
    masks.hold()
    before = [
        model.weight.detach().clone(),
        masks.mask["weight"].clone(),
        optimizer.state[model.weight]["momentum_buffer"].clone(),
    ]
    parameter = model.weight
    rows, columns = torch.tensor([0, 2]), torch.tensor([1, 3, 5])
    slice_tensors(model, optimizer, masks, {"weight": [(0, rows), (1, columns)], "bias": [(0, rows)]})
    after = [model.weight.detach(), masks.mask["weight"], optimizer.state[model.weight]["momentum_buffer"]]
    for b, a in zip(before, after, strict=True):
        assert torch.equal(a, b[rows][:, columns])
    assert model.weight is parameter and model.bias.shape == (2,)


def test_a_tied_parameter_is_not_sliced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    masks, optimizer = MaskSet(model), torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match=r"'0.weight' and '1.weight' are one parameter"):
        slice_tensors(model, optimizer, masks, {"0.weight": [(0, torch.tensor([0, 1]))]})
    assert model[0].weight.shape == (4, 4)
