"""What surrounds a command: streams that cannot be written, the umask, long names, and the files where the user
stands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
PLAIT = f"{shlex.quote(sys.executable)} -m plait_cli"
LONG = "x" * 300


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A line of bash in ``tmp_path``."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
            check=False,
        )

    return run


# ---- streams -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", ["plugins", "plugins --json", "info recipe", "--help", "--version"])
@pytest.mark.parametrize(("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_an_answer_that_cannot_be_written_is_a_line_and_exit_code_1(
    shell: Any, arguments: str, where: str, why: str
) -> None:
    ended = shell(f"{PLAIT} {arguments} {where}")
    assert ended.returncode == 1
    assert ended.stderr == f"error: stdout could not be written: {why}.\n"


def test_an_error_keeps_its_exit_code_whatever_the_streams_are(shell: Any) -> None:
    for where in (">/dev/full", ">&-", ">&- 2>&-", "2>/dev/full", "2>&-", "<&-"):
        ended = shell(f"{PLAIT} plan -p no-such-plugin --json {where}")
        assert ended.returncode == 2, where
        if "2>" not in where:
            assert ended.stderr.startswith("error: no plugin named 'no-such-plugin'"), where
            assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr
        if ">&-" not in where.replace("2>&-", "") and ">/dev/full" not in where.replace("2>/dev/full", ""):
            assert json.loads(ended.stdout)["error"]["exit_code"] == 2, where


def test_a_reader_that_leaves_is_no_fault(shell: Any) -> None:
    ended = shell(f"{PLAIT} info recipe --json | true; {PLAIT} info recipe | head -n 1")
    assert ended.stdout.startswith("recipe (recipe)") and ended.stderr == ""


def test_a_run_without_streams_is_complete(shell: Any, tmp_path: Path) -> None:
    ended = shell(f"{PLAIT} run --steps 1 --set data.train=32 --device cpu --out r --json <&- >&- 2>&-")
    assert ended.returncode == 1  # nobody was told, which is all that went wrong
    events = (tmp_path / "r" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in events][-1] == "result"


def test_letters_that_a_stream_cannot_hold(shell: Any) -> None:
    for arguments in ("plan -p été", "plan -p été --json"):
        ended = shell(f"PYTHONIOENCODING=ascii {PLAIT} {arguments}")
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "'été'" in json.loads(ended.stdout)["error"]["message"]


# ---- names -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", f"{LONG}.toml"],
        ["run", f"{LONG}.toml"],
        ["run", "--out", LONG],
        ["run", "--out", f"{LONG}/below"],
        ["resume", LONG],
        ["report", LONG],
        ["runs", LONG],
        ["compare", LONG, LONG],
        ["run", "--out", "round/r"],
        ["runs", "round"],
        ["resume", "file/r"],
        ["run", "--out", "file/r"],
        ["run", "--out", LONG * 20],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_path_that_cannot_be_looked_up_is_a_line_and_exit_code_2(
    call: Call, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "file").write_text("", encoding="utf-8")
    answer = call(*arguments)
    assert answer.code == 2, answer.err
    assert len(answer.err.splitlines()) == 1 and answer.err.startswith("error: ") and len(answer.err) < 1000
    assert call(*arguments, "--json").document["error"]["exit_code"] == 2


# ---- the user's folder -------------------------------------------------------------------------------------------
DATA = """
import random
import statistics
import torch
from plait import Data, DataInfo, TensorSplit

print("loading", statistics.fmean([1.0]), random.__name__)

def load():
    split = lambda: TensorSplit({"input": torch.rand(32, 1, 8, 8), "label": torch.arange(32) % 4})
    info = DataInfo(task="classification", input_shape=(1, 8, 8), num_classes=4)
    return Data(train=split(), validation=split(), test=split(), info=info)
"""


@pytest.mark.parametrize("processes", ["", "--nproc 2"])
def test_the_files_of_the_user_hide_no_module_and_a_run_follows_the_umask(
    shell: Any, tmp_path: Path, processes: str
) -> None:
    for name in ("statistics", "random", "logging", "tempfile", "torch", "rich"):
        (tmp_path / f"{name}.py").write_text("raise SystemError('the file of the user')\n", encoding="utf-8")
    (tmp_path / "mydata.py").write_text(DATA, encoding="utf-8")
    given = f"--steps 1 --data mydata:load --device cpu --out r --json {processes}"
    ended = shell(f"umask 027; {PLAIT} run {given}")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["run"] == "r" and "loading 1.0 random" in ended.stderr
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.suffix for path in files} >= {".safetensors", ".toml", ".json", ".jsonl", ".html"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o640)}


def test_a_file_of_the_user_that_is_hidden_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("def load(): ...\n", encoding="utf-8")
    answer = call("run", "--steps", "1", "--data", "statistics:load")
    assert answer.code == 2 and f"statistics.py hides your own statistics.py: give that another name{os.extsep}" in (
        answer.err
    )
