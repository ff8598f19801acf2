"""What the end of a run would refuse is refused before its first step, and the rehearsal leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plait
from plait.data import Data, DataInfo, Subset, TensorSplit
from plait.errors import BadInput
from plait.rehearsal import few
from plait.training.trainer import Trainer
from plait_authoring.kill import final_state, first_difference

Install = Callable[..., None]
GIVEN: dict[str, Any] = {}
"""What `load` and `net` give, set by the tests."""


def load() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> TensorSplit:
        return TensorSplit({"input": torch.rand(n, 3, generator=generator), "label": torch.arange(n) % 2})

    return Data(DataInfo("classification", (3,), 2), split(GIVEN.get("rows", 24)), split(8), split(8))


def net() -> nn.Module:
    return GIVEN["net"]()  # type: ignore[no-any-return]


def plugin(name: str, **members: Any) -> type[plait.Plugin]:
    hooks = {n: plait.hookimpl(m) for n, m in members.items() if n in ("evaluate", "views", "export", "loss_terms")}
    return type(name, (plait.Plugin,), {"name": name, "contract": plait.CONTRACT_VERSION, **members, **hooks})


def recipe(*plugins: str, own: bool = True, **changes: Any) -> dict[str, Any]:
    sources = {"data": {"name": f"{__name__}:load"}, "model": {"name": f"{__name__}:net"}} if own else {}
    chosen = {"train": {"steps": 4, "batch_size": 8}, "device": "cpu", "plugins": {name: {} for name in plugins}}
    return {**sources, **chosen, **changes}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were made."""
    made: list[int] = []
    step = Trainer.train_step

    def noted(trainer: Trainer, batch: Any) -> Any:
        made.append(trainer.step + 1)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", noted)
    GIVEN.clear()
    GIVEN["net"] = lambda: nn.Linear(3, 2)
    return made


# ---- refused before training -------------------------------------------------------------------------------------
class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 2, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.words((x[:, 0] * 4).long())  # type: ignore[no-any-return]


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("build", "changes", "said"),
    [
        (lambda: Extra(3, 2), {}, "state_dict holds a dict at '_extra_state'"),
        (Sparse, {}, "'words.weight' has sparse gradients.*sparse=False"),
        (Sparse, {"optimizer": {"weight_decay": 0.0, "momentum": 0.0}}, "'words.weight' has sparse gradients"),
        (lambda: Branching(3, 2), {"export": {"formats": ["torch_export"]}}, "export as torch_export failed.*without"),
        (lambda: nn.Linear(4, 2), {}, "one pass over a training batch failed.*RuntimeError: mat1 and mat2"),
        (lambda: nn.Linear(3, 5), {}, r"logits \[B, 2\] from the model, got \(8, 5\)"),
        (
            normed,
            {"train": {"epochs": 1, "batch_size": 23}},
            r"last batch of an epoch has 1 row.*train\.drop_last=true",
        ),
        (normed, {"train": {"epochs": 1, "batch_size": 1}}, "parts of one row.*larger batch"),
        (normed, {"train": {"steps": 2, "batch_size": 4, "accumulate": 4}}, "parts of one row.*fewer parts"),
    ],
)
def test_models_that_the_end_would_refuse(
    tmp_path: Path, steps: list[int], build: Callable[[], nn.Module], changes: dict[str, Any], said: str
) -> None:
    GIVEN["net"] = build
    with pytest.raises(BadInput, match=said):
        plait.run(recipe(**changes), out=tmp_path / "r")
    assert not steps and not (tmp_path / "r").exists()


def test_a_last_batch_of_one_row_that_does_not_occur_or_is_left_out(tmp_path: Path, steps: list[int]) -> None:
    GIVEN["net"] = normed
    assert plait.run(recipe(train={"steps": 1, "batch_size": 23}), out=tmp_path / "a").finished
    assert plait.run(recipe(train={"epochs": 3, "batch_size": 23, "drop_last": True}), out=tmp_path / "b").finished
    assert steps == [1, 1, 2, 3]
    GIVEN["net"] = lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert plait.run(recipe(train={"epochs": 1, "batch_size": 23}), out=tmp_path / "c").finished


def raising(text: str, kind: type[Exception] = KeyError) -> Callable[..., Any]:
    def hook(self: Any) -> Any:
        raise kind(text)

    return hook


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"evaluate": raising("group")}, "plugin 'odd': its figures on the test split failed.*KeyError: 'group'"),
        ({"evaluate": raising("far", ValueError)}, "plugin 'odd': far"),
        ({"export": raising("deep", RuntimeError)}, "the export failed.*RuntimeError: deep"),
        (
            {"state_dict": lambda self: {"seen": {"rows": {1, 2}}}},
            "plugin 'odd': its state_dict holds a set at 'seen/rows'",
        ),
        ({"loss_terms": raising("group")}, "one pass over a training batch failed.*KeyError: 'group'"),
    ],
)
def test_plugins_that_the_end_would_refuse(
    tmp_path: Path, steps: list[int], install: Install, members: dict[str, Any], said: str
) -> None:
    install(plugin("odd", **members))
    with pytest.raises(BadInput, match=said):
        plait.run(recipe("odd"), out=tmp_path / "r")
    assert not steps and not (tmp_path / "r").exists()


def test_views_are_tried(tmp_path: Path, steps: list[int], install: Install) -> None:
    def views(self: Any) -> Any:
        def dim(batch: Any) -> Any:
            assert batch["input"].ndim == 4, "no images"
            return batch

        return {"fine": plait.View("as it is"), "dim": plait.View("darker", dim)}

    install(plugin("night", views=views))
    with pytest.raises(BadInput, match=r"the view 'dim' of the test split failed.*AssertionError: no images"):
        plait.run(recipe("night"), out=tmp_path / "r")
    assert not steps and not (tmp_path / "r").exists()


def test_a_class_or_group_that_only_test_has_reaches_the_figures(
    tmp_path: Path, steps: list[int], install: Install
) -> None:
    def evaluate(self: Any, predictions: Any) -> Any:
        label = predictions["clean"].fields["label"]
        if (label == 2).any():
            raise IndexError("label 2 has no column")
        return {}

    data = load()
    data.info = DataInfo("classification", (3,), 3)
    data.test.fields["label"][-1] = 2  # type: ignore[attr-defined]
    GIVEN["net"] = lambda: nn.Linear(3, 3)
    install(plugin("columns", evaluate=evaluate))
    chosen = recipe("columns", data={"name": f"{__name__}:given"})
    GIVEN["data"] = data
    with pytest.raises(BadInput, match=r"plugin 'columns'.*IndexError: label 2"):
        plait.run(chosen, out=tmp_path / "r")
    assert not steps


def given() -> Data:
    return GIVEN["data"]  # type: ignore[no-any-return]


def test_figures_that_need_many_rows_are_tried_on_the_whole_split(
    tmp_path: Path, steps: list[int], install: Install
) -> None:
    def evaluate(self: Any, trainer: Any, predictions: Any) -> Any:
        if len(predictions["clean"].outputs) < 20 or len(trainer.data.test) < 20:
            raise ValueError("too few rows")
        return {"rows": plait.Metric(len(trainer.data.test), "rows", "neither")}

    install(plugin("many", evaluate=evaluate))
    changes = {"train": {"steps": 1, "batch_size": 64}, "data": {"name": "tiny-images", "train": 100}}
    done = plait.run(recipe("many", own=False, **changes), out=tmp_path / "r")
    assert done.metrics["many/rows"] == 50


# ---- no trace ----------------------------------------------------------------------------------------------------
def test_the_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """Against the same run without it, with a plugin that draws, counts, shadows and logs wherever it is asked."""

    class Busy(plait.Plugin):
        name, contract = "busy", plait.CONTRACT_VERSION

        def __init__(self, options: Any) -> None:
            super().__init__(options)
            self.asked, self.seen = 0, torch.zeros(4)

        def state_dict(self) -> dict[str, Any]:
            return {"asked": self.asked, "seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.asked, self.seen = state["asked"], state["seen"]

        def setup(self, trainer: Any) -> None:
            self.shadow = trainer.shadow("busy")
            self.early = trainer.generator("busy.early")

        @plait.hookimpl
        def loss_terms(self, trainer: Any, outputs: Any) -> dict[str, Any]:
            self.asked += 1
            self.seen += 1
            other = next(trainer.stream("busy.second", batch_size=7))
            noise = torch.rand((), generator=self.early) + torch.rand((), generator=trainer.generator("busy.late"))
            drawn = torch.rand(()) + random.random() + float(np.random.rand())
            for tensor in self.shadow.values():
                tensor.mul_(0.9)
            trainer.log({"busy/asked": float(self.asked)})
            return {"pull": outputs.pow(2).mean() * (1 + noise + drawn) + 0 * other["input"].sum() + self.asked * 1e-3}

        @plait.hookimpl
        def evaluate(self, trainer: Any, predictions: Any) -> dict[str, Any]:
            self.asked += 10
            trainer.note("busy: evaluated")
            (trainer.folder / "busy.txt").write_text(str(self.asked))
            return {"drawn": plait.Metric(float(torch.rand(()))), "asked": plait.Metric(float(self.asked))}

    install(Busy)
    changes = {"model": {"name": f"{__name__}:counting"}, "train": {"steps": 12, "batch_size": 48}}
    runs = []
    for number, rehearsed in enumerate((True, False)):
        if not rehearsed:
            monkeypatch.setattr("plait.rehearsal.rehearse", lambda trainer, views: None)
        runs.append(plait.run(recipe("busy", own=False, **changes), out=tmp_path / str(number)))
    with_it, without = runs
    assert first_difference(final_state(with_it.path), final_state(without.path)) is None
    assert with_it.metrics == without.metrics

    def told(done: plait.Run) -> list[Any]:
        return [{k: v for k, v in event.items() if k != "time"} for event in done.directory.events()]

    assert told(with_it) == told(without)
    assert sorted(p.name for p in with_it.path.iterdir()) == sorted(p.name for p in without.path.iterdir())


class Counting(nn.Module):
    """A stranger's layers: a counter in Python, dropout, running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.net = 0, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.net(x) * (1 + 0.1 / self.calls if self.calls else 1)  # type: ignore[no-any-return]


def counting() -> nn.Module:
    return Counting()


def test_a_few_rows_have_every_class_and_group() -> None:
    label, group = torch.zeros(900, dtype=torch.int64), torch.zeros(900, dtype=torch.int64)
    label[500], group[700], label[800], group[800] = 1, 1, 1, 1
    rows = few(TensorSplit({"input": torch.zeros(900, 1), "label": label, "group": group}))
    assert isinstance(rows, Subset)
    assert rows.rows.tolist() == [*range(16), 500, 700, 800]
    many = TensorSplit({"input": torch.zeros(900, 1), "label": torch.arange(900)})
    assert len(few(many)) == 256 and len(few(Subset(many, torch.arange(3)))) == 3


def test_a_strategy_decides_what_is_trained_and_is_not_tried(
    tmp_path: Path, steps: list[int], install: Install
) -> None:
    class Own(plait.Plugin):
        name, contract, begun = "own", plait.CONTRACT_VERSION, False

        @plait.hookimpl
        def fit(self, trainer: Any) -> None:
            self.begun = True
            trainer.train_until(trainer.total_steps)

        @plait.hookimpl
        def loss_terms(self, outputs: Any) -> Any:
            assert self.begun
            return {}

        @plait.hookimpl
        def export(self, model: nn.Module) -> nn.Module:
            assert self.begun
            return model

        @plait.hookimpl
        def evaluate(self) -> Any:
            assert self.begun
            return {}

    install(Own)
    assert plait.run(recipe("own"), out=tmp_path / "r").finished
    assert steps == [1, 2, 3, 4]
