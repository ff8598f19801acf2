"""The conformance suite: a good plugin passes, and a plugin that breaks a rule fails that rule and no other."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import broken_runs  # noqa: F401 - adds its cases
import pytest
from broken_plugins import CASES, Case
from good_plugin import Good

from plait import run as ending
from plait_authoring.conformance import Broken, DoesNotApply, check, rules
from plait_authoring.subject import Subject

PACKAGED = {"light_import", "claims_file"}
"""Rules that ask for an installed package; test_conformance_pytest.py has packages that break them."""
FORKED = {"deterministic", "resumable", "bfloat16", "batch_of_one", "metrics_described"}
"""Rules with runs of their own."""
FIRST = [next(case for case in CASES if case.rule == rule) for rule in dict.fromkeys(case.rule for case in CASES)]


def outcomes(plugin: Any, folder: Path, names: Collection[str] | None = None, **arguments: Any) -> Any:
    """(rule -> message of those that are broken, rule -> reason of those that do not apply)."""
    values = {"options": {}, "settings": {}, "data": None, "model": None, "steps": 12, **arguments}
    subject = Subject(plugin, folder, **values)
    bad, idle = {}, {}
    for rule in rules():
        if names is None or rule.name in names:
            try:
                check(subject, rule)
            except Broken as error:
                bad[rule.name] = str(error)
            except DoesNotApply as error:
                idle[rule.name] = str(error)
    return bad, idle


def assert_only(case: Case, folder: Path, names: Collection[str] | None = None) -> None:
    bad, _ = outcomes(case.plugin, folder, names, **case.arguments)
    assert bad.keys() == {case.rule}, bad
    assert re.search(case.says, bad[case.rule].replace("\n", " ")), bad[case.rule]
    assert "Change: " in bad[case.rule]


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without plots, which take most of a tiny run's time."""
    monkeypatch.setattr(ending, "write_report", lambda directory: directory.report.write_text(""))


def test_a_good_plugin_keeps_every_rule(tmp_path: Path) -> None:
    bad, idle = outcomes(Good, tmp_path, data="good-images", model="good-cnn")
    assert not bad
    assert idle == dict.fromkeys(PACKAGED, "a class was given, which is in no package yet")


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_a_broken_plugin_breaks_its_rule_only(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path, {rule.name for rule in rules()} - FORKED | {case.rule})


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST], ids=str)
def test_other_ways_to_break_a_rule(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path, {case.rule})


def test_where_a_process_cannot_be_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU or on another system the kill is an exception; state that is forgotten is found all the same."""
    monkeypatch.setattr("plait_authoring.subject.can_fork", lambda: False)
    monkeypatch.setattr("plait_authoring.kill.forked", None)
    assert outcomes(Good, tmp_path / "good", {"deterministic", "resumable"}) == ({}, {})
    forgets = next(case for case in CASES if case.rule == "resumable")
    assert_only(forgets, tmp_path / "forgets", {"deterministic", "resumable"})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_way_breaks_any_other_rule(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path)


def test_every_rule_has_a_plugin_that_breaks_it() -> None:
    assert {case.rule for case in CASES} | PACKAGED == {rule.name for rule in rules()}
