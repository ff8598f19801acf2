"""What a recipe can ask for: precision, compiling, accumulation, loaders, loggers, own data and models, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.declare.recipe import Scheduler
from plait.errors import BadInput
from plait.training.optimizers import lr_factor
from plait_authoring.kill import final_state, first_difference

OWN = '''
import torch
from torch import nn
from plait import Batch, Data, DataInfo, TensorSplit


class Rows:
    """A split that is read row by row, as files are."""

    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 6, generator=generator)
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitems__(self, rows):
        rows = torch.as_tensor(rows)
        return Batch({"input": self.x[rows], "label": self.y[rows], "index": rows})


def files(seed=0, n=64):
    return Data(DataInfo("classification", (6,), 2), Rows(n, seed), Rows(32, seed + 1), Rows(32, seed + 2))


def regression():
    x = torch.linspace(-1, 1, 64).reshape(-1, 1)
    split = lambda: TensorSplit({"input": x, "target": 3 * x})
    return Data(DataInfo("regression", (1,), 0), split(), split(), split())


def line():
    return nn.Linear(1, 1)


def net(input_shape, num_classes, width=8):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))


def wrong(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes + 1))


def broken():
    raise RuntimeError("no weights here")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_things.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_things"


def test_own_data_and_model_with_options(tmp_path: Path, own: str) -> None:
    done = plait.run(
        data=f"{own}:files",
        model=f"{own}:net",
        epochs=30,
        settings={"model.width": 16, "data.n": 128},
        out=tmp_path / "r",
    )
    assert done.metrics["task/accuracy"] > 80
    assert done.model[0].out_features == 16  # type: ignore[index, union-attr]


def test_regression_by_mean_squared_error(tmp_path: Path, own: str) -> None:
    done = plait.run(
        data=f"{own}:regression",
        model=f"{own}:line",
        epochs=200,
        settings={"optimizer.weight_decay": 0},
        out=tmp_path / "r",
    )
    assert done.metrics["task/loss"] < 1e-3 and "task/accuracy" not in done.metrics
    assert done.model.weight.item() == pytest.approx(3, abs=0.05)  # type: ignore[union-attr, operator]


def test_loader_workers_give_the_same_bits(tmp_path: Path, own: str) -> None:
    for workers in (0, 2):
        settings = {"train.workers": workers}
        plait.run(data=f"{own}:files", model=f"{own}:net", epochs=2, settings=settings, out=tmp_path / str(workers))
    first, two = (final_state(tmp_path / str(w))["model"] for w in (0, 2))
    assert first_difference(first, two) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "own_things:wrong"}, r"logits \[B, 4\]"),
        ({"model": "own_things:broken"}, "no weights here"),
        ({"model": "own_things:none"}, "has no 'none'"),
        ({"model": "no.such.module:x"}, "importing no.such.module failed"),
        ({"model": "own_things:net", "settings": {"model.depth": 3}}, "takes no option 'depth'"),
        ({"data": "own_things:line"}, r"expected a plait\.data\.Data"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"settings": {"optimizer.nesterov": True, "optimizer.momentum": 0}}, "nesterov needs"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path: Path, own: str, changes: dict[str, Any], message: str) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BadInput, match=message):
        plait.run(**{"steps": 2, **changes}, out=tmp_path / "r")


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    runs = [plait.run(epochs=20, settings={"precision": p}, out=tmp_path / p) for p in ("fp32", "bf16")]
    full, half = (r.metrics["task/accuracy"] for r in runs)
    assert half == pytest.approx(full, abs=12) and full != 0
    state = final_state(tmp_path / "bf16")["model"]
    assert all(v.dtype != torch.bfloat16 for v in state.values())
    assert first_difference(state, final_state(tmp_path / "fp32")["model"]) is not None


def test_compiled_is_the_same_function(tmp_path: Path) -> None:
    settings = {"compile": True, "data.train": 64}
    compiled = plait.run(steps=4, settings=settings, out=tmp_path / "compiled")
    plain = plait.run(steps=4, settings={"data.train": 64}, out=tmp_path / "plain")
    for name, value in final_state(compiled.path)["model"].items():
        torch.testing.assert_close(value, final_state(plain.path)["model"][name], rtol=1e-3, atol=1e-4)
    assert not any("_orig_mod" in name for name in final_state(compiled.path)["model"])


def test_exported_programs_run_without_plait(tmp_path: Path) -> None:
    formats = ["torch_export", "torchscript"]
    done = plait.run(steps=5, settings={"export.formats": formats}, out=tmp_path / "r")
    x = torch.rand(7, 1, 8, 8)
    with torch.no_grad():
        wanted = done.model(x)
        torch.testing.assert_close(torch.export.load(done.export / "model.pt2").module()(x), wanted)
        torch.testing.assert_close(torch.jit.load(done.export / "model.torchscript")(x), wanted)


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plait.run(steps=12, settings={"loggers": ["tensorboard"]}, out=tmp_path / "r")
    logged = EventAccumulator(str(tmp_path / "r/plait")).Reload()
    events = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    wanted = [e for e in events if e["event"] == "scalars" and "train/loss" in e["values"]]
    seen = logged.Scalars("train/loss")
    assert [(s.step, pytest.approx(s.value)) for s in seen] == [(e["step"], e["values"]["train/loss"]) for e in wanted]


def test_zero_steps_is_a_run(tmp_path: Path) -> None:
    done = plait.run(steps=0, out=tmp_path / "r")
    assert done.finished and done.metrics["task/accuracy"] >= 0
    torch.manual_seed(0)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(plait.load_run(tmp_path / "r").model(images), done.model(images))


def test_best_on_validation_is_what_is_exported(tmp_path: Path) -> None:
    settings = {"train.select": "best", "optimizer.lr": 0.3, "data.noise": 0.6}
    done = plait.run(epochs=12, settings=settings, out=tmp_path / "r")
    events = done.directory.events()
    scores = {
        e["step"]: e["values"]["validation/accuracy"] for e in events if "validation/accuracy" in e.get("values", {})
    }
    chosen = next(e for e in events if e["event"] == "selected")
    assert chosen["score"] == max(scores.values()) == scores[chosen["step"]]


def test_schedules_against_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    total = 50
    oracles = {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total),
        "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [25, 38], 0.1),
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    }
    for name, make in oracles.items():
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedule = make(optimizer)
        for step in range(total):
            assert lr_factor(Scheduler(name=name), step, total) == pytest.approx(
                optimizer.param_groups[0]["lr"], abs=1e-9
            )  # type: ignore[arg-type]
            optimizer.step()
            schedule.step()
    warm = [lr_factor(Scheduler(warmup_steps=4), step, 100) for step in range(5)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1.0]
