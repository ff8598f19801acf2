"""The HTML report: complete, self-contained, deterministic, and safe with whatever a run directory holds."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.errors import RunFailed
from plait.storage import places
from plait.storage.directory import RunDirectory
from plait_report.charts import Chart, Series, curves, from_plot
from plait_report.figures import PALETTE, downsample, draw
from plait_report.formatting import duration, number, one_line, printable
from plait_report.page import write

Call = Callable[..., Any]
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "<script>alert('x')</script>\"&$x_{\\frac]]>\u0000\ud800"
RECIPE = """\
seed = 3
device = "cpu"
[data]
name = "tiny-images"
[train]
steps = 40
[plugins.chase]
ratio = 0.5
[plugins.fairsam]
"""


class Page(HTMLParser):
    """Parses strictly enough: every element closed in order, ids unique, references found, nothing fetched."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []
        assert len(self.ids) == len(set(self.ids))
        assert {r.removeprefix("#") for r in self.references} <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in self.stack for tag in ("td", "th")):
            self.cells[-1] += data

    def _see(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base")
        self.tags.append(tag)
        for name, value in attrs:
            value = value or ""
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert value.startswith("#")
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value)
            if name == "id":
                self.ids.append(value)


def parsed(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!["']?\#)|url\((?!\#)|@import""", text)
    return text, Page(text)


def recorded(
    path: Path, events: list[dict[str, Any]], recipe: str = RECIPE, environment: str = '{"python": "3.11"}'
) -> Path:
    """A run directory with these events, written as the recorder does."""
    path.mkdir(parents=True)
    directory = RunDirectory(path)
    directory.recipe_file.write_text(recipe, encoding="utf-8")
    directory.environment_file.write_text(environment, encoding="utf-8")
    lines = [json.dumps({"time": 1_700_000_000 + i, **event}) for i, event in enumerate(events)]
    directory.events_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def scalars(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "scalars", "step": step, "values": {k.replace("__", "/"): v for k, v in values.items()}}


def metric(value: float | None, unit: str = "", better: str = "neither", note: str = "") -> dict[str, Any]:
    return {"value": value, "unit": unit, "better": better, "note": note}


PLAN = {
    "event": "plan",
    "order": {
        "optimizer_step": ["fairsam", "chase"],
        "evaluate": ["task", "chase", "fairsam"],
        "update_masks": ["chase"],
    },
    "reasons": {"optimizer_step": ["fairsam after chase: declared"], "evaluate": ["the recipe's order"]},
    "ownership": {"chase": ["weight masks of conv*", "weight masks of linear*"]},
    "unchecked": ["fairsam needs field:group: checked when the data and the model are loaded"],
    "data": "tiny-images",
    "model": "tiny-cnn",
}


def rich(steps: int = 3000) -> list[dict[str, Any]]:
    """The events of a run that uses everything."""
    events: list[dict[str, Any]] = [PLAN, {"event": "note", "text": "cifar-10 was not here; tiny-images are used"}]
    for step in range(1, steps + 1):
        loss = 2.3 * math.exp(-step / 800) + 0.12 * math.sin(step * 12.9898) * math.exp(-step / 2500)
        values = {"train__loss": loss, "train__lr": 0.05 * (1 + math.cos(math.pi * step / steps)) / 2}
        values["fairsam__sharpness"] = 0.4 + 0.2 * math.cos(step / 300)
        events.append(scalars(step, **values))
        if step % 250 == 0:
            shares = {f"chase__kept__conv{i}": 1 - step / steps * (0.2 + 0.06 * i) for i in range(10)}
            accuracy = None if step == 1000 else 90 - 60 * math.exp(-step / 900)
            events.append(scalars(step, validation__loss=loss + 0.1, validation__accuracy=accuracy, **shares))
            events.append({"event": "checkpoint", "step": step, "file": f"step-{step:09d}.safetensors"})
    names = ["clean", "shot_noise 1", "shot_noise 3", "shot_noise 5", "gaussian blur"]
    details = {
        "task/accuracy": metric(87.34, "%", "higher"),
        "task/loss": metric(0.4071, "", "lower"),
        "chase/macs": metric(41_556_992.0, "MACs", "lower", "of one 32x32 image"),
        "chase/sparsity": metric(None, "%", "higher", "undefined before the first cut"),
        "fairsam/worst group accuracy": metric(71.0, "%", "higher"),
        "task/accuracy@export": metric(87.3, "%", "higher"),
        "chase/macs@export": metric(20_778_496.0, "MACs", "lower"),
    }
    rows = [[n, 90.0 - 7 * i, 80.5 - 9 * i, None if i == 4 else 1200 + i] for i, n in enumerate(names)]
    tables = {
        "fairsam/groups": {"title": "Accuracy by group", "columns": ["view", "group 0", "group 1", "n"], "rows": rows}
    }
    tables["fairsam/groups@export"] = tables["fairsam/groups"]
    pairs = {"group 0": [names, [90, 83, 76, 69, 62]], "group 1": [names, [80.5, 71, 62, 53, None]]}
    layers = [f"features.{i}.conv.weight" for i in range(18)]
    tradeoff = {"chase": [[0, 0.5, 0.9, 0.99], [88, 87.5, 85, None]], "dense": [[0, 0.5, 0.9, 0.99], [88, 84, 70, 31]]}
    plots = {
        "fairsam/by view": {"title": "Accuracy by view", "x": "", "y": "accuracy (%)", "series": pairs, "kind": "bar"},
        "chase/kept": {
            "title": "Channels kept",
            "x": "layer",
            "y": "share",
            "series": {"kept": [layers, [1 / (1 + i % 7) for i in range(18)]]},
            "kind": "bar",
        },
        "chase/tradeoff": {"title": "Accuracy over sparsity", "x": "sparsity", "y": "accuracy (%)", "series": tradeoff},
    }
    return [
        *events,
        {"event": "selected", "step": 2750, "score": 87.9},
        {"event": "result", "step": steps, "details": details, "tables": tables, "plots": plots},
    ]


# ---- real runs ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> plait.Run:
    """A finished run of the built-in model on the built-in data."""
    return plait.run(epochs=3, out=tmp_path_factory.mktemp("runs") / "r")


@pytest.mark.smoke
def test_of_a_real_run(run: plait.Run) -> None:
    report = run.artifacts["report"]
    assert report == run.path / "report.html"
    first = report.read_bytes()
    text, page = parsed(write(run.path))
    assert report.read_bytes() == first
    assert "finished at step 12" in text
    for shown in (
        "accuracy",
        "loss",
        number(run.metrics["task/accuracy"]),
        "tiny-cnn",
        "evaluate",
        "batch_size = 64",
        "torch",
    ):
        assert shown in text
    assert page.tags.count("svg") == 4  # train/loss, train/lr, validation/loss, validation/accuracy


@pytest.mark.smoke
def test_the_command(run: plait.Run, call: Call) -> None:
    page = run.path / "report.html"
    page.unlink()
    answer = call("report", str(run.path))
    assert answer.code == 0 and answer.out == f"{page}\n" and page.is_file()
    assert call("report", str(run.path), "--json").document == {"run": str(run.path), "report": str(page)}
    nowhere = call("report", "nowhere")
    assert nowhere.code == 2 and "nowhere is not a run directory" in nowhere.err and nowhere.out == ""


def test_the_command_for_a_run_on_an_object_store(
    run: plait.Run, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store/r"
    published = places.at(url)
    shutil.copytree(run.path, published.path)
    (published.path / "report.html").unlink()
    published.publish()
    document = call("report", url, "--json").document
    assert document["run"] == places.at(url).shown and Path(document["report"]).is_file()
    assert [file.name.split(".")[0] for file in (tmp_path / "store/r").glob("*.html")] == ["report"]


# ---- recorded ones ---------------------------------------------------------------------------------------------------
def test_everything_of_a_rich_run_is_there(tmp_path: Path) -> None:
    text, page = parsed(write(recorded(tmp_path / "rich", rich())))
    cells = [" ".join(c.split()) for c in page.cells]
    assert "chase + fairsam" in text
    assert "finished at step 3,000" in text
    assert cells[cells.index("accuracy") + 1 :][:4] == ["87.34", "87.3", "%", "↑"]
    row = next(i for i, c in enumerate(cells) if c.startswith("sparsity"))
    assert cells[row + 1 : row + 5] == ["undefined", "", "%", "↑"]
    row = next(i for i, c in enumerate(cells) if c.startswith("macs"))
    assert cells[row + 1 : row + 4] == ["41,556,992", "20,778,496", "MACs"]
    for shown in (
        "Accuracy by group (exported model)",
        "fairsam → chase",
        "fairsam after chase: declared",
        "weight masks of conv*",
        "cifar-10 was not here",
        "The weights of step 2,750 were selected",
        "1 undefined value not drawn",
        "ratio = 0.5",
        "step-000003000.safetensors",
    ):
        assert shown in text
    # loss, lr, sharpness, validation x2, kept (ten series in one), and three plots
    assert page.tags.count("svg") == 9
    assert "shot_noise 5" in text
    assert len(text) < 400_000


def test_is_deterministic_and_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    path = recorded(tmp_path / "r", rich(300))
    first = write(path).read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert write(path).read_bytes() == first
        assert dict(matplotlib.rcParams) == before
    assert [file.name for file in path.iterdir() if file.name.endswith(".tmp")] == []
    code = f"""
from pathlib import Path
from plait_report.page import write
write(Path({str(path)!r}))
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    )
    assert (path / "report.html").read_bytes() == first


def test_hostile_names_are_text(tmp_path: Path) -> None:
    bad = HOSTILE
    plot = {"title": bad, "x": bad, "y": bad, "series": {bad: [[bad, "b"], [1, 2]], "_b": [[bad], [2]]}, "kind": "bar"}
    events: list[dict[str, Any]] = [
        {
            "event": "plan",
            "order": {bad: [bad]},
            "reasons": {bad: [bad]},
            "ownership": {bad: [bad]},
            "unchecked": [bad],
            "data": bad,
        },
        {"event": "note", "text": bad},
        {"event": bad, "step": bad, bad: bad},
        scalars(1, **{bad: 1.0, f"p__{bad}": 2.0, f"p__{bad}__a": 3.0, f"p__{bad}__b": 3.0}),
        {
            "event": "result",
            "step": 1,
            "details": {bad: {"value": bad, "unit": bad, "better": bad, "note": bad}},
            "tables": {bad: {"title": bad, "columns": [bad], "rows": [[bad]]}},
            "plots": {bad: plot, f"{bad}2": plot | {"kind": "line"}},
        },
        {"event": "failed", "error": bad},
    ]
    text, page = parsed(write(recorded(tmp_path / "h", events, f"# {bad[:30]}", json.dumps({bad: bad}))))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    assert "\u0000" not in text
    assert page.tags.count("svg") == 5
    assert text.count('style="') == text.count(' style="')


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "running"),
        ([PLAN], "running"),
        ([PLAN, scalars(7, train__loss=1.0)], "running at step 7"),
        ([PLAN, scalars(7, train__loss=1.0), {"event": "interrupted", "step": 9}], "interrupted at step 9"),
        ([PLAN, scalars(7, train__loss=1.0), {"event": "failed", "error": "loss is not finite"}], "failed at step 7"),
        ([PLAN, {"event": "interrupted", "step": 9}, {"event": "resumed", "step": 9}], "running at step 9"),
        (
            [PLAN, {"event": "interrupted", "step": 9}, {"event": "result", "step": 40, "details": {}}],
            "finished at step 40",
        ),
    ],
)
def test_status(tmp_path: Path, events: list[dict[str, Any]], status: str) -> None:
    text, _ = parsed(write(recorded(tmp_path / "r", events)))
    badge = re.search(r'class="badge \w+">([^<]*)<', text)
    assert badge is not None
    assert badge.group(1) == status
    assert ("loss is not finite" in text) == status.startswith("failed")
    assert ("plait resume r" in text) == (not status.startswith("finished"))
    if not status.startswith("finished"):
        assert "No result yet" in text
    if not any(e["event"] == "scalars" for e in events):
        assert "No scalar was logged" in text


def test_undefined_is_never_zero(tmp_path: Path) -> None:
    nan = float("nan")
    plots = {
        "p/bars": {"title": "Bars", "x": "", "y": "", "series": {"s": [["a", "b"], [None, 2.0]]}, "kind": "bar"},
        "p/none": {"title": "None", "x": "", "y": "", "series": {"s": [[0, 1], [None, nan]]}, "kind": "line"},
    }
    tables = {"p/t": {"title": "T", "columns": ["a", "b", "c"], "rows": [[None, nan, 0.0]]}}
    details = {"p/m": metric(None), "p/n": metric(nan), "p/inf": metric(math.inf), "p/zero": metric(0.0)}
    events = [
        scalars(1, train__loss=None),
        scalars(2, train__loss=nan),
        {"event": "result", "step": 2, "details": details},
    ]
    events[-1] |= {"tables": tables, "plots": plots}
    text, page = parsed(write(recorded(tmp_path / "r", events)))
    cells = page.cells
    for name, shown in (("m", "undefined"), ("n", "undefined"), ("inf", "undefined"), ("zero", "0")):
        assert cells[cells.index(name) + 1] == shown
    assert cells[cells.index("c") + 1 :][:3] == ["undefined", "undefined", "0"]
    assert text.count("every value is undefined") == 2
    assert "last undefined" in text


def test_damaged_directories(tmp_path: Path) -> None:
    path = recorded(tmp_path / "r", rich(3), recipe="not = = toml", environment="{")
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('5\n[1]\nnull\n{"event": "scalars"}\n{"event": "scalars", "step": "x", "values": 3}\n{"event": "res')
    text, _ = parsed(write(path))
    assert "not = = toml" in text
    assert "Plain training" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    text, _ = parsed(write(empty))
    assert "No recipe was recorded" in text
    odd = {"p/a": {"series": 3}, "p/b": {"series": {"s": [[1], [1, 2]]}}, "p/c": {"series": {"s": 1}}, "p/d": 4}
    result = {"event": "result", "step": "?", "details": {"p/x": 3}, "tables": {"p/t": {"rows": [3]}}, "plots": odd}
    text, _ = parsed(write(recorded(tmp_path / "odd", [result])))
    assert text.count("could not be drawn") == 4
    assert "1 x values and 2 y values" in text


def test_many_scalars_stay_quick(tmp_path: Path) -> None:
    events = [scalars(1, **{f"p__v{i}": i for i in range(70)})]
    text, page = parsed(write(recorded(tmp_path / "r", events)))
    assert page.tags.count("svg") == 60
    assert text.count("Not drawn") == 10
    assert "last 69" in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(tmp_path / "r", [PLAN])
    before = write(path).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        write(path)
    assert (path / "report.html").read_bytes() == before
    assert sorted(file.name for file in path.iterdir()) == [
        "environment.json",
        "metrics.jsonl",
        "recipe.toml",
        "report.html",
    ]


def test_imports_stay_light(tmp_path: Path) -> None:
    charted = recorded(tmp_path / "r", [PLAN, scalars(1, train__loss=1.0)])
    plain = recorded(tmp_path / "plain", [PLAN])
    code = f"""
import sys
from pathlib import Path
import plait_report.plugin
from plait_report import charts, formatting
assert not {{"torch", "matplotlib", "jinja2", "numpy"}} & set(sys.modules)
from plait_report.page import write
write(Path({str(plain)!r}))
assert "matplotlib" not in sys.modules
write(Path({str(charted)!r}))
assert "matplotlib" in sys.modules
assert not {{"torch", "matplotlib.pyplot"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- parts -------------------------------------------------------------------------------------------------------
def test_downsampling_keeps_ends_and_extremes() -> None:
    x = np.arange(50_000, dtype=float)
    y = np.sin(x)
    y[12_345], y[40_001], y[7_000:7_500] = 9.0, -9.0, np.nan
    fewer_x, fewer_y = downsample(x, y)
    assert len(fewer_x) <= 1000
    assert (fewer_x[0], fewer_x[-1]) == (0, 49_999)
    assert np.all(np.diff(fewer_x) > 0)
    assert (np.nanmax(fewer_y), np.nanmin(fewer_y)) == (9.0, -9.0)
    assert np.isnan(fewer_y).any()
    same_x, same_y = downsample(x[:1000], y[:1000])
    assert len(same_x) == len(same_y) == 1000


@pytest.mark.parametrize(
    "series", [(), (Series("s", (), ()),), (Series("s", (1.0,), (2.0,)),), (Series("s", (0, 1), (1e300, -1e300)),)]
)
@pytest.mark.parametrize("kind", ["line", "bar"])
def test_odd_charts_are_drawn(series: tuple[Series, ...], kind: str) -> None:
    chart = Chart("t", "x", "y", series, kind, ("a", "b") if kind == "bar" else None)
    assert Page(draw(chart, "k")).tags[0] == "svg"


def test_figures_take_their_colours_from_the_page() -> None:
    many = tuple(Series(f"s{i}", (0.0, 1.0), (float(i), i + 1.0)) for i in range(10))
    svg = draw(Chart("t", "x", "y", many), "k")
    assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
    assert {f"var(--{name})" for name in PALETTE} == set(re.findall(r"var\(--\w+\)", svg))
    assert list(PALETTE) == ["muted", "grid", *(f"s{i}" for i in range(8))]
    assert "http" not in svg
    assert "<metadata" not in svg


def test_plots_with_names_on_the_x_axis() -> None:
    chart = from_plot({"title": "t", "series": {"a": [["low", "high"], [1, 2]], "b": [["high", "top"], [3, None]]}})
    assert chart.categories == ("low", "high", "top")
    assert chart.series[1].x == (1.0, 2.0)
    assert chart.values() == (["x", "a", "b"], [["low", "1", ""], ["high", "2", "3"], ["top", "", "undefined"]])
    assert chart.caption == "1 undefined value not drawn"


def test_a_graph_is_drawn_as_places_and_links() -> None:
    plot = {"title": "who", "kind": "graph", "series": {"a": [[0.0, 1.0], [0.0, 1.0]], "b": [[1.0], [0.0]]}}
    links = [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]]
    chart = from_plot({**plot, "links": links})
    assert chart.kind == "graph" and chart.categories is None and len(chart.links) == 2
    assert chart.values() == (["", "x", "y"], [["a", "0", "0"], ["a", "1", "1"], ["b", "1", "0"]])
    bare, drawn = draw(from_plot(plot), "k"), draw(chart, "k")
    # two markers of the first series, one of the second; a path for every link
    assert drawn.count("var(--s0)") > 0 and drawn.count("var(--s1)") > 0
    assert drawn.count("var(--grid)") - bare.count("var(--grid)") == 2
    assert "tick" not in drawn
    with pytest.raises(ValueError, match="not four numbers"):
        from_plot({**plot, "links": [[0.0, 1.0]]})


def test_scalars_of_one_parent_share_a_chart() -> None:
    charts = curves({"train/loss": [(1, 3.0), (2, 1.0)], "p/kept/a": [(1, 1.0)], "p/kept/b": [(1, 2.0)]})
    assert [(c.title, [s.name for s in c.series]) for c in charts] == [
        ("train/loss", ["train/loss"]),
        ("p/kept", ["a", "b"]),
    ]
    assert charts[0].caption == "last 1 · lowest 1 at step 2 · highest 3 at step 1"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "undefined"),
        (float("nan"), "undefined"),
        (-math.inf, "undefined"),
        (10**400, "undefined"),
        (0, "0"),
        (-0.0, "0"),
        (1234567, "1,234,567"),
        (12345.67, "12,345.7"),
        (87.3456, "87.35"),
        (0.00001234, "1.234e-05"),
        (True, "undefined"),
    ],
)
def test_numbers(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_small_words() -> None:
    assert [duration(s) for s in (4.24, 200, 7500, float("nan"))] == ["4.2 s", "3 min 20 s", "2 h 5 min", "undefined"]
    assert one_line("a\n  b\tcdef", 5) == "a b …"
    assert printable("a\x00\ud800b") == "a\ufffd\ufffdb"
