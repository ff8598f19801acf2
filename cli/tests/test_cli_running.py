"""run, resume, runs, compare, report; and Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
QUICK = ("--set", "data.train=32", "--set", "train.batch_size=16", "--device", "cpu")


def test_run_document(call: Call, tmp_path: Path) -> None:
    answer = call("run", "--epochs", "1", *QUICK, "--out", "r", "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert {"run", "metrics", "export", "report"} <= set(document)
    assert document["run"] == "r" and document["export"] == "r/export" and "task/accuracy" in document["metrics"]
    assert (tmp_path / "r" / "export" / "model.safetensors").exists()


def test_run_text_resume_of_a_finished_run_and_report(call: Call) -> None:
    answer = call("run", "--steps", "2", *QUICK, "--out", "odd[/] name")
    assert answer.code == 0, answer.err
    assert "task/accuracy" in answer.out and "%" in answer.out and "run:    odd[/] name" in answer.out
    again = call("resume", "odd[/] name")
    assert again.code == 0 and "had finished already" in again.err and "task/accuracy" in again.out
    assert call("resume", "odd[/] name", "--checkpoint", "step-7").code == 2
    report = call("report", "odd[/] name", "--json")
    assert report.document == {"run": "odd[/] name", "report": "odd[/] name/report.html"}


def test_a_recipe_file_and_the_default_directory(call: Call, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(
        '[train]\nsteps = 1\n[data]\nname = "tiny-images"\ntrain = 32\n', encoding="utf-8"
    )
    document = call("run", "small.toml", "--seed", "5", "--json").document
    assert document["run"].startswith("runs/") and document["run"].endswith("-plain-s5")


def test_seeds_then_runs_then_compare(call: Call) -> None:
    for name, lr in (("slow", "0.001"), ("fast", "0.1")):
        answer = call(
            "run", "--steps", "2", *QUICK, "--seeds", "2", "--set", f"optimizer.lr={lr}", "--out", name, "--json"
        )
        assert answer.code == 0, answer.err
        document = answer.document
        assert [run["seed"] for run in document["runs"]] == [0, 1]
        values = [run["metrics"]["task/loss"] for run in document["runs"]]
        figures = document["summary"]["task/loss"]
        assert figures["mean"] == pytest.approx(sum(values) / 2)
        assert figures["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert call("run", "--steps", "1", *QUICK, "--seeds", "2", "--out", "fast").code == 2

    listed = call("runs", ".", "--json").document
    assert [Path(run["run"]).as_posix() for run in listed] == [
        "fast/seed-0",
        "fast/seed-1",
        "slow/seed-0",
        "slow/seed-1",
    ]
    assert {run["status"] for run in listed} == {"finished"} and listed[1]["seed"] == 1
    assert "slow/seed-1" in call("runs", ".").out

    both = call("compare", "slow", "fast", "--json").document
    assert [group["name"] for group in both["groups"]] == ["slow", "fast"]
    assert [group["differs"] for group in both["groups"]] == [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.1}]
    loss = both["metrics"]["task/loss"]
    gap = loss["difference"]
    assert gap["paired"] is True and gap["n"] == 2
    assert gap["mean"] == pytest.approx(loss["groups"]["fast"]["mean"] - loss["groups"]["slow"]["mean"])
    text = call("compare", "slow", "fast")
    assert text.code == 0 and "paired by seed (2 pair(s))" in text.out and "±" in text.out
    assert call("compare", "slow/seed-0").code == 2
    assert call("run", "--steps", "1", *QUICK, "--seeds", "1", "--out", "one").code == 0


def test_runs_in_every_state(call: Call, tmp_path: Path) -> None:
    from filelock import FileLock

    def make(name: str, recipe: str = "seed = 3\n", events: str = "") -> Path:
        folder = tmp_path / "all" / name
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        (folder / "metrics.jsonl").write_text(events, encoding="utf-8")
        return folder

    make("cut", events='{"event": "scalars", "step": 4}\n{"event": "sca')
    make("failed", events='{"event": "failed", "error": "step 3: the loss is nan"}\n7\n')
    make("damaged", recipe="seed = [\n")
    detail = {"value": None, "unit": "", "better": "higher", "note": ""}
    make("done", events=json.dumps({"event": "result", "step": 9, "details": {"task/accuracy": detail}}) + "\n")
    with FileLock(make("busy") / ".lock"):
        answer = call("runs", "all", "--json")
        assert call("resume", "all/busy").code == 2
    by_name = {Path(run["run"]).name: run for run in answer.document}
    states = {name: run["status"] for name, run in by_name.items()}
    wanted = {"cut": "interrupted", "failed": "failed", "damaged": "damaged", "done": "finished", "busy": "running"}
    assert states == wanted
    assert by_name["cut"]["step"] == 4 and "loss is nan" in by_name["failed"]["reason"]
    assert call("runs", "all").code == 0
    refused = call("compare", "all/cut", "all/done")
    assert refused.code == 2 and "plait resume all/cut" in refused.err


def test_runs_compare_and_report_on_an_object_store(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    store = f"file://{tmp_path}/store"
    for lr in ("0.01", "0.2"):
        answer = call("run", "--steps", "2", *QUICK, "--set", f"optimizer.lr={lr}", "--out", f"{store}/lr-{lr}")
        assert answer.code == 0, answer.err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    listed = call("runs", store, "--json").document
    assert [(listed_run["run"], listed_run["status"]) for listed_run in listed] == [
        (f"{store}/lr-0.01", "finished"),
        (f"{store}/lr-0.2", "finished"),
    ]
    compared = call("compare", f"{store}/lr-0.01", f"{store}/lr-0.2", "--json")
    assert compared.code == 0, compared.err
    assert [group["name"] for group in compared.document["groups"]] == ["lr-0.01", "lr-0.2"]
    report = call("report", f"{store}/lr-0.2", "--json")
    assert report.document["run"] == f"{store}/lr-0.2" and Path(report.document["report"]).is_file()
    nothing = call("runs", f"{store}/nothing")
    assert nothing.code == 0 and f"no runs in {store}/nothing" in nothing.out
    refused = call("runs", "nonsense://bucket/runs")
    assert refused.code == 2 and "nonsense" in refused.err and "Traceback" not in refused.err


def test_a_failing_run_is_code_1_and_undefined_is_null(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home_made.py").write_text(
        "import torch\n"
        "class Bad(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(); self.w = torch.nn.Parameter(torch.ones(64, num_classes))\n"
        "    def forward(self, x): return x.flatten(1) @ self.w * float('nan')\n"
        "class Worse(Bad):\n"
        "    def forward(self, x): raise RuntimeError('shapes [/do] not fit')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = call("run", "--steps", "1", *QUICK, "--model", "home_made:Bad", "--out", "nan", "--json")
    assert answer.code == 1 and answer.document["error"]["type"] == "RunFailed" and "step 1" in answer.err
    assert call("runs", "nan", "--json").document[0]["status"] == "failed"
    answer = call("run", "--steps", "1", *QUICK, "--model", "home_made:Worse", "--out", "worse")
    assert "tried before the training: RuntimeError: shapes [/do] not fit." in answer.err
    assert "\n  It comes from your own file home_made.py, line 7.\n" in answer.err
    assert answer.code == 2 and "Traceback" not in answer.err and not (tmp_path / "worse").exists()
    untrained = call("run", "--steps", "0", *QUICK, "--model", "home_made:Bad", "--out", "zero", "--json")
    assert untrained.code == 0 and untrained.document["metrics"]["task/loss"] is None


def test_ctrl_c_writes_a_checkpoint_and_resume_ends_well(
    program: Call, environment: dict[str, str], tmp_path: Path
) -> None:

    command = [sys.executable, "-m", "plait_cli", "run", "--steps", "20000", *QUICK, "--out", "long", "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    events = tmp_path / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (events.exists() and "scalars" in events.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "plait resume long" in err and "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 130
    step = int(next(iter((tmp_path / "long" / "checkpoints").glob("step-*"))).stem.removeprefix("step-"))
    # the rest of 20000 steps would take a minute: shorten the budget to what is done and a little more
    recipe = tmp_path / "long" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("20000", str(step + 20)), encoding="utf-8")
    again = program("resume", "long", "--json")
    assert again.code == 0, again.err
    assert math.isfinite(again.document["metrics"]["task/accuracy"])


def test_ctrl_c_before_the_first_step(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import plait

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(plait, "run", stopped)
    answer = call("run", "--steps", "1", "--out", "never")
    assert answer.code == 130 and "nothing to resume" in answer.err


def test_the_result_table_has_a_column_for_the_exported_model() -> None:
    from plait_cli import output

    details = {
        "x/size": {"value": 2000.0, "unit": "MACs", "better": "lower", "note": "a [note]"},
        "x/size@export": {"value": 1000.5, "unit": "MACs", "better": "lower", "note": ""},
        "x/other": {"value": None, "unit": "", "better": "neither", "note": ""},
    }
    columns, rows = output.metric_rows(details)
    assert columns == ["metric", "value", "exported", "unit", "better", "note"]
    assert rows == [["x/size", "2,000", "1,000.5", "MACs", "lower", "a [note]"], ["x/other", "-", "", "", "", ""]]
