"""The method without plait, against sums by hand and against torch's `AveragedModel`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from plait_ema.average import decay_after, ema, put


def test_the_decay_warms_up_to_its_value() -> None:
    assert [decay_after(t, 0.9, True) for t in (0, 1, 8, 70, 71, 80, 10**6)] == [
        0.0,
        2 / 11,
        0.5,
        71 / 80,
        72 / 81,
        0.9,
        0.9,
    ]
    assert [decay_after(t, 0.9, False) for t in (0, 1, 10**6)] == [0.0, 0.9, 0.9]


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_weighted_sum_of_every_state(warmup: bool) -> None:
    """Oracle: each state's share is (1 - d) times the later d's, in float64."""
    states = torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0))
    average = [torch.full((4, 3), 99.0)]
    update = ema(0.8, warmup)
    for t, state in enumerate(states):
        update(average, [state], t)
    keep = [0.0, *(min(0.8, (1 + t) / (10 + t)) if warmup else 0.8 for t in range(1, 30))]
    shares = [(1 - keep[t]) * torch.tensor(keep[t + 1 :], dtype=torch.float64).prod() for t in range(30)]
    assert sum(shares) == pytest.approx(1)
    wanted = (torch.stack(shares).reshape(-1, 1, 1) * states.double()).sum(0)
    torch.testing.assert_close(average[0].double(), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_an_averaging_function_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    ours = AveragedModel(model, multi_avg_fn=ema(0.7, warmup=False))
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for _ in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update_parameters(model)
        theirs.update_parameters(model)
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got, want)


def test_every_dtype_is_averaged_in_itself_or_refused() -> None:
    """Oracle: the sum in complex double. In half precision an average stands still, so it is refused by name."""
    dtypes = (torch.float32, torch.float64, torch.complex64, torch.complex128)
    states = [torch.randn(50, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    given = [(s if d.is_complex else s.real).to(d) for s, d in zip(states, dtypes, strict=True)]
    average, wanted = [g[0].clone() for g in given], [g[0].to(torch.complex128) for g in given]
    update = ema(0.999, warmup=False)
    for t in range(50):
        update(average, [g[t] for g in given], t)
        kept = 0.999 if t else 0.0
        wanted = [kept * w + (1 - kept) * g[t] for w, g in zip(wanted, given, strict=True)]
    for got, want, dtype in zip(average, wanted, dtypes, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.to(torch.complex128), want, rtol=1e-5, atol=1e-6)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"'weight 1' is {dtype}"):
            update([torch.zeros(2), torch.zeros(2, dtype=dtype)], [torch.ones(2), torch.ones(2, dtype=dtype)], 1)


def test_averages_go_only_into_an_unchanged_copy() -> None:
    trained = nn.BatchNorm1d(3)
    average = {"weight": torch.full((3,), 0.5), "bias": torch.full((3,), -1.0)}

    def copy(**changes: torch.Tensor) -> nn.Module:
        model = nn.BatchNorm1d(3)
        model.load_state_dict(trained.state_dict())
        for name, value in changes.items():
            setattr(model, name, nn.Parameter(value))
        return model

    with torch.no_grad():
        trained.running_mean.fill_(7.0)  # type: ignore[union-attr]
    done = put(average, copy(), trained)
    assert torch.equal(done.weight, average["weight"]) and torch.equal(done.bias, average["bias"])
    assert torch.equal(done.running_mean, trained.running_mean)  # type: ignore[arg-type]
    for changed in (copy(bias=torch.ones(3)), copy(weight=torch.ones(2)), copy(weight=torch.ones(3).bfloat16())):
        with pytest.raises(ValueError, match=r"was changed in the export.*list ema earlier"):
            put(average, changed, trained)
    with pytest.raises(ValueError, match=r"'0.weight' was changed"):
        put(average, nn.Sequential(copy()), trained)
