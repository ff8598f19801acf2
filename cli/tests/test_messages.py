"""Errors that plait did not raise on purpose: whose code raised them, in which file and line, and why."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.declare.recipe import Recipe
from plait_cli import errors, origin

Call = Callable[..., Any]
QUICK = ("--steps", "1", "--device", "cpu", "--set", "train.batch_size=16")


TWIST = """
def twist(turns: int = 0) -> None:
    print(7 // turns)
"""


def raised(action: Callable[[], object]) -> BaseException:
    """What an action raises."""
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


@pytest.fixture
def home_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A module of the user's own in the folder where the user stands."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return path

    return make


# ---- whose -------------------------------------------------------------------------------------------------------
def test_the_users_own_file_also_through_torch(tmp_path: Path, home_made: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    home_made("own_nets", "import torch\n\ndef multiply():\n    return torch.nn.Linear(3, 4)(torch.ones(2, 5))\n")
    import own_nets  # type: ignore[import-not-found]

    told = errors.unexpected(raised(own_nets.multiply))
    assert told.startswith("raised in your own file own_nets.py, line 4: RuntimeError: mat1 and mat2 shapes cannot")


def test_a_plugin_is_named_with_its_distribution(program: Call, package: Any) -> None:
    folder = package(
        "plait-curly",
        {"curly": "curly_plugin:Curly"},
        curly_plugin="import plait\n\nclass Curly(plait.Plugin):\n    name = 'curly'\n    contract = 1\n"
        "    @plait.hookimpl\n    def commands(self):\n        return {'twist': 'curly_commands:twist'}\n",
        curly_commands=TWIST,
    )
    failed = program("curly", "twist", packages=(folder,))
    assert failed.code == 1
    said = "plugin 'curly' (plait-curly 0.3) raised ZeroDivisionError: integer division or modulo by zero"
    assert f"error: {said} (in curly_commands.py, line 3). Please tell its author." in failed.err


def test_a_library_and_who_called_it(tmp_path: Path, home_made: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    import rich.text

    home_made("own_text", "import rich.text\n\ndef style():\n    rich.text.Text.from_markup('[/none]')\n")
    import own_text  # type: ignore[import-not-found]

    told = errors.unexpected(raised(own_text.style))
    assert told.startswith("raised in your own file own_text.py, line 4: rich ") and "MarkupError: " in told
    owner = origin.owner_of(str(rich.text.__file__))
    assert owner.kind == "library" and owner.name.startswith("rich ")


def test_plait_itself_and_what_it_was_given(tmp_path: Path, home_made: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    import torch

    from plait.data import DataInfo
    from plait.data.streams import in_order
    from plait.training.objectives import default_objective

    told = errors.unexpected(raised(lambda: next(in_order(None, 4))))  # type: ignore[arg-type]
    assert "TypeError: " in told and "(in plait/data/streams.py, line " in told and "a bug of plait" in told
    info = DataInfo(task="classification", input_shape=(1,), num_classes=2)
    told = errors.unexpected(raised(lambda: default_objective(info, torch.ones(3, 2), {"label": torch.zeros(3)})))
    assert told.startswith("torch raised ") and "(in plait/" in told, told


def test_memory_and_lost_loader_processes_are_nobodys_bug() -> None:
    assert errors.unexpected(MemoryError()).startswith("out of memory: MemoryError\nA smaller train.batch_size")
    lost = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert errors.unexpected(lost).startswith("a loader process was lost (out of memory?): DataLoader worker (pid 7) ")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("def load():\n    return [][0]\n", 2, "IndexError: list index out of range"),
        ("import os\n\ndef load()\n    return 1\n", 3, "SyntaxError: expected ':'"),
        ("import no_such_package\n", 1, "No module named 'no_such_package'"),
        ("import json\n\ndef load():\n    return json.loads('{')\n", 4, "JSONDecodeError: Expecting property name"),
    ],
)
def test_data_of_the_user_that_does_not_load(call: Call, home_made: Any, text: str, line: int, reason: str) -> None:
    home_made("own_data", text)
    answer = call("run", *QUICK, "--data", "own_data:load", "--out", "r")
    assert answer.code == 2 and reason in answer.err, answer.err
    assert f"It comes from your own file own_data.py, line {line}." in answer.err and "Traceback" not in answer.err


FILES = """
import torch
from plait import Batch, Data, DataInfo

class Files:
    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 32

    def __getitems__(self, rows):
        rows = torch.as_tensor(rows)
        if self.bad and rows.max() >= first:
            eval(self.bad)
        return Batch(input=torch.zeros(len(rows), 1, 8, 8), label=rows % 4, index=rows)

def load(bad, where=16):
    global first  # the rehearsal reads the rows before 16
    first = where
    info = DataInfo(task="classification", input_shape=(1, 8, 8), num_classes=4)
    return Data(train=Files(bad), validation=Files(""), test=Files(""), info=info)
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("[][3]", "IndexError: list index out of range"),
        ("b'\\xff'.decode()", "UnicodeDecodeError: 'utf-8' codec can't"),
    ],
)
def test_a_split_says_the_same_in_a_loader_process(
    call: Call, home_made: Any, workers: int, bad: str, reason: str
) -> None:
    home_made("own_files", FILES)
    given = ("--data", "own_files:load", "--set", f"data.bad={bad}", "--set", f"train.workers={workers}")
    answer = call("run", *QUICK, *given, "--out", "r")
    assert answer.code == 1 and f"raised in your own file own_files.py, line 15: {reason}" in answer.err, answer.err
    assert "Traceback" not in answer.err and "Caught" not in answer.err


@pytest.mark.parametrize("where", [0, 12])
def test_a_split_that_fails_is_found_before_training(call: Call, home_made: Any, tmp_path: Path, where: int) -> None:
    home_made("own_files", FILES)
    given = ("--data", "own_files:load", "--set", "data.bad=[][3]", "--set", f"data.where={where}")
    answer = call("run", *QUICK, *given, "--out", "r")
    assert answer.code == 2 and "IndexError: list index out of range" in answer.err, answer.err
    assert "It comes from your own file own_files.py, line 15." in answer.err
    assert "Traceback" not in answer.err and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("workers", "reason"),
    [(0, "a.png: No such file or directory"), (1, "[Errno 2] No such file or directory: 'a.png'")],
)
def test_a_file_that_is_missing_in_training_is_exit_code_2(
    call: Call, home_made: Any, workers: int, reason: str
) -> None:
    home_made("own_files", FILES)
    given = ("--data", "own_files:load", "--set", "data.bad=open('a.png')", "--set", f"train.workers={workers}")
    answer = call("run", *QUICK, *given, "--out", "r")
    assert answer.code == 2 and f"error: {reason}\n" in answer.err, answer.err
    assert "It comes from your own file own_files.py, line 15." in answer.err


# ---- recipes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_recipes_as_editors_of_windows_write_them(tmp_path: Path, mark: bytes, encoding: str, end: str) -> None:
    text = end.join(["# été", "seed = 7", "[train]", "steps = 3", ""])
    (tmp_path / "marked.toml").write_bytes(mark + text.encode(encoding))
    recipe = Recipe.load(tmp_path / "marked.toml")
    assert recipe.seed == 7 and recipe.train.steps == 3


@pytest.mark.parametrize("content", ["seed = 'é'".encode("latin-1"), b"seed = 1\0", "seed = 1".encode("utf-32")])
def test_recipes_in_another_encoding_are_refused_in_a_line(call: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.toml").write_bytes(content)
    answer = call("plan", "odd.toml")
    assert answer.code == 2 and answer.err.startswith("error: odd.toml: ") and len(answer.err.splitlines()) == 1


def test_long_paths_are_shortened() -> None:
    assert errors.shortened("a" * 5) == "aaaaa"
    assert len(errors.shortened(os.sep.join(["a" * 200] * 9))) == errors.LONGEST + 3
