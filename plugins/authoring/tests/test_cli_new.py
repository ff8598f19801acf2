"""`plait new` on the command line: what it says, what it refuses, and that its package really installs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def test_it_says_what_was_made_and_what_to_type(call: Call, tmp_path: Path) -> None:
    answer = call("new", "attic", "--hooks", "loss,optimizer_step", "--path", "some where")
    assert answer.code == 0, answer.err
    assert "loss_terms, optimizer_step" in answer.out
    for said in ("src/plait_attic/method.py", "cd 'some where/plait-attic'", "pip install -e", "plait run -p attic"):
        assert said in answer.out
    assert (tmp_path / "some where" / "plait-attic" / "pyproject.toml").is_file()


def test_the_document(call: Call, tmp_path: Path) -> None:
    made = call("new", "attic", "--hooks", "evaluate", "--hooks", "fit", "--json").document
    assert made["plugin"] == "attic"
    assert made["hooks"] == ["evaluate", "fit"]
    assert made["path"] == str(tmp_path / "plait-attic")
    assert sorted(made["files"]) == sorted(
        str(file.relative_to(made["path"])) for file in Path(made["path"]).rglob("*") if file.is_file()
    )
    assert made["next"][0] == "cd plait-attic"


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

    assert complete("plait new attic --hooks exa") == ["example_weights"]
    assert complete("plait new attic --hooks loss,opt") == ["loss,optimizer_step"]
    assert complete("plait new attic --hooks views,vie") == []
    assert complete("plait ne") == ["new"]


def test_a_new_package_installs_and_runs(program: Call, tmp_path: Path) -> None:
    made = program("new", "attic", "--hooks", "loss,evaluate,commands", "--json").document
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(site), made["path"]], check=True, timeout=120)
    assert program("plan", "-p", "attic", packages=(site,)).code == 0
    described = program("info", "attic", "--json", packages=(site,)).document
    assert "strength" in str(described)
    run = program("run", "-p", "attic", "--steps", "4", "--out", "run", "--json", packages=(site,)).document
    assert 0 <= run["metrics"]["attic/calibration_error"] <= 100
    table = program("attic", "weights", "run", packages=(site,))
    assert table.code == 0
    assert "head.weight" in table.out
    refused = program("new", "attic", "--path", "elsewhere", packages=(site,))
    assert refused.code == 2
    assert "plait-attic 0.1.0" in refused.err
