"""A run does not go on over other data than it began with, unless it is told to; nothing is touched before that."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadCheckpoint
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference, forked

SOURCE = """
import json
from pathlib import Path
import torch
from plait import Data, DataInfo, TensorSplit

def split(n, seed, extra):
    g = torch.Generator().manual_seed(seed)
    fields = {"input": torch.randn(n, 3, generator=g), "label": torch.randint(2, (n,), generator=g)}
    return TensorSplit(fields | ({"group": torch.zeros(n, dtype=torch.int64)} if extra else {}))

def load():
    told = {"train": 40, "seed": 0, "extra": False, **json.loads((Path(__file__).parent / "told.json").read_text())}
    info = DataInfo("classification", (3,), 2, 1)
    return Data(info, split(told["train"], told["seed"], told["extra"]), split(8, 5, False), split(8, 6, False))

def net(num_classes):
    return torch.nn.Linear(3, num_classes)
"""
RECIPE: dict[str, Any] = {
    "data": {"name": "changing:load"},
    "model": {"name": "changing:net"},
    "train": {"steps": 9, "batch_size": 16},
    "checkpoint": {"every_steps": 2},
    "device": "cpu",
}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "changing.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "changing", raising=False)
    (tmp_path / "told.json").write_text("{}")
    return tmp_path / "told.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('{"train": 36}', "train: 40 rows there, 36 here"),
        ('{"train": 50}', "batches per epoch: 3 there, 4 here"),
        ('{"extra": true}', r"train: group is nothing there, int64 \[\] here"),
        ('{"seed": 1}', "train: other values in its labels"),
    ],
)
def test_changed_data_is_refused_and_nothing_is_touched(told: Path, change: str, said: str) -> None:
    path = told.parent / "r"
    assert forked(lambda: plait.run(RECIPE, out=path), kill_at=("os.replace", 5)) == -signal.SIGKILL
    before = contents(path)
    assert any("step-" in name for name in before)
    told.write_text(change)
    with pytest.raises(BadCheckpoint, match=said) as refused:
        plait.resume(path)
    assert "plait resume" in str(refused.value) and "--go-on-anyway" in str(refused.value)
    with pytest.raises(BadCheckpoint, match=said):
        plait.run(RECIPE, out=path, go_on=True)
    assert contents(path) == before
    assert plait.resume(path, anyway=True).finished


def test_the_same_data_goes_on_to_the_same_bits_and_older_checkpoints_are_taken(
    told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = told.parent / "r"
    plait.run(RECIPE, out=told.parent / "whole")
    forked(lambda: plait.run(RECIPE, out=path), kill_at=("os.replace", 5))
    plait.resume(path)
    assert first_difference(final_state(path), final_state(told.parent / "whole")) is None
    from plait.training.trainer import Trainer

    old = told.parent / "old"
    state_dict = Trainer.state_dict

    def without(trainer: Trainer) -> dict[str, Any]:
        return {k: v for k, v in state_dict(trainer).items() if k != "data"}

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "state_dict", without)
        forked(lambda: plait.run(RECIPE, out=old), kill_at=("os.replace", 5))
    told.write_text('{"train": 38}')
    assert plait.resume(old).finished
    assert RunDirectory(old).result() is not None


def test_the_command_names_and_takes_the_way_on(told: Path, call: Any) -> None:
    forked(lambda: plait.run(RECIPE, out=told.parent / "r"), kill_at=("os.replace", 5))
    told.write_text('{"train": 36}')
    answer = call("resume", "r")
    assert answer.code == 2 and "train: 40 rows there, 36 here" in answer.err
    assert "plait resume r --go-on-anyway" in answer.err and "Traceback" not in answer.err
    assert call("resume", "r", "--go-on-anyway").code == 0


def test_identity_is_of_whole_numbers_and_a_splits_own_fingerprint_counts() -> None:
    def data(shift: float = 0, swap: bool = False, mark: str = "") -> dict[str, Any]:
        label = torch.tensor([1, 0, 1] if swap else [0, 1, 1])
        splits = [TensorSplit({"input": torch.ones(3, 2) + shift, "label": label}) for _ in range(3)]
        if mark:
            splits[0].fingerprint = mark  # type: ignore[attr-defined]
        return Data(DataInfo(num_classes=2), *splits).identity()

    assert data() == data(shift=0.1) and data() != data(swap=True)
    assert data(mark="version 1") != data(mark="version 2")
    assert data()["train"]["rows"] == 3 and data()["train"]["fields"] == {"input": "float32 [2]", "label": "int64 []"}
