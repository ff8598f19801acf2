"""The README's code runs; the commands' output and what bad input gets; what a run reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import plait
from plait.errors import BadInput, Refused
from plait_malletrain.commands import convert, simulate
from plait_malletrain.errors import MalletrainError

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]
SMALL = {"nodes": 48, "hours": 1.0, "policies": "equal,malletrain"}


def test_the_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_a_simulation_gives_the_same_document_twice(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(**SMALL, seeds=2, json=True)  # type: ignore[arg-type]
    first = capsys.readouterr().out
    simulate(**SMALL, seeds=2, json=True)  # type: ignore[arg-type]
    assert capsys.readouterr().out == first
    document = json.loads(first)
    assert document["seeds"] == [0, 1] and len(document["policies"]["malletrain"]) == 2


def test_the_table_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = None
    try:
        import plait_report  # noqa: F401

        page = tmp_path / "page.html"
    except ImportError:
        pass
    simulate(**SMALL, page=page)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "malletrain" in shown and "re-plans" in shown and "for a running job" in shown
    assert page is None or page.read_text(encoding="utf-8").count("<svg") == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"seed": -1}, "--seed -1"),
        ({"policies": ""}, "policies"),
        ({"policies": "equal,best"}, "policies"),
        ({"policies": "equal,equal"}, "one is given twice"),
        ({"horizon": -1.0}, "horizon = -1.0"),
        ({"horizon": float("nan")}, "horizon = nan"),
        ({"workload": "bert"}, "workload = 'bert'"),
        ({"trace": "pbs:x"}, "trace = 'pbs:x'"),
        ({"trace": "swf:none.swf"}, "none.swf: no such file"),
        ({"nodes": 2}, "nodes = 2"),
    ],
)
def test_bad_options_are_said_in_a_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as error:
        simulate(**SMALL | options)  # type: ignore[arg-type]
    assert said in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_convert_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "log.swf").write_text("; MaxNodes: 2\n1 0 0 50 1 -1 -1 1 -1 -1 1\n2 60 0 5 2 -1 -1 2 -1 -1 1\n")
    with pytest.raises(BadInput, match="say what it is"):
        convert(str(tmp_path / "log.swf"), tmp_path / "x.csv")
    with pytest.raises(MalletrainError, match=r"write \.csv or \.parquet"):
        convert(f"swf:{tmp_path / 'log.swf'}", tmp_path / "x.txt")
    convert(f"swf:{tmp_path / 'log.swf'}", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "time,node,idle"


def test_a_run_reports_the_simulation_and_trains_as_without_it(tmp_path: Path) -> None:
    settings = {"data.name": "tiny-images", "model.name": "tiny-cnn"}
    options = {"nodes": 48, "hours": 1.0, "policies": ["equal", "malletrain", "oracle"]}
    runs = [
        plait.run(settings=settings, steps=2, out=tmp_path / "plain"),
        plait.run(plugins={"malletrain": options}, settings=settings, steps=2, out=tmp_path / "beside"),
    ]
    first, second = ((run.export / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    assert {"malletrain/over_equal", "malletrain/over_oracle", "malletrain/nodes_per_job"} <= set(runs[1].metrics)


def test_a_network_for_each_participant_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("plait_dbadfl")
    with pytest.raises(Refused, match="malletrain"):
        plait.run(plugins={"malletrain": {}, "dbadfl": {}}, out=tmp_path / "refused")
