"""The conformance suite: a good plugin passes, and a plugin that breaks one thing fails that check and no other."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import broken_runs  # noqa: F401 - adds its cases
import pytest
from broken_plugins import CASES, Case
from good_plugin import Good

from plait_authoring.conformance import checks
from plait_authoring.subject import Subject
from plait_authoring.verdicts import Broken, DoesNotApply

PACKAGED = {"light_import", "claims_file"}
"""Checks that ask for an installed package; test_conformance_pytest.py has packages that fail them."""
COSTLY = {"deterministic", "resumable", "bfloat16", "batch_of_one", "metrics_described", "artifacts_made"}
"""Checks with runs of their own, or with plots to draw."""
FIRST = [next(case for case in CASES if case.check == check) for check in dict.fromkeys(case.check for case in CASES)]


def outcomes(plugin: Any, folder: Path, names: Collection[str] | None = None, **arguments: Any) -> Any:
    """(check -> message of those that fail, check -> reason of those that do not apply)."""
    values = {"options": {}, "settings": {}, "data": None, "model": None, "steps": 12, **arguments}
    subject = Subject(plugin, folder, **values)
    bad, idle = {}, {}
    with subject.present():
        for check in checks():
            if names is None or check.name in names:
                try:
                    check(subject)
                except Broken as error:
                    bad[check.name] = str(error)
                except DoesNotApply as error:
                    idle[check.name] = str(error)
    return bad, idle


def assert_only(case: Case, folder: Path, names: Collection[str] | None = None) -> None:
    bad, _ = outcomes(case.plugin, folder, names, **case.arguments)
    assert bad.keys() == {case.check}, bad
    assert re.search(case.says, bad[case.check].replace("\n", " ")), bad[case.check]
    assert "Change: " in bad[case.check]


def test_a_good_plugin_passes_every_check(tmp_path: Path) -> None:
    bad, idle = outcomes(Good, tmp_path, data="good-images", model="good-cnn")
    assert not bad
    assert idle == dict.fromkeys(PACKAGED, "a class was given, which is in no package yet")
    assert (tmp_path / "watched" / "size.txt").is_file()


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_a_broken_plugin_fails_its_check_only(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path, {check.name for check in checks()} - COSTLY | {case.check})


@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST], ids=str)
def test_other_ways_to_fail_a_check(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path, {case.check})


def test_where_a_process_cannot_be_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU or on another system the kill is an exception; state that is forgotten is noticed all the same."""
    monkeypatch.setattr("plait_authoring.tiny.can_fork", lambda: False)
    monkeypatch.setattr("plait_authoring.tiny.forked", None)
    assert outcomes(Good, tmp_path / "good", {"deterministic", "resumable"}) == ({}, {})
    forgets = next(case for case in CASES if case.check == "resumable")
    assert_only(forgets, tmp_path / "forgets", {"deterministic", "resumable"})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_way_fails_any_other_check(tmp_path: Path, case: Case) -> None:
    assert_only(case, tmp_path)


def test_every_check_has_a_plugin_that_fails_it() -> None:
    assert {case.check for case in CASES} | PACKAGED == {check.name for check in checks()}
