"""Shell completion through the protocol that the shells speak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def complete(program: Call) -> Callable[..., list[str]]:
    def ask(line: str, **extra: Any) -> list[str]:
        words = line.split(" ")
        answer = program(_PLAIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), **extra)
        assert "Traceback" not in answer.err, answer.err
        return answer.out.split()

    return ask


def test_names_and_keys(complete: Callable[..., list[str]]) -> None:
    assert {"plan", "plugins"} <= set(complete("plait pl"))
    assert complete("plait run --data tiny") == ["tiny-images"]
    assert complete("plait run --model tiny") == ["tiny-cnn"]
    assert complete("plait info tiny-i") == ["tiny-images"]
    assert "--epochs" in complete("plait run --ep")
    assert complete("plait run --device cud") == ["cuda", "cuda:0"]


def test_setting_keys(complete: Callable[..., list[str]]) -> None:
    assert complete("plait run --set optimizer.l") == ["optimizer.lr="]
    assert set(complete("plait plan --set data.si")) == {"data.size="}
    assert complete("plait run --set model.w") == ["model.width="]
    assert complete("plait run --set optimizer.name=") == [
        "optimizer.name=sgd",
        "optimizer.name=adam",
        "optimizer.name=adamw",
    ]


def test_plugin_names_options_and_commands(complete: Callable[..., list[str]], package: Call) -> None:
    plugin = """
import plait
class Options(plait.Options):
    depth: int = 3
class Knitter(plait.Plugin):
    name, summary, contract, Options = "knitter", "[/] knits", 1, Options
    @plait.hookimpl
    def commands(self): return {"unravel": "nowhere:unravel"}
"""
    folder = package("plait-knitter", {"knitter": "knitter:Knitter"}, knitter=plugin)
    assert complete("plait plan -p kni", packages=(folder,)) == ["knitter"]
    assert complete("plait plan -p knitter --set knitter.", packages=(folder,)) == ["knitter.depth="]
    assert complete("plait kni", packages=(folder,)) == ["knitter"]
    assert complete("plait knitter unr", packages=(folder,)) == ["unravel"]


def test_run_directories(complete: Callable[..., list[str]], tmp_path: Path) -> None:
    for name in ("runs/one", "runs/many/seed-0", "elsewhere/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.toml").write_text("", encoding="utf-8")
    assert set(complete("plait resume runs/")) >= {"runs/one", "runs/many/seed-0"}
    assert "elsewhere/two" in complete("plait compare elsewhere/t")
    assert complete("plait resume --checkpoint x") == []


def test_zsh_and_fish_survive_markup_in_summaries(program: Call, package: Call) -> None:
    plugin = """
import plait
class P(plait.Plugin):
    name, summary, contract = "odd", "an [/odd] summary [0, 1)", 1
"""
    folder = package("plait-odd", {"odd": "odd_one:P"}, odd_one=plugin)
    for shell in ("zsh", "fish"):
        extra = {"_TYPER_COMPLETE_ARGS": "plait plan -p od", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        answer = program(packages=(folder,), _PLAIT_COMPLETE=f"complete_{shell}", **extra)
        assert "odd" in answer.out and "Traceback" not in answer.err
