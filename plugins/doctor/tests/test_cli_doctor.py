"""``plait doctor``: text, document, exit codes, in made environments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from plait_doctor.command import folded

Call = Callable[..., object]
BROKEN = {"broken_doc": "import no_such_library"}


class Entry(BaseModel):
    """One finding in the document."""

    model_config = ConfigDict(extra="forbid", strict=True)
    part: Literal["environment", "packages", "devices", "plugins", "here"]
    name: str
    status: Literal["ok", "warning", "problem"]
    found: str
    why: str
    fix: str
    details: dict[str, object]


class Document(BaseModel):
    """All of it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ok: bool
    counts: dict[Literal["ok", "warning", "problem"], int]
    checks: list[Entry]


def test_nothing_wrong_ends_with_0(program: Call) -> None:
    answer = program("doctor", "--json")
    document = Document.model_validate(answer.document)
    assert answer.code == 0 and document.ok and document.counts["problem"] == 0
    assert {check.part for check in document.checks} == {"environment", "packages", "devices", "plugins", "here"}
    for check in document.checks:
        assert check.found and (check.status == "ok" or (check.why and check.fix)), check


def test_a_broken_plugin_ends_with_1_and_says_what_to_type(program: Call, package: Call) -> None:
    folder = package("plait-broken", {"broken": "broken_doc:Plugin"}, **BROKEN)
    answer = program("doctor", "plugins", "packages", packages=(folder,))
    assert answer.code == 1 and answer.err == ""
    lines = answer.out.splitlines()
    assert "PLUGINS" in lines and "PACKAGES" in lines and "DEVICES" not in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("problem  broken "))
    said = " ".join(line.strip() for line in lines[start : start + 6])
    assert "No module named 'no_such_library'" in said and "why: It is skipped" in said
    assert "fix: pip install -U plait-broken, or pip uninstall plait-broken" in said
    assert re.fullmatch(r"1 problem, \d+ warnings?, \d+ ok\.", lines[-1])
    document = Document.model_validate(program("doctor", "plugins", "--json", packages=(folder,)).document)
    assert not document.ok and {c.name: c.status for c in document.checks}["broken"] == "problem"


def test_a_part_and_its_misspelling(call: Call) -> None:
    answer = call("doctor", "environment")
    assert answer.code == 0 and answer.out.startswith("ENVIRONMENT") and "PACKAGES" not in answer.out
    wrong = call("doctor", "pluggins")
    assert wrong.code == 2 and "Did you mean 'plugins'" in wrong.err and not wrong.out
    assert "Exit code 1 when something is a problem" in call("doctor", "--help").out


def test_a_terminal_without_unicode(program: Call) -> None:
    answer = program("doctor", "environment", "--json", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    (terminal,) = [c for c in Document.model_validate(answer.document).checks if c.name == "terminal"]
    assert (
        answer.code == 0
        and terminal.status == "warning"
        and "iso8859-1" in terminal.found.replace("latin-1", "iso8859-1")
    )


@pytest.mark.parametrize("width", [40, 80, 160])
def test_lines_fit_and_commands_are_not_cut(width: int) -> None:
    text = 'fix: pip install -U "torch>=2.6" and /a/very/long/path/that/is/longer/than/any/line/of/a/phone/could/be'
    lines = folded(text, width, " " * 10)
    assert " ".join(line.strip() for line in lines) == text
    assert all(len(line) <= max(width, 40) for line in lines if "/a/very" not in line)
    assert not lines[0].startswith(" ") and all(line.startswith(" " * 10) for line in lines[1:])


def test_a_traceback_only_when_asked_for(program: Call, package: Call) -> None:
    odd = """
import plait
class Odd(plait.Plugin):
    name, contract = "odd", plait.CONTRACT_VERSION
    @plait.hookimpl
    def data_sources(self): return {"odd": plait.DataSource("x:y", "", options=None)}
"""
    folder: Path = package("plait-odd", {"odd": "odd_doc:Odd"}, odd_doc=odd)  # type: ignore[assignment]
    answer = program("doctor", "plugins", packages=(folder,))
    assert answer.code == 1 and "looking at it failed: AttributeError" in answer.out
    assert "Traceback" not in answer.out + answer.err
    loud = program("doctor", "plugins", packages=(folder,), PLAIT_DEBUG="1")
    assert loud.code == 1 and "Traceback" in loud.err and "Traceback" not in loud.out
