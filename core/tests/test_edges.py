"""Edges of the contract that were wrong once, or that a stranger's plugin will meet first."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import plait
from plait.errors import BadInput, RunFailed
from plait.planning import discovery
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done

Install = Callable[..., None]
NETS = """
import torch
from torch import nn
from plait import Batch, Data, DataInfo


class Rows:
    def __init__(self, n, index=True):
        self.x, self.index = torch.linspace(-1, 1, n).reshape(n, 1), index

    def __len__(self):
        return len(self.x)

    def __getitems__(self, rows):
        rows = torch.as_tensor(rows)
        found = {"input": self.x[rows], "label": (self.x[rows, 0] > 0).long()}
        return Batch(found | ({"index": rows} if self.index else {}))


def rows():
    return Data(DataInfo("classification", (1,), 2), Rows(40), Rows(8), Rows(8))


def no_index():
    return Data(DataInfo("classification", (1,), 2), Rows(40, False), Rows(8), Rows(8))


class bursting(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(1, num_classes)

    def forward(self, x):
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(lambda g: g * float("inf"))
        return out


def dropping(num_classes):
    return nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.5), nn.Linear(16, num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "edge_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return "edge_nets"


def plugin(name: str, **members: Any) -> type[plait.Plugin]:
    return type(name, (plait.Plugin,), {"name": name, "contract": plait.CONTRACT_VERSION, **members})


def test_resume_with_loader_processes_and_dropout(tmp_path: Path, nets: str) -> None:
    """DataLoader must not draw its seed from the generator that dropout uses."""
    recipe = {
        "data": {"name": f"{nets}:rows"},
        "model": {"name": f"{nets}:dropping"},
        "train": {"steps": 12, "batch_size": 8, "workers": 1},
        "checkpoint": {"every_steps": 2},
        "device": "cpu",
    }
    assert forked(lambda: plait.run(recipe, out=tmp_path / "whole")) == 0
    assert forked(lambda: plait.run(recipe, out=tmp_path / "killed"), kill_at=("os.replace", 5)) == -signal.SIGKILL
    resume_until_done(tmp_path / "killed", recipe)
    assert first_difference(final_state(tmp_path / "killed"), final_state(tmp_path / "whole")) is None


def test_going_on_from_an_older_checkpoint_sets_newer_ones_aside(tmp_path: Path) -> None:
    recipe = {"train": {"steps": 12, "batch_size": 64}, "checkpoint": {"every_steps": 2, "keep": 9}, "device": "cpu"}
    path = tmp_path / "r"
    assert forked(lambda: plait.run(recipe, out=path), kill_at=("os.replace", 7)) == -signal.SIGKILL
    assert list((path / "checkpoints").glob(".*.tmp")), "the kill left nothing half written"
    older = RunDirectory(path).saved_checkpoints()[1]
    assert older.stem == "step-000000004"
    done = plait.resume(path, checkpoint=older.stem)
    assert done.finished and not list((path / "checkpoints").glob(".*.tmp"))
    assert [p.name for p in (path / "checkpoints").glob("superseded-*")]
    assert b"\0" not in done.directory.events_file.read_bytes()
    steps = [e["step"] for e in done.directory.events() if e["event"] == "checkpoint"]
    assert steps == sorted(set(steps))
    plait.run(recipe, out=tmp_path / "whole")
    assert first_difference(final_state(path), final_state(tmp_path / "whole")) is None


def test_a_view_registered_twice_is_refused_before_training(tmp_path: Path, install: Install) -> None:
    def views(self: Any) -> dict[str, plait.View]:
        return {"night": plait.View("darker")}

    install(plugin("one", views=plait.hookimpl(views)), plugin("two", views=plait.hookimpl(views)))
    with pytest.raises(BadInput, match="'night' is registered by both 'one' and 'two'"):
        plait.run(plugins=["one", "two"], steps=3, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_model_needs_are_checked_for_a_model_of_ones_own(tmp_path: Path, nets: str, install: Install) -> None:
    install(plugin("deep", needs=lambda self: frozenset({"model:channel-groups"})))
    changes = {"data": f"{nets}:rows", "model": f"{nets}:dropping", "plugins": ["deep"]}
    assert plait.plan(**changes).unchecked
    with pytest.raises(plait.Refused, match="deep' needs model:channel-groups"):
        plait.run(**changes, steps=1, out=tmp_path / "r")
    assert plait.run(plugins=["deep"], steps=1, out=tmp_path / "ok").finished


def test_what_a_plugin_says_of_the_exported_model_stands_in_its_files(tmp_path: Path, install: Install) -> None:
    import json

    from safetensors import safe_open

    def export(self: Any, model: nn.Module) -> nn.Module:
        model.export_metadata = {"use": "never"}  # type: ignore[assignment]
        return model

    install(plugin("warning", export=plait.hookimpl(export)))
    trained = plait.run(plugins=["warning"], data="tiny-images", model="tiny-cnn", steps=1, out=tmp_path / "r")
    with safe_open(trained.export / "model.safetensors", framework="pt") as file:
        assert file.metadata()["use"] == "never"
    assert json.loads((trained.export / "config.json").read_text())["metadata"] == {"use": "never"}


def test_batches_need_an_index(tmp_path: Path, nets: str) -> None:
    with pytest.raises(BadInput, match="has the field 'index'"):
        plait.run(data=f"{nets}:no_index", model=f"{nets}:dropping", steps=1, out=tmp_path / "r")


def test_forgotten_returns_name_the_plugin(tmp_path: Path, install: Install) -> None:
    def optimizer_step(self: Any, proceed: Any) -> Any:
        proceed()

    def evaluate(self: Any) -> Any:
        return None

    install(
        plugin("steps", optimizer_step=plait.hookimpl(optimizer_step)),
        plugin("judge", evaluate=plait.hookimpl(evaluate)),
    )
    with pytest.raises(BadInput, match=r"'steps'.*return the LossReport"):
        plait.run(plugins=["steps"], steps=2, out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"'judge'.*return a mapping"):
        plait.run(plugins=["judge"], steps=2, out=tmp_path / "b")


def test_a_value_error_in_training_names_step_and_plugin(tmp_path: Path, install: Install) -> None:
    def example_weights(self: Any, trainer: Any, batch: Any) -> Any:
        if trainer.step == 2:
            raise ValueError("the moon is full")
        return torch.ones(batch.size)

    install(plugin("moody", example_weights=plait.hookimpl(example_weights)))
    with pytest.raises(RunFailed, match="step 2: plugin 'moody': the moon is full"):
        plait.run(plugins=["moody"], steps=3, out=tmp_path / "r")
    assert RunDirectory(tmp_path / "r").events()[-1]["event"] == "failed"


def test_inner_belongs_to_the_step(install: Install) -> None:
    def evaluate(self: Any) -> dict[str, Any]:
        return {}

    install(plugin("odd", evaluate=plait.hookimpl(inner=True)(evaluate)))
    status = {i.name: i.reason for i in discovery.installed()}
    assert "inner=True belongs to optimizer_step" in status["odd"]


def test_declarations_that_raise_are_named(install: Install) -> None:
    install(plugin("broken", needs=lambda self: 1 / 0))
    with pytest.raises(BadInput, match="plugin 'broken': its declarations raised ZeroDivisionError"):
        plait.plan(plugins=["broken"])


def test_weights_that_overflow_at_the_last_step_are_not_delivered(tmp_path: Path, nets: str) -> None:
    """The loss of the only step is finite, its gradient is not."""
    with pytest.raises(RunFailed, match=r"step 1: the weights '.*' are not finite"):
        plait.run(data=f"{nets}:rows", model=f"{nets}:bursting", steps=1, out=tmp_path / "r")
    assert not RunDirectory(tmp_path / "r").saved_checkpoints()


def test_clipping_bounds_the_applied_gradient(tmp_path: Path) -> None:
    table = {"lr": 1.0, "momentum": 0, "weight_decay": 0, "clip_norm": 0.01}
    recipe = {"train": {"steps": 1}, "optimizer": table, "scheduler": {"name": "constant"}, "device": "cpu"}
    start = plait.run({**recipe, "train": {"steps": 0}}, out=tmp_path / "zero")
    end = plait.run(recipe, out=tmp_path / "one")
    before, after = (final_state(r.path)["model"] for r in (start, end))
    moved = torch.cat([(after[k] - before[k]).flatten() for k in before if "running" not in k and "num_" not in k])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_own_modules_streams_and_generators_are_kept(tmp_path: Path, install: Install) -> None:
    """Also what is made in the middle of the run finds its state again (flamefinder's centres, fairprune's streams)."""

    class Centres(plait.Plugin):
        name, contract = "centres", plait.CONTRACT_VERSION

        def setup(self, trainer: Any) -> None:
            module = nn.Linear(4, 2)
            own = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
            self.module = trainer.add_module("centres.own", module, own)
            self.joined = trainer.add_module("centres.joined", nn.Linear(4, 2))

        @plait.hookimpl
        def loss_terms(self, trainer: Any, outputs: Any) -> dict[str, Any]:
            extra = self.module(outputs).pow(2).mean() + self.joined(outputs).pow(2).mean()
            if trainer.step > 4:
                other = next(trainer.stream("centres.second", batch_size=7))
                extra = extra + 0 * other["input"].sum() + torch.rand((), generator=trainer.generator("centres.late"))
            return {"pull": extra}

    install(Centres)
    recipe = {
        "train": {"steps": 14, "batch_size": 64},
        "checkpoint": {"every_steps": 3},
        "device": "cpu",
        "plugins": {"centres": {}},
    }
    assert forked(lambda: plait.run(recipe, out=tmp_path / "whole")) == 0
    assert forked(lambda: plait.run(recipe, out=tmp_path / "killed"), kill_at=("os.replace", 6)) == -signal.SIGKILL
    resume_until_done(tmp_path / "killed", recipe)
    state, other = final_state(tmp_path / "killed"), final_state(tmp_path / "whole")
    assert first_difference(state, other) is None
    assert set(state["extra"]) == {"centres.own", "centres.joined"} and "centres.second" in state["streams"]
    fresh = nn.Linear(4, 2)
    assert state["extra"]["centres.own"]["module"]["weight"].shape == fresh.weight.shape
    assert state["streams"]["centres.second"]["drawn"] == 10


def test_a_strategy_of_rounds_with_rewinding(tmp_path: Path, install: Install) -> None:
    """glt's shape: a fit plugin that trains, rewinds to the first weights, and trains again with a fresh schedule."""

    class Rounds(plait.Plugin):
        name, contract = "rounds", plait.CONTRACT_VERSION

        def __init__(self, options: Any) -> None:
            super().__init__(options)
            self.first: dict[str, Any] | None = None
            self.rounds = 0

        def state_dict(self) -> dict[str, Any]:
            return {"first": self.first, "rounds": self.rounds}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.first, self.rounds = state["first"], state["rounds"]

        @plait.hookimpl
        def fit(self, trainer: Any) -> None:
            if self.first is None:
                self.first = trainer.snapshot_model()
                trainer.begin_phase(6)
            while True:
                trainer.train_until(6 * (self.rounds + 1))
                self.rounds += 1
                if self.rounds == 3:
                    return
                trainer.restore_model(self.first)
                trainer.begin_phase(6)

    install(Rounds)
    recipe = {
        "train": {"steps": 18, "batch_size": 64},
        "checkpoint": {"every_steps": 2},
        "device": "cpu",
        "plugins": {"rounds": {}},
    }
    assert forked(lambda: plait.run(recipe, out=tmp_path / "whole")) == 0
    rates = [
        e["values"]["train/lr"] for e in RunDirectory(tmp_path / "whole").events() if "train/lr" in e.get("values", {})
    ]
    assert final_state(tmp_path / "whole")["phase"] == [12, 6] and rates
    assert forked(lambda: plait.run(recipe, out=tmp_path / "killed"), kill_at=("os.replace", 7)) == -signal.SIGKILL
    resume_until_done(tmp_path / "killed", recipe)
    assert first_difference(final_state(tmp_path / "killed")["model"], final_state(tmp_path / "whole")["model"]) is None
