"""Kinds of data as people bring them: what can only mean one thing is taken with the bits of the plain form, the rest
is refused in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

import plait
from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadInput, RunFailed
from plait_authoring.kill import final_state, first_difference

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=GENERATOR)
Y = torch.randint(3, (24,), generator=GENERATOR)
GIVEN: dict[str, Any] = {}
"""What `load` and `net` give, set by the tests."""
RECIPE = {
    "data": {"name": f"{__name__}:load"},
    "model": {"name": f"{__name__}:net"},
    "train": {"steps": 4, "batch_size": 8},
    "device": "cpu",
}


def load() -> Data:
    info, make = GIVEN.get("info", DataInfo("classification", (3,), 3)), GIVEN["make"]
    return Data(info, make(slice(0, 24)), make(slice(0, 6)), make(slice(6, 12)))


def net() -> nn.Module:
    return GIVEN["net"]() if "net" in GIVEN else nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def outcome(path: Path, **given: Any) -> Any:
    GIVEN.clear()
    GIVEN.update(given)
    return plait.run(RECIPE, out=path)


def plain(rows: slice) -> TensorSplit:
    return TensorSplit({"input": X[rows], "label": Y[rows]})


class Pairs(torch_data.Dataset[Any]):
    def __init__(self, rows: slice, row: Callable[[Tensor, Tensor], Any]) -> None:
        self.x, self.y, self.row = X[rows], Y[rows], row

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> Any:
        return self.row(self.x[number], self.y[number])


class Own:
    """A split of one's own."""

    def __init__(self, rows: slice, **changes: Any) -> None:
        self.rows, self.changes = rows, changes

    def __len__(self) -> int:
        return len(X[self.rows])

    def __getitems__(self, rows: Any) -> plait.Batch:
        rows = torch.as_tensor(rows)
        batch = plait.Batch(input=X[self.rows][rows], label=Y[self.rows][rows], index=rows)
        return plait.Batch(batch | {name: change(batch[name]) for name, change in self.changes.items()})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "r"
    outcome(path, make=plain)
    return path


ACCEPTED: dict[str, Callable[[slice], Any]] = {
    "tensor data set": lambda rows: torch_data.TensorDataset(X[rows], Y[rows]),
    "subset of one": lambda rows: torch_data.Subset(torch_data.TensorDataset(X, Y), range(*rows.indices(24))),
    "pairs": lambda rows: Pairs(rows, lambda x, y: (x, y)),
    "subset of pairs": lambda rows: torch_data.Subset(
        Pairs(slice(0, 24), lambda x, y: (x, y)), range(*rows.indices(24))
    ),
    "pairs with numbers": lambda rows: Pairs(rows, lambda x, y: (x.numpy(), int(y))),
    "pairs with numpy numbers": lambda rows: Pairs(rows, lambda x, y: (x.numpy(), y.numpy()[()])),
    "dicts": lambda rows: Pairs(rows, lambda x, y: {"input": x, "label": y}),
    "list of pairs": lambda rows: list(zip(X[rows], Y[rows].tolist(), strict=True)),
    "list of dicts": lambda rows: [{"input": x, "label": int(y)} for x, y in zip(X[rows], Y[rows], strict=True)],
    "two tensors": lambda rows: (X[rows], Y[rows]),
    "mapping of arrays": lambda rows: {"input": X[rows].numpy(), "label": Y[rows].numpy()},
    "arrays": lambda rows: TensorSplit({"input": X[rows].numpy(), "label": Y[rows].numpy()}),
    "lists": lambda rows: TensorSplit({"input": X[rows], "label": Y[rows].tolist()}),
    "labels [n, 1]": lambda rows: TensorSplit({"input": X[rows], "label": Y[rows].unsqueeze(1)}),
    "labels int32": lambda rows: TensorSplit({"input": X[rows], "label": Y[rows].int()}),
    "labels uint8": lambda rows: torch_data.TensorDataset(X[rows], Y[rows].to(torch.uint8)),
    "labels uint16 [n, 1]": lambda rows: TensorSplit({"input": X[rows], "label": Y[rows].to(torch.uint16)[:, None]}),
    "own, numpy": lambda rows: Own(rows, input=lambda v: v.numpy(), label=lambda v: v.numpy()),
    "own, [n, 1] int32": lambda rows: Own(rows, label=lambda v: v.int().unsqueeze(1)),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_means_one_thing_is_taken(tmp_path: Path, reference: Path, kind: str) -> None:
    done = outcome(tmp_path / "r", make=ACCEPTED[kind])
    state, other = final_state(done.path), final_state(reference)
    for each in (state, other):
        each.pop("data")
        each.pop("events_bytes", None)
    assert first_difference(state, other) is None
    assert done.metrics == plait.load_run(reference).metrics


class Endless(torch_data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield X[0], Y[0]


REFUSED: dict[str, tuple[Callable[[slice], Any], str]] = {
    "iterable": (lambda rows: Endless(), "train split is an IterableDataset.*a list of its rows"),
    "loader": (lambda rows: torch_data.DataLoader(plain(rows)), "is a DataLoader.*loader.dataset"),  # type: ignore[arg-type, type-var]
    "three tensors": (lambda rows: torch_data.TensorDataset(X[rows], Y[rows], Y[rows]), "3 tensors without names"),
    "one tensor": (lambda rows: torch_data.TensorDataset(X[rows]), "1 tensor without names"),
    "a tensor": (lambda rows: X[rows], "train split is of the type Tensor; give"),
    "nothing": (lambda rows: None, "train split is of the type NoneType; give"),
    "text": (lambda rows: "train.csv", "train split is of the type str; give"),
    "rows of three": (lambda rows: Pairs(rows, lambda x, y: (x, y, y)), r"row \d+ is 3 values; a row is a pair"),
    "other names": (lambda rows: Pairs(rows, lambda x, y: {"x": x, "y": y}), "no field 'input' .it has x, y, index"),
    "no label": (lambda rows: TensorSplit({"input": X[rows]}), "no field 'label'"),
    "text as input": (lambda rows: Pairs(rows, lambda x, y: ("a.png", y)), "row 0: 'input' is of the type str"),
    "ragged": (lambda rows: Pairs(rows, lambda x, y: (x[: int(y) + 1], y)), "all rows need one shape"),
    "one-hot": (
        lambda rows: torch_data.TensorDataset(X[rows], nn.functional.one_hot(Y[rows], 3)),
        r"\[24, 3\]: .*argmax",
    ),
    "float labels": (
        lambda rows: TensorSplit({"input": X[rows], "label": Y[rows].float()}),
        r"'label' is float32.*long",
    ),
    "bool labels": (lambda rows: TensorSplit({"input": X[rows], "label": Y[rows] > 0}), r"'label' is bool.*long"),
    "from 1": (lambda rows: TensorSplit({"input": X[rows], "label": Y[rows] + 1}), r"labels 1\.\.3 lie .*subtract 1"),
    "unlabelled": (
        lambda rows: TensorSplit({"input": X[rows], "label": Y[rows] - 1}),
        r"labels -1\.\.1 .*leave them out",
    ),
    "NaN labels": (lambda rows: TensorSplit({"input": X[rows], "label": Y[rows] / 0 * 0}), "'label' has NaN in row 0"),
    "own float labels": (lambda rows: Own(rows, label=lambda v: v.double()), r"'label' is float64.*long"),
    "float64": (
        lambda rows: TensorSplit({"input": X[rows].double(), "label": Y[rows]}),
        r"float64 and the model's.*float\(\)",
    ),
    "numpy float64": (lambda rows: {"input": X[rows].double().numpy(), "label": Y[rows].numpy()}, r"input is float64"),
    "uint8": (lambda rows: TensorSplit({"input": X[rows].to(torch.uint8), "label": Y[rows]}), r"uint8 and .*/ 255"),
    "NaN inputs": (lambda rows: TensorSplit({"input": X[rows].log(), "label": Y[rows]}), "'input' has NaN or infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_refused_in_a_line_before_training(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(BadInput, match=said) as refused:
        outcome(tmp_path / "r", make=make)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_pil_image_is_named() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 4))
    split = plain(slice(0, 4))
    with pytest.raises(BadInput, match=r"row 0: 'input' is a PIL image; give a tensor \(torchvision.*ToTensor"):
        Data(DataInfo("classification", (3,), 3), [(image, 0)], split, plain(slice(0, 4))).check("x")  # type: ignore[arg-type]


def test_the_order_of_the_splits_is_said() -> None:
    info, splits = DataInfo("classification", (3,), 3), [plain(slice(0, 4)) for _ in range(3)]
    with pytest.raises(BadInput, match="takes info, train, validation, test in this order, got TensorSplit as info"):
        Data(splits[0], splits[1], splits[2], info).check("x")  # type: ignore[arg-type]


def test_every_split_is_looked_at_and_what_only_test_has_is_noted() -> None:
    def data(test: list[int], groups: list[int] | None = None) -> Data:
        splits = [TensorSplit({"input": X[:2], "label": torch.tensor([0, 1])}) for _ in range(3)]
        splits[2] = TensorSplit({"input": X[:2], "label": torch.tensor(test)})
        if groups:
            splits[2].fields["group"] = torch.tensor(groups)
        return Data(DataInfo("classification", (3,), 3, 2), *splits, names={"label": ["cat", "dog", "owl"]})

    with pytest.raises(BadInput, match=r"the test split: labels 0\.\.3 lie outside 0\.\.2"):
        data([0, 3]).check("x")
    with pytest.raises(BadInput, match=r"the test split: groups 0\.\.2 lie outside 0\.\.1"):
        data([0, 1], [0, 2]).check("x")
    rare = data([0, 2])
    rare.check("x")
    assert rare.notes == ("data x: label 2 (owl) is in the test split and not in the training split",)


@pytest.mark.parametrize("target", [X[:, 0], X[:, :1], (X[:, 0] * 10).round().long(), X[:, 0].double()])
@pytest.mark.parametrize("flat", [False, True])
def test_targets_of_a_regression(tmp_path: Path, target: Tensor, flat: bool) -> None:
    class Line(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze(1) if flat else super().forward(x)

    def given(one: Tensor) -> dict[str, Any]:
        return {
            "info": DataInfo("regression", (3,)),
            "make": lambda rows: torch_data.TensorDataset(X[rows], one[rows]),
            "net": lambda: Line(3, 1),
        }

    if target.dtype == torch.float64:
        with pytest.raises(BadInput, match=r"targets are float64 and the outputs float32.*\.float\(\)"):
            outcome(tmp_path / "r", **given(target))
        return
    done = outcome(tmp_path / "r", **given(target))
    same = outcome(tmp_path / "s", **given(target.float().reshape(24, *([] if flat else [1]))))
    assert torch.equal(done.model.weight, same.model.weight)  # type: ignore[arg-type]
    assert done.metrics["task/loss"] == same.metrics["task/loss"]
    by_hand = nn.functional.mse_loss(done.model(X[6:12]).reshape(-1), target[6:12].float().reshape(-1))
    assert done.metrics["task/loss"] == pytest.approx(float(by_hand))


def test_nan_deep_in_the_data_names_field_and_row(tmp_path: Path) -> None:
    odd = X.clone()
    odd[23, 1] = float("nan")
    with pytest.raises(BadInput, match=r"the train split: .*'input' has NaN.* in row 23 of its split"):
        outcome(tmp_path / "r", make=lambda rows: TensorSplit({"input": odd[rows], "label": Y[rows]}))
    assert not (tmp_path / "r").exists()

    def late(rows: slice) -> Own:
        return Own(rows, input=lambda v: torch.where(v == X[23], odd[23], v))

    said = r"step \d+: the loss is nan, and so is the data: .*'input' has NaN.* in row 23"
    with pytest.raises(RunFailed, match=said):
        outcome(tmp_path / "s", make=late)


def test_a_model_that_takes_nan_is_trained(tmp_path: Path) -> None:
    class Imputing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.nan_to_num())

    odd = X.clone()
    odd[::2, 1] = float("nan")
    make = lambda rows: TensorSplit({"input": odd[rows], "label": Y[rows]})
    assert outcome(tmp_path / "r", make=make, net=lambda: Imputing(3, 3)).finished


def test_a_refused_run_leaves_what_was_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "r" / "own").mkdir(parents=True)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="input is float64"):
        outcome(tmp_path / "r", make=lambda rows: TensorSplit({"input": X[rows].double(), "label": Y[rows]}))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["notes.txt", "own"]


# ---- models ------------------------------------------------------------------------------------------------------
def seeded() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def parts(net: nn.Module) -> nn.Module:
    return nn.Sequential(nn.DataParallel(net[0]), net[1], torch.compile(net[2]))  # type: ignore[index, arg-type]


WRAPS = [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net)), parts]


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_torch_wraps_around_a_model_is_taken_off(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    done = outcome(tmp_path / "r", make=plain, net=lambda: wrap(seeded()))
    same = outcome(tmp_path / "s", make=plain, net=seeded)
    state, other = done.model.state_dict(), same.model.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in other)


def test_a_scripted_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is scripted.*give the module that was scripted"):
        outcome(tmp_path / "r", make=plain, net=lambda: torch.jit.script(seeded()))
    assert not (tmp_path / "r").exists()


def test_lazy_layers_take_their_shape_from_the_data(tmp_path: Path) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

    done = outcome(tmp_path / "r", make=plain, net=lazy)
    assert done.model[0].weight.shape == (4, 3) and done.finished  # type: ignore[index, union-attr]
    assert plait.load_run(done.path).model[0].weight.shape == (4, 3)  # type: ignore[index, union-attr]
    with pytest.raises(BadInput, match=r"lazy '0.weight' takes its shape from two training rows.*RuntimeError"):
        outcome(tmp_path / "s", make=plain, net=lambda: nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()))
    assert not (tmp_path / "s").exists()


def test_arrays_keep_their_values() -> None:
    split = TensorSplit({"input": np.arange(6).reshape(3, 2)[::-1], "label": [0, 1, 0]})
    assert split.fields["input"].tolist() == [[4, 5], [2, 3], [0, 1]] and split.fields["label"].dtype == torch.int64
    with pytest.raises(BadInput, match="field 'label' is no tensor and cannot be made one"):
        TensorSplit({"label": ["cat", "dog"]})
