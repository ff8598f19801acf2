"""The same recipe on several gloo processes: equal to one process at equal global batch, and equal on all ranks."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import plait
from plait import Metric, Plugin, hookimpl
from plait.planning.discovery import pretend
from plait.training.trainer import Trainer
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import together
from plait_chase.plugin import ChasePlugin
from plait_fairsam.plugin import FairsamPlugin

CHASE = {"density": 0.4, "channel_sparsity": 0.0, "exploration_interval": 5, "timing_repeats": 0}
SAM = {"severities": [3], "sync_perturbation": True, "rho": 0.2}
NET = """
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, num_classes))


def dropping(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, num_classes))
"""


class WitnessPlugin(Plugin):
    """Writes down which samples every step sees, the masks after every step, and which rows are evaluated."""

    name = "witness"
    contract = 1

    def setup(self, trainer: Any) -> None:
        self.file = trainer.folder / f"witness-{trainer.world}-{trainer.rank}.jsonl"

    def write(self, **values: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(values) + "\n")

    @hookimpl
    def optimizer_step(self, trainer: Any, batch: Any, proceed: Callable[[], Any]) -> Any:
        mine = batch["index"].tolist() if trainer.share else []  # without rows of its own a rank repeats one
        self.write(step=trainer.step, rows=mine, masks=trainer.masks.checksum())
        return proceed()

    @hookimpl
    def evaluate(self, trainer: Any, predictions: Any) -> dict[str, Any]:
        clean = predictions["clean"]
        self.write(evaluated=clean.fields["index"].tolist(), outputs=len(clean.outputs))
        return {}


def witnessed(path: Path, world: int, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / f"witness-{world}-{rank}.jsonl").read_text().splitlines()]


def samples(path: Path, world: int) -> dict[int, list[int]]:
    """step -> the rows of all ranks, in their order."""
    rows: dict[int, list[int]] = {}
    for rank in range(world):
        for line in witnessed(path, world, rank):
            if "step" in line:
                rows.setdefault(line["step"], []).extend(line["rows"])
    return rows


def recipe(plugins: dict[str, Any], model: str = "nets_of_two:net", **changes: Any) -> dict[str, Any]:
    train = {"steps": 30, "batch_size": 32, **changes.pop("train", {})}
    return {
        "data": {"name": "tiny-images", "train": 250},  # 8 batches, the last of 26; 125 rows to evaluate: both uneven
        "model": {"name": model},
        "train": train,
        "optimizer": {"lr": 0.05},
        "checkpoint": {"every_steps": 10, "keep": 9},
        "distributed": {"timeout": 60},
        "device": "cpu",
        "plugins": {"witness": {}, **plugins},
        **changes,
    }


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "nets_of_two.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_two", raising=False)
    # no report of every run, which would take half of its time
    with pretend(WitnessPlugin, ChasePlugin, FairsamPlugin, distribution="plait", alone=True):
        yield


def on_ranks(path: Path, wanted: dict[str, Any], world: int = 2) -> list[dict[str, torch.Tensor]]:
    """Run on several processes; the weights and masks of each rank just before it evaluates."""

    def act(rank: int) -> None:
        select = Trainer.select

        def keep(trainer: Any) -> None:
            kept = {k: v.clone() for k, v in trainer.model.state_dict().items()}
            kept |= {f"mask {k}": v.clone() for k, v in trainer.masks.mask.items()}
            save_file(kept, f"{path}.rank{rank}")
            select(trainer)

        Trainer.select = keep  # type: ignore[method-assign]
        plait.run(wanted, out=path)

    ended = together(act, world)
    assert [e.code for e in ended] == [0] * world, ended
    return [load_file(f"{path}.rank{rank}") for rank in range(world)]


def assert_metrics_equal(path: Path, reference: Path, *, close: float = 1e-3) -> None:
    mine, other = plait.load_run(path).metrics, plait.load_run(reference).metrics
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert value == pytest.approx(other[name], rel=close, abs=close, nan_ok=True), name


def losses(path: Path) -> list[tuple[int, float]]:
    events = plait.load_run(path).directory.events()
    return [(e["step"], e["values"]["train/loss"]) for e in events if "train/loss" in e.get("values", {})]


CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "fairsam": {"fairsam": SAM},
    "chase": {"chase": CHASE},
    "both": {"chase": CHASE, "fairsam": SAM},
    "adaptive": {"fairsam": {**SAM, "weights": "adaptive", "eta_q": 0.5}},
}


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_equal_one(tmp_path: Path, case: str) -> None:
    wanted = recipe(CASES[case], train={"accumulate": 2} if case == "dense" else {})
    first, second = on_ranks(tmp_path / "two", wanted)
    assert first_difference(first, second) is None
    plait.run(wanted, out=tmp_path / "one")
    for name, value in final_state(tmp_path / "one")["model"].items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert_metrics_equal(tmp_path / "two", tmp_path / "one")
    for (step, mine), (other, theirs) in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert step == other
        assert math.isclose(mine, theirs, rel_tol=1e-3)  # the mean over all ranks, not rank 0's part
    # the same samples, each once
    assert samples(tmp_path / "two", 2) == samples(tmp_path / "one", 1)
    # equal masks after every update, on both ranks and as one process has them
    masks = [[line["masks"] for line in witnessed(tmp_path / "two", 2, r) if "step" in line] for r in (0, 1)]
    assert masks[0] == masks[1] == [line["masks"] for line in witnessed(tmp_path / "one", 1) if "step" in line]
    assert len(set(masks[0])) == (6 if "chase" in CASES[case] else 1)  # drawn, then updated every five steps
    if case == "adaptive":
        q = [final_state(tmp_path / n)["plugins"]["fairsam"]["weights"]["q"] for n in ("two", "one")]
        assert abs(float(q[0][0] - 0.5)) > 0.01  # they moved, by the losses of both ranks' groups
        torch.testing.assert_close(q[0], q[1], rtol=1e-3, atol=1e-4)


def test_evaluation_is_exact_over_uneven_shares(tmp_path: Path) -> None:
    """125 rows on 3 ranks: every rank has every row once, and the outputs of one process."""
    wanted = recipe({}, train={"steps": 4, "batch_size": 2})  # the third rank has no row of its own, ever
    on_ranks(tmp_path / "three", wanted, 3)
    plait.run(wanted, out=tmp_path / "one")
    for rank in range(3):
        evaluated = [line for line in witnessed(tmp_path / "three", 3, rank) if "evaluated" in line]
        evaluated = evaluated[-2:]  # after the rehearsal's few rows
        assert [line["evaluated"] for line in evaluated] == [list(range(125)), list(range(62))]  # test, validation
        assert [line["outputs"] for line in evaluated] == [125, 62]
    assert samples(tmp_path / "three", 3) == samples(tmp_path / "one", 1)
    assert_metrics_equal(tmp_path / "three", tmp_path / "one", close=1e-5)


class TellerPlugin(Plugin):
    """Outputs that are no tensors (generated texts, say)."""

    name = "teller"
    contract = 1

    @hookimpl
    def evaluate(self, trainer: Any, predictions: Any) -> dict[str, Any]:
        from plait.training.evaluation import predict

        class Texts(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> list[str]:
                return [f"{float(image.sum()):.3f}" for image in x]

        told, fields = predict(trainer.forward, Texts(), trainer.data.test)
        wanted = [f"{float(image.sum()):.3f}" for image in trainer.data.test.fields["input"]]
        assert told == wanted
        assert fields["index"].tolist() == list(range(len(wanted)))
        return {"told": Metric(float(len(told)))}


def test_outputs_that_cannot_be_shared_are_computed_by_every_rank(tmp_path: Path) -> None:
    with pretend(TellerPlugin):
        wanted = {**recipe({"teller": {}}, train={"steps": 2}), "plugins": {"teller": {}}}
        ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"))
    assert [e.code for e in ended] == [0, 0], ended
    assert plait.load_run(tmp_path / "two").metrics["teller/told"] > 0  # so it was asked


def test_each_rank_may_perturb_by_its_own_gradient(tmp_path: Path) -> None:
    """m-SAM (the default), channels removed and sliced off while training, bf16: ranks stay equal to the bit."""
    chase = {"density": 0.4, "channel_sparsity": 0.3, "shrink_during": True, "exploration_interval": 4}
    plugins = {"chase": {**chase, "channel_interval": 8, "timing_repeats": 0}, "fairsam": {"severities": [3]}}
    first, second = on_ranks(tmp_path / "two", recipe(plugins, "tiny-cnn", precision="bf16"))
    assert all(torch.equal(first[k], second[k]) for k in first if "running" not in k)
    assert plait.load_run(tmp_path / "two").metrics["chase/channels"] < 24


def test_resume_on_another_number_of_processes(tmp_path: Path) -> None:
    """2 -> 1 and 1 -> 2 in the middle of an epoch: the same samples in the same order, the same weights."""
    wanted = recipe({"chase": CHASE, "fairsam": SAM})
    on_ranks(tmp_path / "two", wanted)
    plait.run(wanted, out=tmp_path / "one")
    whole = samples(tmp_path / "one", 1)
    shutil.copytree(tmp_path / "two", tmp_path / "narrowed")
    shutil.copytree(tmp_path / "one", tmp_path / "widened")
    for path in (tmp_path / "narrowed", tmp_path / "widened"):
        for file in path.glob("witness-*"):
            file.unlink()
    plait.resume(tmp_path / "narrowed", checkpoint="step-000000010")
    ended = together(lambda rank: plait.resume(tmp_path / "widened", checkpoint="step-000000010"))
    assert [e.code for e in ended] == [0, 0], ended
    for name, world in (("narrowed", 1), ("widened", 2)):
        assert samples(tmp_path / name, world) == {step: rows for step, rows in whole.items() if step > 10}
        for key, value in final_state(tmp_path / "one")["model"].items():
            torch.testing.assert_close(final_state(tmp_path / name)["model"][key], value, rtol=1e-3, atol=1e-4)
        assert_metrics_equal(tmp_path / name, tmp_path / "one")


def test_resume_on_two_processes_repeats_dropout(tmp_path: Path) -> None:
    wanted = recipe({}, "nets_of_two:dropping")
    first, second = on_ranks(tmp_path / "two", wanted)
    assert first_difference(first, second) is None
    before = final_state(tmp_path / "two")["model"]
    ended = together(lambda rank: plait.resume(tmp_path / "two", checkpoint="step-000000020"))
    assert [e.code for e in ended] == [0, 0], ended
    assert first_difference(final_state(tmp_path / "two")["model"], before) is None


class SteepPlugin(Plugin):
    """A method that touches no parameter: harder examples weigh more, and the loss has a term."""

    name = "steep"
    contract = 1

    @hookimpl
    def example_weights(self, batch: Any) -> torch.Tensor:
        return 1 + 0.5 * batch["group"].float()

    @hookimpl
    def loss_terms(self, outputs: torch.Tensor, per_example: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"size": 0.01 * outputs.pow(2).mean()}

    @hookimpl
    def export(self, model: Any) -> Any:
        return model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fsdp_equals_one_process_and_resumes_as_anything(tmp_path: Path, optimizer: str) -> None:
    """Parameters, gradients and optimizer state spread over two ranks; checkpoints are whole."""
    train = {"accumulate": 2, "steps": 20}
    table = {"strategy": "fsdp", "timeout": 60}
    steps = {"name": optimizer, "lr": 0.05 if optimizer == "sgd" else 0.003, "clip_norm": 0.5}
    with pretend(SteepPlugin):
        wanted = recipe({"steep": {}}, train=train, distributed=table, optimizer=steps)
        del wanted["plugins"]["witness"]  # it is a step, and says nothing of spread parameters

        def act(rank: int) -> None:
            select = Trainer.select

            def look(trainer: Any) -> None:
                from torch.distributed.tensor import DTensor

                local = sum(p.to_local().numel() for p in trainer.parameters)
                whole = sum(p.numel() for p in trainer.parameters)
                assert all(isinstance(p, DTensor) for p in trainer.parameters)
                assert local < 0.6 * whole
                state = [v for s in trainer.optimizer.state.values() for v in s.values() if getattr(v, "ndim", 0)]
                assert state
                assert all(isinstance(v, DTensor) for v in state)
                (tmp_path / f"looked-{rank}").touch()
                select(trainer)

            Trainer.select = look  # type: ignore[method-assign]
            plait.run(wanted, out=tmp_path / "two")

        ended = together(act)
        assert [e.code for e in ended] == [0, 0], ended
        assert all((tmp_path / f"looked-{rank}").exists() for rank in range(2))
        alone = plait.run(wanted, out=tmp_path / "one")

        def same(path: Path) -> None:
            for part in ("model", "optimizer"):
                mine, other = final_state(path)[part], final_state(alone.path)[part]
                pairs = mine.items() if part == "model" else mine["state"]["0"].items()
                for name, value in pairs:
                    expected = other[name] if part == "model" else other["state"]["0"][name]
                    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=f"{part} {name}")
            assert_metrics_equal(path, alone.path)
            exported = load_file(path / "export" / "model.safetensors")
            for name, value in load_file(alone.path / "export" / "model.safetensors").items():
                torch.testing.assert_close(exported[name], value, rtol=1e-3, atol=1e-4)

        same(tmp_path / "two")
        shutil.copytree(tmp_path / "two", tmp_path / "narrowed")
        plait.resume(tmp_path / "narrowed", checkpoint="step-000000010")
        same(tmp_path / "narrowed")
        shutil.copytree(alone.path, tmp_path / "widened")
        ended = together(lambda rank: plait.resume(tmp_path / "widened", checkpoint="step-000000010"))
        assert [e.code for e in ended] == [0, 0], ended
        same(tmp_path / "widened")


def test_fairsam_with_one_perturbation_on_spread_parameters(tmp_path: Path) -> None:
    plugins = {"fairsam": {**SAM, "weights": "adaptive", "eta_q": 0.5}}
    wanted = recipe(plugins, distributed={"strategy": "fsdp", "timeout": 60})
    del wanted["plugins"]["witness"]
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"))
    assert [e.code for e in ended] == [0, 0], ended
    plait.run(wanted, out=tmp_path / "one")
    for name, value in final_state(tmp_path / "one")["model"].items():
        torch.testing.assert_close(final_state(tmp_path / "two")["model"][name], value, rtol=1e-3, atol=1e-4)
    assert_metrics_equal(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    "plugins, changes, said",
    [
        ({"chase": {}}, {}, "'chase' owns masks, which are of whole parameters"),
        ({"fairsam": {}}, {}, "'fairsam' acts on the parameters in optimizer_step"),
        ({}, {"train.select": "best"}, "train.select is not supported with distributed.strategy = 'fsdp'"),
        ({}, {"compile": True}, "compile is not supported with distributed.strategy = 'fsdp'"),
    ],
)
def test_what_fsdp_cannot_carry_is_refused_in_the_plan(
    plugins: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    settings = {"distributed.strategy": "fsdp", **changes}
    plan = plait.plan(plugins=plugins, data="tiny-images", model="tiny-cnn", settings=settings)
    assert [r.message for r in plan.refusals if said in r.message]
    assert all("distributed.strategy=ddp" in r.fix for r in plan.refusals)
    assert plait.plan(plugins=plugins, data="tiny-images", model="tiny-cnn", settings=changes).ok


def test_fsdp_in_bf16_with_batchnorm(tmp_path: Path) -> None:
    wanted = recipe({}, "tiny-cnn", distributed={"strategy": "fsdp", "timeout": 60}, precision="bf16")
    del wanted["plugins"]["witness"]
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"))
    assert [e.code for e in ended] == [0, 0], ended
    done = plait.load_run(tmp_path / "two")
    assert done.metrics["task/loss"] < math.log(4)
    assert done.model(torch.rand(2, 1, 8, 8)).shape == (2, 4)
