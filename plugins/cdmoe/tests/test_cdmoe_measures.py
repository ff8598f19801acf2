"""Figures against direct computations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait_cdmoe import measures
from plait_cdmoe.measures import (
    layer_speed,
    losses_of,
    multiple_choice,
    parameter_bytes,
    perplexity,
    retained,
    speed_of,
)
from plait_cdmoe.search import condense


class _Counting(nn.Module):
    """Thinks that after token t comes t + 1, with that many nats of confidence."""

    def __init__(self, size: int, sure: float) -> None:
        super().__init__()
        self.table = nn.Parameter(sure * torch.roll(torch.eye(size), 1, 1))

    def forward(self, ids: Tensor) -> Any:
        return type("Output", (), {"logits": self.table[ids]})()


def test_perplexity_of_a_model_known_in_closed_form(small: Callable[..., Any]) -> None:
    model = _Counting(10, 3.0)
    windows = torch.arange(24).reshape(2, 12) % 10
    nats = math.log(math.exp(3.0) + 9) - 3.0
    losses = losses_of(model, windows)
    assert losses[:, 1].tolist() == [11.0, 11.0]
    assert perplexity(losses)[""] == pytest.approx(math.exp(nats), rel=1e-6)
    mixed = torch.tensor([[10.0, 5.0], [4.0, 1.0], [6.0, 2.0]])
    figures = perplexity(mixed, torch.tensor([0, 1, 1]), ["a", "b", "c"])
    assert figures == pytest.approx({"": math.exp(20 / 8), "a": math.exp(2), "b": math.exp(10 / 3)})
    hf = small("qwen2_moe", torch.float32)
    ids = torch.randint(64, (1, 12))
    with torch.no_grad():
        assert perplexity(losses_of(hf, ids))[""] == pytest.approx(float(hf(ids, labels=ids).loss.exp()), rel=1e-5)


def test_multiple_choice_of_the_knowing_and_the_ignorant() -> None:
    streams = {"a": torch.arange(5000) % 10, "b": torch.arange(40) % 10}
    wise = multiple_choice(_Counting(10, 5.0), streams, 200, context=6, option=4)
    # a wrong option is the true one too when it starts at the same digit: ties go to the first, the true one
    assert wise == {"": 100.0, "a": 100.0, "b": 100.0}
    even = multiple_choice(_Counting(10, 0.0), {"a": torch.randint(10, (5000,))}, 50)
    assert even[""] == 100.0, "all options alike: the first is taken"
    foolish = multiple_choice(_Counting(10, -5.0), streams, 200, context=6, option=4)
    assert foolish[""] < 5
    assert multiple_choice(_Counting(10, 1.0), {"short": torch.arange(5)}, 10) == {}


def test_retained_shares_and_where_they_are_undefined() -> None:
    assert retained(45.0, 50.0) == pytest.approx(0.9)
    assert retained(45.0, 50.0, 25.0) == pytest.approx(0.8)
    assert math.isnan(retained(30.0, 25.0, 25.0))


def test_bytes_count_tied_weights_once_and_are_the_formula(small: Callable[..., Any], texts: list[Tensor]) -> None:
    model = small("qwen2_moe", torch.float32)
    assert parameter_bytes(model) == 4 * sum(p.numel() for p in model.parameters())
    for mode, kept in (("SR", 2), ("S", 0)):
        found = condense(model, texts[:3], mode=mode, layers=3)
        removed = 3 * ((6 - kept) * 3 * 32 * 8 + 6 * 32)
        assert parameter_bytes(model) - parameter_bytes(found.model) == 4 * removed


def test_speeds_name_their_experts(
    small: Callable[..., Any], texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("qwen2_moe", torch.float32)
    found = condense(model, texts[:2], layers=2)
    speeds = speed_of([model, found.model], 64, rows=2, length=8, new=2, repeats=3)
    assert [speed.experts for speed in speeds] == ["grouped_mm", "grouped_mm"]
    assert all(speed.prefill > 0 and speed.decode > 0 for speed in speeds)
    assert len(layer_speed([model.model.layers[0].mlp], 32, tokens=8, repeats=3)) == 1
    seconds = iter([[0.5, 0.25], [0.1, 0.2]])  # of prefill, of decoding
    monkeypatch.setattr(measures, "_turns", lambda *_: next(seconds))
    speeds = speed_of([model, found.model], 64, rows=2, length=8, new=2, repeats=3)
    assert [(speed.prefill, speed.decode) for speed in speeds] == [(32.0, 20.0), (64.0, 10.0)]
