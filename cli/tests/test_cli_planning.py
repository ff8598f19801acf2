"""plugins, info, plan: what they print, their documents, their refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.planning import discovery

Call = Callable[..., Any]

TWO_OWNERS = """
import plait

class Options(plait.Options):
    share: float = 0.5

class First(plait.Plugin):
    name, summary, contract, Options = "first", "owns [bold]everything[/bold]", 1, Options
    def ownership(self): return (plait.Ownership("parameters", "*"),)
    @plait.hookimpl
    def update_masks(self): pass
    @plait.hookimpl
    def commands(self):
        return {"greet": "first_commands:greet", "lost": "first_commands:nowhere", "gone": "no_such:thing"}

class Second(First):
    name, summary = "second", "owns everything too"
    @plait.hookimpl
    def commands(self): raise RuntimeError("no commands today")
"""
COMMANDS = """
import typer
def greet(name: str, times: int = 1) -> None:
    \"\"\"Greet somebody.\"\"\"
    for _ in range(times):
        typer.echo(f"hello {name}")
    if name == "nobody":
        raise ZeroDivisionError("nobody is here")
"""


@pytest.fixture
def owners(package: Call) -> Path:
    folder: Path = package(
        "plait-owners",
        {"first": "two_owners:First", "second": "two_owners:Second"},
        two_owners=TWO_OWNERS,
        first_commands=COMMANDS,
    )
    return folder


def test_plugins_document(call: Call) -> None:
    answer = call("plugins", "--json")
    assert answer.code == 0
    by_name = {item["name"]: item for item in answer.document}
    wanted = {"name", "distribution", "version", "summary", "paper", "status", "reason", "contract", "hooks"}
    assert set(by_name["task"]) == wanted
    assert by_name["task"]["status"] == "ok" and "evaluate" in by_name["task"]["hooks"]


def test_broken_plugins_are_named_and_the_others_work(program: Call, package: Call, owners: Path) -> None:
    broken = package(
        "plait-broken", {"broken": "broken_one:Plugin"}, broken_one="print('noise')\nimport no_such_library\n"
    )
    answer = program("plugins", "--json", packages=(owners, broken))
    by_name = {item["name"]: item for item in answer.document}
    assert by_name["broken"]["status"] == "broken" and "no_such_library" in by_name["broken"]["reason"]
    assert by_name["first"]["status"] == "ok" and by_name["first"]["version"] == "0.3"
    text = program("plugins", packages=(owners, broken))
    assert text.code == 0
    assert "broken (plait-broken 0.3) is broken: " in text.out
    assert "owns [bold]everything[/bold]" in text.out, "a plugin's text is not markup"
    used = program("plan", "-p", "broken", packages=(owners, broken))
    assert used.code == 2 and "no_such_library" in used.err and "Traceback" not in used.err


def test_plan_document_and_text(call: Call) -> None:
    answer = call("plan", "--json")
    assert answer.code == 0 and answer.document["ok"] is True
    assert answer.document["order"]["evaluate"] == ["task"] and answer.document["refusals"] == []
    text = call("plan")
    assert "tiny-images" in text.out and "ok: they can work together." in text.out


def test_refused_composition(program: Call, owners: Path) -> None:
    answer = program("plan", "-p", "first", "-p", "second", "--json", packages=(owners,))
    assert answer.code == 3
    assert answer.document["ok"] is False
    refusal = answer.document["refusals"][0]
    assert set(refusal) == {"rule", "plugins", "message", "fix"} and refusal["plugins"] == ["first", "second"]
    text = program("plan", "-p", "first", "-p", "second", packages=(owners,))
    assert text.code == 3 and "fix: Drop -p first or -p second" in text.out
    run = program("run", "-p", "first", "-p", "second", "--json", packages=(owners,))
    assert run.code == 3 and run.document["ok"] is False and run.document["error"]["exit_code"] == 3
    assert run.document["refusals"] == [refusal]
    assert run.err.startswith("refused: ")


def test_plugin_commands(program: Call, owners: Path) -> None:
    def first(*args: str) -> Any:
        return program("first", *args, packages=(owners,))

    assert first("greet", "you", "--times", "2").out == "hello you\nhello you\n"
    listed = first("--help")
    assert listed.code == 0 and "greet" in listed.out and "no_such:thing" in listed.out
    assert "Greet somebody" in first("greet", "--help").out
    unknown = first("gret")
    assert unknown.code == 2 and "Did you mean 'greet'?" in unknown.err
    for name, why in (("lost", "nowhere"), ("gone", "no_such")):
        bad = first(name)
        assert bad.code == 2 and f"plugin 'first': command '{name}' cannot be loaded" in bad.err and why in bad.err
    failing = first("greet", "nobody")
    assert (
        failing.code == 1 and "ZeroDivisionError: nobody is here (in " in failing.err and "PLAIT_DEBUG=1" in failing.err
    )
    assert "Traceback" not in failing.err
    debugged = program("first", "greet", "nobody", packages=(owners,), PLAIT_DEBUG="1")
    assert "Traceback" in debugged.err
    raising = program("second", "x", packages=(owners,))
    assert raising.code == 2 and "no commands today" in raising.err


def test_info(call: Call) -> None:
    plugin = call("info", "task", "--json").document
    assert plugin["kind"] == "plugin" and {"hook", "rule", "family"} <= set(plugin["hooks"][0])
    assert plugin["data_sources"] == {"tiny-images": "generated 8x8 images in two groups"}
    data = call("info", "tiny-images", "--json").document
    options = {option["name"]: option for option in data["options"]}
    assert options["data.size"]["bounds"] == ">= 4, <= 64" and options["data.size"]["default"] == 8
    assert call("info", "tiny-cnn", "--json").document["kind"] == "model"
    recipe = call("info", "recipe")
    assert "optimizer.lr" in recipe.out and "peak learning rate" in recipe.out
    for name in ("task", "tiny-images", "tiny-cnn"):
        assert call("info", name).code == 0


BAD = [
    (["frobnicate"], "no command and no installed plugin is named 'frobnicate'"),
    (["plann"], "Did you mean 'plan'?"),
    (["task"], "has no commands of its own"),
    (["plan", "--nonsense"], "--nonsense"),
    (["plan", "-p", "tazk"], "Did you mean 'task'?"),
    (["plan", "--data", "tiny-image"], "Did you mean 'tiny-images'?"),
    (["plan", "--model", "tiny-cn"], "Did you mean 'tiny-cnn'?"),
    (["plan", "--set", "optimizer"], "KEY=VALUE"),
    (["plan", "--set", "=1"], "KEY=VALUE"),
    (["plan", "--set", "optimizer.lrr=1"], "Did you mean 'lr'?"),
    (["plan", "--set", "optimiser.lr=1"], "Did you mean 'optimizer'?"),
    (["plan", "--set", "optimizer.lr=-1"], "optimizer.lr = -1"),
    (["plan", "--set", "data.size=3"], "size = 3"),
    (["plan", "--set", "data.sise=8"], "Did you mean 'size'?"),
    (["plan", "missing.toml"], "missing.toml: no such file."),
    (["plan", "broken.toml"], "not valid TOML"),
    (["plan", "."], "cannot be read"),
    (["run", "task"], "-p task"),
    (["run", "--epochs", "many"], "--epochs"),
    (["run", "--epochs", "1", "--steps", "1"], "not both"),
    (["run", "--epochs", "-1"], "epochs = -1"),
    (["run", "--seed", "1", "--seeds", "2"], "not both"),
    (["run", "--seeds", "0"], "--seeds 0"),
    (["run", "--device", "abacus"], "device = 'abacus'"),
    (["run", "--out", "taken"], "already holds a run"),
    (["resume"], "RUN"),
    (["resume", "nowhere"], "not a run directory"),
    (["report", "nowhere"], "not a run directory"),
    (["compare", "nowhere", "else"], "not a run directory"),
    (["runs", "nowhere"], "no such folder"),
    (["info", "tiny-image"], "Did you mean 'tiny-images'?"),
]


@pytest.mark.parametrize(("args", "words"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_is_a_line_and_exit_code_2(call: Call, tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "broken.toml").write_text("[train\nepochs=", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recipe.toml").write_text("seed = 1\n", encoding="utf-8")
    answer = call(*args)
    assert answer.code == 2, answer.err
    assert answer.err.startswith("error: ") and words in answer.err and answer.out == ""
    assert len(answer.err.splitlines()) <= 4 and "Traceback" not in answer.err
    document = call(*args, "--json")
    assert document.code == 2
    if args[0] in ("plan", "run", "resume", "report", "compare", "runs", "info"):
        assert document.document["error"]["exit_code"] == 2
        assert document.document["error"]["message"].split("\n")[0] in document.err


def test_users_text_is_never_markup(call: Call) -> None:
    answer = call("plan", "-p", "[red]x[/red][/]")
    assert answer.code == 2 and "[red]x[/red][/]" in answer.err


def test_unexpected_errors_name_the_place(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken() -> Any:
        raise LookupError("out of [order]")

    monkeypatch.setattr(discovery, "installed", broken)
    answer = call("plugins")
    assert answer.code == 1
    assert "raised in your own file " in answer.err and "test_cli_planning.py, line " in answer.err
    assert "LookupError: out of [order]\n" in answer.err
    assert "full traceback is shown with PLAIT_DEBUG=1" in answer.err and "Traceback" not in answer.err
    assert call("plugins", "--json").document["error"]["type"] == "LookupError"


def test_keyboard_interrupt_anywhere(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:

    def stopped() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(discovery, "installed", stopped)
    assert call("plugins").code == 130
    assert call("plugins", "--json").document["error"]["exit_code"] == 130


# ---- whatever a recipe or an option holds ------------------------------------------------------------------------
words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
dotted = """seed
train.epochs train.steps optimizer.lr optimizer data data.size data.name model.width plugins plugins.task
task.x scheduler.milestones device export.formats loggers . a.b.c"""
keys = st.sampled_from(["", *dotted.split()])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)


def judged(call: Call, *args: str) -> None:
    answer = call(*args, "--json")
    assert answer.code in (0, 2, 3), answer.err
    assert "Traceback" not in answer.err
    document = answer.document
    assert document.get("ok") is not None or document["error"]["exit_code"] == answer.code


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(keys | words, words | scalars.map(str) | trees.map(repr)), max_size=4))
def test_any_setting_gives_no_traceback(caller: Call, pairs: list[tuple[str, str]]) -> None:
    judged(caller, "plan", *[part for key, value in pairs for part in ("--set", f"{key}={value}")])


@settings(max_examples=150, deadline=None)
@given(
    tree=st.dictionaries(
        st.sampled_from(["seed", "data", "model", "train", "optimizer", "plugins"]) | words, trees, max_size=4
    )
)
def test_any_recipe_gives_no_traceback(
    caller: Call, tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    import tomli_w

    path = tmp_path_factory.getbasetemp() / "any.toml"
    try:
        text = tomli_w.dumps(tree)
    except (TypeError, ValueError):  # None has no TOML form; the JSON text is then simply broken TOML
        text = json.dumps(tree)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged(caller, "plan", str(path))


@settings(max_examples=60, deadline=None)
@given(name=words, option=st.sampled_from(["-p", "--data", "--model"]))
def test_any_name_gives_no_traceback(caller: Call, name: str, option: str) -> None:
    judged(caller, "plan", option, name)


# ---- speed -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "args", [["--help"], ["plugins"], ["plan"], ["plan", "--json"], ["run", "--help"], ["info", "task"]]
)
def test_short_commands_import_no_heavy_library(tmp_path: Path, args: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "plait_cli", *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "plait_cli" in imported and "typer" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "accelerate", "torchvision", "sklearn", "scipy", "pandas"}
