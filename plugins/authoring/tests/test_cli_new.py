"""`plait new` on the command line: what it says, what it refuses, and that its package really installs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.planning import discovery
from plait_authoring.command import _complete_hooks as complete_hooks

Call = Callable[..., Any]


def test_it_says_what_was_made_and_what_to_type(call: Call, tmp_path: Path) -> None:
    answer = call("new", "attic", "--hooks", "loss,optimizer_step", "--path", "some where")
    assert answer.code == 0, answer.err
    assert "loss_terms, optimizer_step" in answer.out
    for said in ("src/plait_attic/method.py", "cd 'some where/plait-attic'", "pip install -e", "plait run -p attic"):
        assert said in answer.out
    assert (tmp_path / "some where" / "plait-attic" / "pyproject.toml").is_file()


def test_the_document(call: Call, tmp_path: Path) -> None:
    document = call("new", "attic", "--hooks", "evaluate", "--hooks", "fit", "--json").document
    assert document["plugin"] == "attic"
    assert document["hooks"] == ["evaluate", "fit"]
    assert document["path"] == str(tmp_path / "plait-attic")
    assert sorted(document["files"]) == sorted(
        str(file.relative_to(document["path"])) for file in Path(document["path"]).rglob("*") if file.is_file()
    )
    assert document["next"][0] == "cd plait-attic"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Attic",), "For example 'attic'"),
        (("chase",), "plait-chase"),
        (("doctor",), "reserved"),
        (("attic", "--hooks", "optimiser_step"), "Did you mean 'optimizer_step'?"),
        (("attic", "--hooks", ""), "empty name"),
        (("attic", "--path", os.devnull), "is a file"),
        ((), "Missing argument"),
    ],
)
def test_refusals(call: Call, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    answer = call("new", *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert call("new", *arguments, "--json").document["error"]["exit_code"] == 2
    assert not list(tmp_path.iterdir())


def test_hooks_are_completed_one_after_the_other(program: Call) -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        answer = program(_PLAIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        return str(answer.out).split()

    assert complete("plait new attic --hooks loss,opt") == ["loss,optimizer_step"]
    assert complete("plait ne") == ["new"]
    offered = dict(complete_hooks(None, "views,"))  # type: ignore[arg-type]
    assert "views,views" not in offered and offered["views,cli"] == "the hook commands"


def test_a_new_package_installs_and_runs(
    call: Call, program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = call("new", "gable", "--hooks", "loss,evaluate,commands", "--json").document
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(site), created["path"]], check=True, timeout=120)
    assert program("plan", "-p", "gable", packages=(site,)).code == 0
    monkeypatch.syspath_prepend(site)
    with discovery.pretend():  # looks anew
        assert "strength" in str(call("info", "gable", "--json").document)
        run = call("run", "-p", "gable", "--steps", "4", "--out", "run", "--json").document
        assert 0 <= run["metrics"]["gable/calibration_error"] <= 100
        table = call("gable", "weights", "run")
        assert table.code == 0 and "head.weight" in table.out
        refused = call("new", "gable", "--path", "elsewhere")
        assert refused.code == 2 and "plait-gable 0.1.0" in refused.err


def test_the_commands_of_a_new_tool_stand_at_the_root(call: Call, tmp_path: Path) -> None:
    """A plugin that has only commands and artifacts is a tool, and its own README says so."""
    call("new", "loft", "--hooks", "commands,artifacts")
    readme = (tmp_path / "plait-loft" / "README.md").read_text(encoding="utf-8")
    assert "plait weights RUN" in readme and "plait loft weights" not in readme
    call("new", "cellar", "--hooks", "commands,fit")
    assert "plait cellar weights RUN" in (tmp_path / "plait-cellar" / "README.md").read_text(encoding="utf-8")
