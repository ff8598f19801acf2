"""The real methods in a loop of one's own: the bits of `plait.run`, in one process, in a fresh one, and in two."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from click import unstyle
from safetensors.torch import load_file, save_file
from torch import nn

import plait
from plait.data.seeds import seed_everything, seed_noise
from plait.data.streams import Stream
from plait.declare.recipe import Component, Scheduler
from plait.loading import build_model, load_data
from plait.planning.discovery import pretend
from plait.storage import checkpoints
from plait.training.optimizers import lr_factor
from plait_authoring.together import together
from plait_chase.plugin import ChasePlugin
from plait_cli.commands.plan import plan
from plait_fairsam.plugin import FairsamPlugin

sys.path.append(str(Path(__file__).parents[1] / "examples/ema/src"))
from plait_ema.plugin import EMAPlugin

STEPS = 16
CHASE = {"density": 0.3, "exploration_interval": 2, "channel_interval": 4, "timing_repeats": 0}
FAIR: dict[str, Any] = {"severities": [3], "rho": 0.2}
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "ema": {"ema": {}},
    "chase": {"chase": CHASE},
    "fairsam": {"fairsam": FAIR},
    "adaptive weights": {"fairsam": {**FAIR, "weights": "adaptive"}},
    "chase + fairsam + ema": {"chase": CHASE, "fairsam": FAIR, "ema": {}},
    "sliced while training": {"chase": {**CHASE, "shrink_during": True}, "fairsam": FAIR},
}


pytestmark = pytest.mark.usefixtures("lone_process")


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "nets_of_weave.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_weave", raising=False)
    with pretend(ChasePlugin, FairsamPlugin, EMAPlugin, distribution="plait", alone=True):
        yield


NETS = """
from torch import nn


def dropping(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, num_classes)
    )


def smooth(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, num_classes))
"""


class Loop:
    """Somebody's loop: the data, the model, the optimizer and the schedule are its own."""

    def __init__(self, plugins: dict[str, Any], model: str, saved: Path | None = None) -> None:
        seed_everything(0)
        self.data = load_data(Component(name="tiny-images"), 0)
        self.network = build_model(Component(name=model), self.data.info)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.05, 0.9, weight_decay=5e-4, foreach=True)
        self.stream = Stream(self.data.train, "train", 0, 32)
        columns = {name: self.data.train.fields[name] for name in ("label", "group")}  # type: ignore[attr-defined]
        shown: dict[str, Any] = {"train": columns, "prepare": self.data.prepare}
        seed_noise(0, 0)
        if saved is not None:
            self.woven = plait.load_woven(saved, self.network, self.optimizer, **shown)
        else:
            example = self.data.test.__getitems__(range(32))
            self.woven = plait.weave(
                self.network, self.optimizer, plugins=plugins, total_steps=STEPS, example=example, **shown
            )

    def train(self, until: int = STEPS) -> None:
        self.stream.load_state_dict({"drawn": self.woven.steps})
        while self.woven.steps < until:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.05 * lr_factor(Scheduler(), self.woven.steps, STEPS)
            self.woven.step(next(self.stream))

    def batches(self) -> list[Any]:
        return [self.data.test.__getitems__(range(start, start + 32)) for start in range(0, len(self.data.test), 32)]


def run_of(plugins: dict[str, Any], model: str, path: Path) -> plait.Run:
    settings = {"train.batch_size": 32, "optimizer.lr": 0.05, "device": "cpu"}
    return plait.run(plugins=plugins, data="tiny-images", model=model, steps=STEPS, settings=settings, out=path)


def weights_of(run: plait.Run) -> dict[str, Any]:
    path = run.directory.checkpoint()
    assert path is not None
    state: dict[str, Any] = checkpoints.load(path)["model"]
    return state


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def go_on(plugins: dict[str, Any], model: str, saved: Path, result: Path) -> None:
    """What a fresh process does with a saved step."""
    with pretend(ChasePlugin, FairsamPlugin, EMAPlugin, distribution="plait", alone=True):
        loop = Loop(plugins, model, saved)
        loop.train()
        save_file(loop.network.state_dict(), result)


@pytest.mark.parametrize("name", SETS)
def test_a_loop_of_ones_own_gives_the_bits_of_a_run(name: str, tmp_path: Path) -> None:
    plugins, model = SETS[name], "nets_of_weave:dropping" if name in ("plain", "ema") else "tiny-cnn"
    run = run_of(plugins, model, tmp_path / "run")
    loop = Loop(plugins, model)
    loop.train()
    assert same(loop.network.state_dict(), weights_of(run))
    figures = {k: v.value for k, v in loop.woven.evaluate(loop.batches()).items() if isinstance(v, plait.Metric)}
    assert figures
    assert figures == {name: run.metrics[name] for name in figures}
    assert same(loop.woven.export().state_dict(), run.model.state_dict())


@pytest.mark.parametrize("name", ["plain", "chase + fairsam + ema", "sliced while training"])
def test_taken_up_after_any_step_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    unbroken = Loop(SETS[name], "tiny-cnn")
    for step in range(STEPS):
        unbroken.woven.save(tmp_path / f"{step}.safetensors")
        unbroken.train(step + 1)
    for step in range(STEPS):
        resumed = Loop(SETS[name], "tiny-cnn", tmp_path / f"{step}.safetensors")
        resumed.train()
        assert same(resumed.network.state_dict(), unbroken.network.state_dict()), step


def test_a_fresh_process_goes_on(tmp_path: Path) -> None:
    plugins = SETS["chase + fairsam + ema"]
    unbroken = Loop(plugins, "tiny-cnn")
    unbroken.train(7)
    unbroken.woven.save(tmp_path / "seven.safetensors")
    unbroken.train()
    arguments = (plugins, "tiny-cnn", tmp_path / "seven.safetensors", tmp_path / "end.safetensors")
    process = multiprocessing.get_context("spawn").Process(target=go_on, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert same(load_file(tmp_path / "end.safetensors"), unbroken.network.state_dict())


def test_masked_weights_are_zero_in_every_pass() -> None:
    loop = Loop({"chase": CHASE, "fairsam": FAIR}, "tiny-cnn")
    masks, passes = loop.woven.trainer.masks, []

    def look(*_: Any) -> None:
        weights = dict(loop.network.named_parameters())
        passes.append(any(bool((weights[name] * (1 - mask)).any()) for name, mask in masks.mask.items()))

    loop.network.register_forward_pre_hook(look)
    for step in range(STEPS):
        loop.train(step + 1)
        look()
    assert len(passes) == 3 * STEPS  # two passes of SAM and the look between the steps
    assert not any(passes)


def test_micro_batches_of_sam_are_one_batch() -> None:
    whole, parted = (Loop({"fairsam": FAIR}, "nets_of_weave:smooth") for _ in range(2))
    columns = whole.woven.trainer.data.train.fields
    optimizer = torch.optim.SGD(parted.network.parameters(), 0.05, 0.9, weight_decay=5e-4)
    woven = plait.weave(
        parted.network, optimizer, plugins={"fairsam": FAIR}, total_steps=STEPS, example=whole.batches()[0],
        train=columns, accumulate=4,
    )  # fmt: skip
    for group in whole.optimizer.param_groups:
        group["foreach"] = False
    for _ in range(6):
        batch = next(whole.stream)
        whole.woven.step(batch)
        woven.step(*batch.chunks(4))
    for one, other in zip(whole.network.parameters(), parted.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6)


def test_two_processes_of_accelerate_are_one(tmp_path: Path) -> None:
    plugins = {"chase": {**CHASE, "channel_sparsity": 0.0}, "fairsam": {**FAIR, "sync_perturbation": True}}

    def act(rank: int) -> None:
        torch.manual_seed(0)
        AcceleratorState._reset_state(reset_partial_state=True)  # a forked process has that of the testing one
        accelerator = Accelerator(cpu=True)
        data = load_data(Component(name="tiny-images"), 0)
        network = build_model(Component(name="nets_of_weave:smooth"), data.info)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        columns = {name: data.train.fields[name] for name in ("label", "group")}  # type: ignore[attr-defined]
        example = data.test.__getitems__(range(16))
        woven = plait.weave(
            network, optimizer, plugins=plugins, total_steps=STEPS, example=example, train=columns,
            accelerator=accelerator,
        )  # fmt: skip
        stream = Stream(data.train, "train", 0, 32, rank=accelerator.process_index, world=accelerator.num_processes)
        for _ in range(STEPS):
            woven.step(next(stream))
        masks = {f"mask {name}": mask for name, mask in woven.trainer.masks.mask.items()}
        save_file({**network.state_dict(), **masks}, tmp_path / f"{accelerator.num_processes}-{rank}.safetensors")

    act(0)
    ended = together(act, 2)
    assert [e.code for e in ended] == [0, 0], ended
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert same(first, second)
    for name, value in alone.items():
        assert (
            torch.equal(value, first[name])
            if name.startswith("mask")
            else torch.allclose(value, first[name], atol=1e-5)
        )


def test_the_plan_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    woven = Loop({"chase": CHASE, "fairsam": FAIR}, "tiny-cnn").woven
    plan(plugins=["chase", "fairsam"], data="tiny-images", model="tiny-cnn")
    printed = unstyle(capsys.readouterr().out).strip().splitlines()
    assert str(woven.plan).splitlines()[1:] == printed[1:]  # the first line names data and model


def test_a_set_that_cannot_work_together_is_refused_with_the_fix() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    example, optimizer = (torch.rand(8, 1, 8, 8), torch.randint(4, (8,))), torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(plait.Refused, match=r"fairsam.*needs a field 'group'"):
        plait.weave(network, optimizer, plugins=["fairsam"], total_steps=4, example=example)


def test_the_groups_of_the_training_set_are_asked_for() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    example = {"input": torch.rand(8, 1, 8, 8), "label": torch.randint(4, (8,)), "group": torch.randint(2, (8,))}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(plait.BadInput, match=r"'group' of the whole training set.*\(train=...\), \{'group'"):
        plait.weave(network, optimizer, plugins=["fairsam"], total_steps=4, example=example)


def test_the_training_set_itself_may_be_shown() -> None:
    loop = Loop({}, "tiny-cnn")
    fields = loop.data.train.fields  # type: ignore[attr-defined]
    rows = [
        {"pixels": x, "labels": y, "group": g}
        for x, y, g in zip(*(fields[n] for n in ("input", "label", "group")), strict=True)
    ]
    ends = []
    for shown in ({"label": fields["label"], "group": fields["group"]}, loop.data.train, rows):
        again = Loop({}, "tiny-cnn")
        woven = plait.weave(
            again.network, again.optimizer, plugins={"fairsam": FAIR}, total_steps=STEPS, example=rows_of(rows[:8]),
            train=shown, prepare=loop.data.prepare, fields={"pixels": "input"},
        )  # fmt: skip
        woven.step(rows_of(rows[:32]))
        ends.append(again.network.state_dict())
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def rows_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
