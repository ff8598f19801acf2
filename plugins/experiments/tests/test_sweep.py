"""Sweeps: what is varied, that nothing is run twice, what is written, and the search."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import BadInput, Metric, Plugin, hookimpl
from plait.declare.options import Options
from plait_experiments.grid import Axis, Range, parse, points
from plait_experiments.sweep import Row, Sweep, sweep

BASE: dict[str, Any] = {
    "device": "cpu",
    "data": {"name": "tiny-images", "train": 64, "size": 8},
    "model": {"name": "tiny-cnn", "width": 4},
    "train": {"steps": 2, "batch_size": 32},
    "checkpoint": {"every_steps": 100},
}


class BowlOptions(Options):
    """Where on the bowl."""

    x: float = 0.0
    y: int = 0
    fails: bool = False


class BowlPlugin(Plugin):
    """A metric whose best point is known: (x - 0.3)^2 + (y - 2)^2."""

    name = "bowl"
    contract = 1
    Options = BowlOptions

    @hookimpl
    def evaluate(self, predictions: Any) -> dict[str, Any]:
        predictions["clean"]
        if self.options.fails:
            raise ValueError("the bowl broke")
        return {
            "depth": Metric((self.options.x - 0.3) ** 2 + (self.options.y - 2) ** 2, "m", "lower"),
            "height": Metric(self.options.x, "m"),
        }


@pytest.fixture
def bowl(install: Callable[..., None]) -> dict[str, Any]:
    install(BowlPlugin)
    data = {"name": "tiny-images", "train": 8, "size": 8}
    return {**BASE, "data": data, "train": {"steps": 0}, "plugins": {"bowl": {}}}


def search(recipe: dict[str, Any], cache: Path, trials: int, **more: Any) -> Sweep:
    over = ["bowl.x=-1.0..1.0", "bowl.y=0..4"]
    return sweep(recipe, over, optimize="bowl/depth@validation", trials=trials, workers=0, cache=cache, **more)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("chase.density=0.05,0.1,0.2", Axis("chase.density", (0.05, 0.1, 0.2))),
        ("seed=0:5", Axis("seed", (0, 1, 2, 3, 4))),
        ("seed=4:0:-2", Axis("seed", (4, 2))),
        ("model.name=tiny-cnn,cnn", Axis("model.name", ("tiny-cnn", "cnn"))),
        ('fairsam.weights="group","none"', Axis("fairsam.weights", ("group", "none"))),
        ("fairsam.severities=[1],[2, 3]", Axis("fairsam.severities", ([1], [2, 3]))),
        ("train.select=best", Axis("train.select", ("best",))),
        ("optimizer.lr=1e-4..0.5:log", Range("optimizer.lr", 1e-4, 0.5, log=True)),
        ("model.width=4..16", Range("model.width", 4, 16, whole=True)),
    ],
)
def test_what_is_varied(text: str, expected: Axis | Range) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text, said",
    [
        ("density", "write it as KEY=VALUES"),
        ("=1,2", "write it as KEY=VALUES"),
        ("seed=3:3", "no number lies in 3:3"),
        ("seed=0:4:0", "no number lies"),
        ("a.b=1,1", "a value is there twice"),
        ("a.b=2..1", "a range goes up"),
        ("a.b=0..1:log", "begins above 0"),
        ("seed=0:1000000000", "more than 100,000 values"),
    ],
)
def test_what_cannot_be_varied(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse(text)


def test_every_combination() -> None:
    combinations = list(points([Axis("a", (1, 2)), Axis("b", ("x", "y"))]))
    assert combinations == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(BadInput, match="asks for 1,000,000 runs"):
        list(points([Axis("a", tuple(range(1000))), Axis("b", tuple(range(1000)))]))


@pytest.mark.smoke
def test_a_grid_gives_what_the_runs_give_and_runs_nothing_twice(tmp_path: Path) -> None:
    over = ["optimizer.lr=0.01,0.2", "seed=0:2"]
    first = sweep(BASE, over, workers=0, cache=tmp_path / "cache")
    assert (first.ran, first.cached) == (4, 0)
    assert [row.point for row in first.rows] == [{"optimizer.lr": lr, "seed": s} for lr in (0.01, 0.2) for s in (0, 1)]
    alone = plait.run(BASE, seed=1, settings={"optimizer.lr": 0.2}, out=tmp_path / "alone")
    assert first.rows[3].metrics == {k: v if v == v else None for k, v in alone.metrics.items()}
    losses = [row.metrics["task/loss"] for row in first.rows]
    columns, rows = first.table(["task/loss"])
    assert columns == ["optimizer.lr", "runs", "task/loss", "standard error"]
    for position, line in enumerate(rows):
        a, b = losses[2 * position : 2 * position + 2]
        assert a is not None
        assert b is not None
        assert line[:2] == [(0.01, 0.2)[position], 2]
        assert math.isclose(line[2], (a + b) / 2)
        assert math.isclose(line[3], abs(a - b) / 2)  # s / sqrt(2) with s = |a - b| / sqrt(2)
    wider = sweep(BASE, ["optimizer.lr=0.01,0.2", "seed=0:3"], workers=0, cache=tmp_path / "cache")
    assert (wider.ran, wider.cached) == (2, 4)


def test_a_sweep_takes_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BadInput, match="--ray nonsense://address"):
        sweep(BASE, ["optimizer.lr=0.01,0.2"], ray="nonsense://address", cache=tmp_path)


def test_files(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = sweep(BASE, {"optimizer.lr": [0.01, 0.2], "data.noise": [0.1]}, workers=0, cache=tmp_path / "cache")
    files = result.write(tmp_path / "out", parquet=True)
    assert [f.name for f in files] == ["sweep.json", "runs.csv", "runs.parquet", "plot.svg"]
    with (tmp_path / "out" / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    frame = parquet.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    for line, values, row in zip(lines, frame, result.rows, strict=True):
        assert float(line["task/loss"]) == values["task/loss"] == row.metrics["task/loss"]
        assert float(line["optimizer.lr"]) == values["optimizer.lr"] == row.point["optimizer.lr"]
        assert line["status"] == values["status"] == "done"
        assert plait.load_run(values["run"]).finished
    assert [row["point"] for row in document["rows"]] == [row.point for row in result.rows]
    svg = (tmp_path / "out" / "plot.svg").read_text()
    assert svg.count('id="LineCollection') >= 1  # error bars


def test_a_run_that_fails_is_told_and_the_others_are_kept(bowl: dict[str, Any], tmp_path: Path) -> None:
    result = sweep(bowl, ["bowl.fails=false,true", "bowl.x=0.5"], workers=0, cache=tmp_path)
    assert [row.status for row in result.rows] == ["done", "failed"]
    assert "the bowl broke" in result.failed[0].error
    assert result.rows[0].metrics["bowl/depth"] == pytest.approx(0.04 + 4)
    again = sweep(bowl, ["bowl.fails=false,true", "bowl.x=0.5"], workers=0, cache=tmp_path)
    assert (again.ran, again.cached) == (1, 1)


@pytest.mark.parametrize(
    "over, said",
    [
        ([], "needs something to vary"),
        (["bowl.x=0..1"], r"a range 0..1 is for --optimize METRIC"),
        (["bowl.x=0,1", "bowl.x=2"], "given twice"),
        (["bowl.z=1,2"], r"--over bowl.z=1.*unknown key 'z'|plugin bowl: unknown key 'z'"),
        (["bowel.x=1,2"], "neither a table of the recipe nor one of its plugins. Did you mean 'bowl'"),
        (["train.steps=-1"], "train.steps = -1"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(
    bowl: dict[str, Any], tmp_path: Path, over: list[str], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        sweep(bowl, over, workers=0, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_search_finds_the_best_point_and_goes_on(bowl: dict[str, Any], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    first = search(bowl, tmp_path / "cache", 4)
    assert first.direction == "minimize"  # as the metric says
    assert [row.trial for row in first.rows] == [0, 1, 2, 3]
    for row in first.rows:
        x, y = row.point["bowl.x"], row.point["bowl.y"]
        assert row.metrics["bowl/depth@validation"] == pytest.approx((x - 0.3) ** 2 + (y - 2) ** 2)
    # a call that was stopped left a trial: it is finished first
    storage = f"sqlite:///{next((tmp_path / 'sweeps').iterdir())}/study.db"
    study = optuna.load_study(study_name="plait", storage=storage)
    left = study.ask(study.trials[0].distributions)
    second = search(bowl, tmp_path / "cache", 18)
    assert [row.trial for row in second.rows] == list(range(18))
    assert second.rows[left.number].point["bowl.x"] == left.params["bowl.x"]
    assert second.ran <= 14
    best = second.best()
    assert best is not None
    depths = [row.metrics["bowl/depth@validation"] for row in second.rows]
    assert best.summary("bowl/depth@validation").mean == min(d for d in depths if d is not None)
    assert best.point["bowl.y"] == 2
    third = search(bowl, tmp_path / "cache", 18)
    assert third.ran == 0
    assert [row.point for row in third.rows] == [row.point for row in second.rows]
    assert second.notes == ()


def test_a_search_over_values_and_seeds(bowl: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    over = ["bowl.x=0.1,0.3,0.9", "seed=0:2"]
    storage = f"sqlite:///{tmp_path}/mine.db"
    result = sweep(
        bowl,
        over,
        optimize="bowl/height",
        direction="maximize",
        trials=6,
        workers=0,
        cache=tmp_path / "c",
        storage=storage,
    )
    assert [row.point["seed"] for row in result.rows] == [0, 1] * 6
    assert result.best() is not None
    assert "@validation chooses without seeing the test" in result.notes[0]
    with pytest.raises(BadInput, match="is of another sweep"):
        sweep(
            bowl,
            ["bowl.x=0.1,0.2"],
            optimize="bowl/height",
            direction="maximize",
            workers=0,
            cache=tmp_path / "c",
            storage=storage,
        )


def swept(scores: list[list[float | None]], default: dict[str, Any], direction: str = "maximize") -> Sweep:
    rows = [
        Row({"x": x, "seed": seed}, f"{x}-{seed}", "failed" if value is None else "done", {"m": value})
        for x, values in enumerate(scores)
        for seed, value in enumerate(values)
    ]
    return Sweep(("x", "seed"), tuple(rows), 0, 0, 0.0, "m", direction, (), default)


def test_the_best_point_beats_the_recipes_own_by_more_than_the_standard_error() -> None:
    tied = swept([[1.0, 2.0, 3.0], [3.0, 1.0, 4.0]], {"x": 0})
    assert tied.best().point == {"x": 0}
    nominal, gain = tied.tie()
    assert nominal.point == {"x": 1} and gain.mean == pytest.approx(2 / 3) and gain.n == 3
    assert tied.as_dict()["tie"]["point"] == {"x": 1} and tied.as_dict()["best"] == {"x": 0}
    clear = swept([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], {"x": 0})
    assert clear.best().point == {"x": 1} and clear.tie() is None
    assert swept([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], {"x": 0}, "minimize").best().point == {"x": 0}
    assert swept([[1.0, 2.0, 3.0], [3.0, 1.0, 4.0]], {"x": 7}).best().point == {"x": 1}  # its own was not run
    assert swept([[1.0], [2.0]], {"x": 0}).best().point == {"x": 0}  # one seed has no standard error
    assert swept([[1.0, 2.0], [9.0, None]], {"x": 7}).best().point == {"x": 0}  # a run that failed helps no point


def test_a_sweep_knows_the_recipes_own_point(bowl: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    over = ["bowl.x=0.0,0.3", "optimizer.lr=0.05", "seed=0:2"]
    result = sweep(bowl, over, optimize="bowl/depth@validation", trials=8, workers=0, cache=tmp_path / "c")
    assert result.default == {"bowl.x": 0.0, "optimizer.lr": 0.05}
    assert result.best().point == {"bowl.x": 0.3, "optimizer.lr": 0.05} and result.tie() is None


@pytest.mark.parametrize(
    "more, said",
    [
        ({"optimize": "bowl/height"}, "which is better is not known; give --direction"),
        ({"optimize": "bowl/dept"}, "no such metric. Did you mean 'bowl/depth'"),
        ({"optimize": "bowl/depth", "direction": "down"}, "give maximize or minimize"),
        ({"optimize": "bowl/depth", "trials": 0}, "give a number from 1 on"),
        ({"optimize": "bowl/depth", "storage": "nosql://x"}, "--storage nosql://x"),
    ],
)
def test_a_search_that_makes_no_sense(bowl: dict[str, Any], tmp_path: Path, more: dict[str, Any], said: str) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(BadInput, match=said):
        sweep(bowl, ["bowl.x=0..1"], workers=0, cache=tmp_path, **more)


def test_what_is_not_installed_is_said(bowl: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"--optimize needs Optuna: pip install 'plait-experiments\[search\]'"):
        sweep(bowl, ["bowl.x=0..1"], optimize="bowl/depth", cache=tmp_path)
    result = sweep(bowl, ["bowl.x=0,1"], workers=0, cache=tmp_path)
    with pytest.raises(BadInput, match=r"--parquet needs pyarrow: pip install 'plait-experiments\[search\]'"):
        result.write(tmp_path / "out", parquet=True)
    assert (tmp_path / "out" / "runs.csv").is_file()
