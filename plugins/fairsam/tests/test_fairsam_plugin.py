"""The plugin in plait: needs, bad input, views, metrics, and every baseline by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import BadInput
from plait.run import execute
from plait.storage import places
from plait_fairsam.presets import BASELINES

DATA = """
from dataclasses import replace

import torch
from plait import Data, DataInfo, TensorSplit


def make(groups, n=96, classes=2, names=None):
    g = torch.Generator().manual_seed(0)
    def split():
        fields = {"input": torch.rand(n, 1, 8, 8, generator=g), "label": torch.randint(classes, (n,), generator=g)}
        if groups:
            fields["group"] = torch.arange(n) % groups
        return TensorSplit(fields)
    fields = {"input", "label", "index"} | ({"group"} if groups else set())
    return Data(DataInfo("classification", (1, 8, 8), classes, groups, frozenset(fields)), split(), split(), split())


def none():
    return make(0)


def single():
    return make(1)


def three():
    return make(3, classes=3)


def odd(change):
    data = make(2)
    change(data.test.fields, torch.arange(96) == 90)
    return data


def bright():
    return odd(lambda fields, row: fields["input"].masked_fill_(row[:, None, None, None], 200))


def missing():
    return odd(lambda fields, row: fields["input"].masked_fill_(row[:, None, None, None], torch.nan))


def stranger():
    data = odd(lambda fields, row: fields["group"].masked_fill_(row, 2))
    data.info = replace(data.info, num_groups=0)
    return data


def vectors():
    data = make(2)
    for split in (data.train, data.validation, data.test):
        split.fields["input"] = split.fields["input"].flatten(1) - 0.5
    data.info = replace(data.info, input_shape=(64,))
    return data


def linear(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fair_sets.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    return "fair_sets"


def run(path: Path, options: dict[str, Any], **changes: Any) -> plait.Run:
    """A small run, without the reports of whatever is installed."""
    settings = {"severities": [3], **options}
    chosen = {"data": "tiny-images", "model": "tiny-cnn", "steps": 12, **changes}
    plan = plait.plan(plugins={"fairsam": settings}, **chosen)
    return execute(plan, places.at(path / "r"), artifacts=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho = -1.0 must be >= 0"),
        ({"rho": float("nan")}, "rho"),
        ({"weights": "magic"}, "weights = 'magic'"),
        ({"perturbation": "sideways"}, "perturbation = 'sideways'"),
        ({"severities": [6]}, "severities"),
        ({"severities": []}, "severities"),
        ({"corruptions": ["shot_nois"]}, "shot_noise"),
        ({"corruptions": ["shot_noise", "shot_noise"]}, "twice"),
        ({"train_corruption": "shot_noise:9"}, "train_corruption"),
        ({"rho": [0.1, 0.2]}, "per_group"),
        ({"baseline": "best"}, "no baseline 'best'"),
        ({"interval": 0}, "interval = 0"),
    ],
)
def test_bad_input_names_option_and_value(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tmp_path, options)
    assert not (tmp_path / "r").exists()


def test_data_without_groups_is_refused_before_or_when_it_is_loaded(tmp_path: Path, sets: str) -> None:
    with pytest.raises(plait.Refused, match=r"needs a sensitive attribute \(field:group\); data 'fair_sets:none'"):
        run(tmp_path, {}, data=f"{sets}:none")
    with pytest.raises(BadInput, match="the only group in the training split"):
        run(tmp_path, {}, data=f"{sets}:single")
    assert not (tmp_path / "r").exists()


def test_three_groups_three_classes(tmp_path: Path, sets: str) -> None:
    done = run(tmp_path, {"perturbation": "per_group", "rho": [0.1, 0.2, 0.0]}, data=f"{sets}:three")
    assert {f"fairsam/clean_accuracy_group_{a}" for a in range(3)} <= set(done.metrics)
    assert "fairsam/cdd_signed" not in done.metrics and done.metrics["fairsam/mcdd"] >= 0
    assert done.metrics["fairsam/passes_per_step"] == 5


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_takes_its_passes(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, {"baseline": name})
    passes = dict.fromkeys(["sgd", "reweighing", "kamiran", "groupdro", "penalty"], 1)
    passes |= {"fairsam-per_group": 4, "fairsam-per_group_whole": 4}
    assert done.metrics["fairsam/passes_per_step"] == passes.get(name, 2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_whole_batches_in_a_run_are_the_sub_batches_where_nothing_normalises(
    tmp_path: Path, sets: str, accumulate: int
) -> None:
    states = []
    for mode in ("per_group", "per_group_whole"):
        options = {"perturbation": mode, "rho": 0.3}
        settings = {"train.batch_size": 24, "train.accumulate": accumulate if mode == "per_group_whole" else 1}
        done = run(tmp_path / mode, options, data=f"{sets}:three", model=f"{sets}:linear", settings=settings)
        states.append(done.model.state_dict())
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"penalty": 0.5}, {"baseline": "penalty", "rho": 0.1}])
def test_a_gap_between_groups_of_the_whole_batch_is_not_computed_in_parts(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=r"penalty=.* train.accumulate=4") as caught:
        run(tmp_path, options, settings={"train.batch_size": 32, "train.accumulate": 4})
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("options", [{}, {"weights": "adaptive"}, {"weights": "groupdro"}, {"rho": 0.0}])
def test_everything_else_computed_in_parts_is_the_whole_batch(
    tmp_path: Path, sets: str, options: dict[str, Any]
) -> None:
    whole, parts = (
        run(
            tmp_path / str(count),
            options,
            data=f"{sets}:three",
            model=f"{sets}:linear",
            settings={"train.batch_size": 24, "train.accumulate": count},
        ).model.state_dict()
        for count in (1, 4)
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_interval_costs_one_and_a_share(tmp_path: Path) -> None:
    assert run(tmp_path, {"interval": 3}).metrics["fairsam/passes_per_step"] == pytest.approx(1 + 1 / 3)


def test_figures_against_the_exported_model_by_hand(tmp_path: Path) -> None:
    """Oracle: the exported model on the test split corrupted by the library, group accuracies in a loop."""
    from plait.planning.task import TinyImagesOptions
    from plait.planning.tiny import load
    from plait_fairsam.corruptions import corrupt

    done = run(tmp_path, {"severities": [2, 4], "corruptions": ["gaussian_noise", "impulse_noise"]}, steps=40)
    test = load(TinyImagesOptions(), 0).test.fields  # type: ignore[attr-defined]

    def accuracies(images: torch.Tensor) -> list[float]:
        with torch.no_grad():
            right = done.model(images).argmax(1) == test["label"]
        return [100 * right[test["group"] == a].double().mean().item() for a in (0, 1)]

    clean = accuracies(test["input"])
    cells = [accuracies(corrupt(test["input"], c, s)) for c in ("gaussian_noise", "impulse_noise") for s in (2, 4)]
    disparities = [abs((clean[0] - c[0]) - (clean[1] - c[1])) for c in cells]
    assert done.metrics["fairsam/mcdd"] == pytest.approx(sum(disparities) / 4)
    assert done.metrics["fairsam/corrupted_accuracy_worst_group"] == pytest.approx(sum(map(min, cells)) / 4)
    assert done.metrics["fairsam/clean_accuracy"] == pytest.approx(sum(clean) / 2)


def test_training_on_corrupted_images_changes_training_only(tmp_path: Path) -> None:
    noisy = plait.run(
        plugins={"fairsam": {"severities": [3], "train_corruption": "shot_noise:5"}},
        data="tiny-images",
        steps=12,
        out=tmp_path / "n",
    )
    plain = plait.run(plugins={"fairsam": {"severities": [3]}}, data="tiny-images", steps=12, out=tmp_path / "p")
    weights = [r.model.state_dict()["conv1.weight"] for r in (noisy, plain)]
    assert not torch.equal(*weights)


def test_collapse_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, {"rho": 50.0}, steps=6)
    notes = [e["text"] for e in done.directory.events() if e["event"] == "note"]
    assert any("near chance" in note for note in notes)


def test_plugin_imports_no_torch() -> None:
    code = "import sys, plait_fairsam.plugin; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- what the end would refuse ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bright", r"test split cannot be corrupted: images must lie in \[0, 1\], found .* to 200"),
        ("missing", r"nan"),
        ("vectors", r"must be float \[N, C, H, W\], got torch.float32 \(96, 64\).*--set fairsam.corruptions=\[\]"),
        ("stranger", r"group 2 is in the test split and not in the training split, whose groups are 0\.\.1"),
    ],
)
def test_what_the_end_would_refuse_is_refused_before_training(
    tmp_path: Path, sets: str, source: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        run(tmp_path, {}, data=f"{sets}:{source}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_data_without_images_go_without_corrupted_views(tmp_path: Path, sets: str) -> None:
    done = run(tmp_path, {"corruptions": []}, data=f"{sets}:vectors", model=f"{sets}:linear")
    test = plait.loading.load_data(done.recipe.data, 0).test.fields  # type: ignore[attr-defined]
    with torch.no_grad():
        right = (done.model(test["input"]).argmax(1) == test["label"]).double()
    by_hand = 50 * (right[test["group"] == 0].mean() + right[test["group"] == 1].mean())
    assert done.metrics["fairsam/clean_accuracy"] == pytest.approx(float(by_hand))
    assert "fairsam/mcdd" not in done.metrics
