"""The pages and the scoreboard: complete, safe against foreign text, and honest about what failed."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from claims_book import book

from plait.errors import BadInput
from plait_experiments import scoreboard, tables
from plait_experiments.page import render, write_pages
from plait_experiments.power import MOST, Power
from plait_experiments.results import Verification
from plait_experiments.schema import Book
from plait_experiments.scoreboard import from_dict, join, judged_again, markdown, stored, write_scoreboard
from plait_experiments.verdicts import Verdict
from plait_experiments.verification import verify

NASTY = "<script>alert(1)</script> | [bold] & \"quotes\" 'n' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def claims() -> Book:
    changes: dict[str, Any] = {
        "arms__good": {"function": "claims_book:fine", "about": NASTY},
        "arms__bad": {"function": "claims_book:crash"},
        "arms__tuned": {
            "function": "claims_book:fine",
            "grid": {"options.bonus": [1.0, 2.0]},
            "choose": "task/accuracy@validation",
        },
        "claims": [
            {
                "id": "holds",
                "sentence": NASTY,
                "source": "table 1",
                "ours": True,
                "reconstruction": "[inferred]: everything",
                "expect": ["tuned.accuracy - good.accuracy >= 0"],
                "paper": {"tuned.accuracy": 74.03, "good.accuracy": 74.7},
                "paper_setting": "ImageNet",
                "minutes": {"laptop": 1},
            },
            {
                "id": "fails",
                "sentence": "It is much better.",
                "source": "table 2",
                "expect": ["good.accuracy - tuned.accuracy >= 5"],
                "gate": False,
                "minutes": {"laptop": 1},
            },
            {
                "id": "crashes",
                "sentence": "It runs.",
                "source": "table 3",
                "expect": ["bad.accuracy >= 0"],
                "minutes": {"laptop": 1},
            },
            {
                "id": "big",
                "sentence": "At scale.",
                "source": "table 4",
                "expect": ["good.accuracy >= 0"],
                "minutes": {"paper": 1},
            },
        ],
        "scales__paper": {},
    }
    return book(**changes)


@pytest.fixture(scope="module")
def verified(claims: Book, tmp_path_factory: pytest.TempPathFactory) -> Verification:
    return verify(claims, cache=tmp_path_factory.mktemp("cache"), workers=0)


class Checker(HTMLParser):
    """Counts tags, and insists that they close."""

    VOID = frozenset({"meta", "br", "path", "line", "use", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag


def test_verdicts(verified: Verification) -> None:
    assert {r.claim.id: r.verdict.value for r in verified.claims} == {
        "holds": "holds",
        "fails": "fails",
        "crashes": "undecided",
        "big": "not run",
    }


@pytest.mark.parametrize("page", [render, lambda v: scoreboard.render([v])])
def test_pages_are_whole_and_safe(verified: Verification, page: Any) -> None:
    text = page(verified)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "script" not in checker.seen and "&lt;script&gt;" in text
    assert "49" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S) or "{{ 7 * 7 }}" in text
    assert not re.search(r"(src|href)=.https?:", text)


def test_the_page_says_everything(verified: Verification) -> None:
    text = render(verified)
    for said in (
        "undecided",
        "not run",
        "74.03",
        "ImageNet",
        "[inferred]: everything",
        "The thresholds are ours",
        "chosen among 2",
        "a bug in the arm",
        "no experiment at the scale laptop",
        "Reported only",
    ):
        assert said in text, said
    assert text.count('<svg class="interval"') == 3  # two seeds are enough for an interval
    assert "not every gating claim holds" in text and "seeds for 80 % power" in text


def test_markdown(verified: Verification) -> None:
    text = markdown([verified])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables and all(line.endswith("|") for line in tables)
    header = next(line for line in tables if "source" in line)
    width = header.count("|")
    scores = tables[tables.index(header) : tables.index(header) + 6]
    assert len(scores) == 6 and all(len(re.findall(r"(?<!\\)\|", line)) == width for line in scores)
    assert "fails (reported only)" in text and "(thresholds ours, [inferred])" in text


def test_the_scoreboard_begins_with_how_many_hold_and_what_is_open(verified: Verification) -> None:
    other = dataclasses.replace(verified, plugin="other", claims=verified.claims[:1])
    columns, rows = tables.overview([verified, other])
    assert columns == ["method", "claims", "holds", "fails", "undecided", "not run"]
    assert rows == [
        ["demo", "4", "1", "1", "1", "1"],
        ["other", "1", "1", "0", "0", "0"],
        ["all", "5", "2", "1", "1", "1"],
    ]
    (undecided,) = tables.open_rows([verified, other])
    assert undecided[:2] == ["demo", "crashes"] and undecided[-1] == "runs are missing"
    board = markdown([verified, other])
    assert board.index("| [demo](#demo) | 4 |") < board.index("| demo | crashes |") < board.index("## demo")


def test_what_an_undecided_expectation_would_take_stands_on_top(verified: Verification) -> None:
    first = verified.claims[0]
    (judgement,) = first.judgements
    decided = dataclasses.replace(judgement, guard=True)

    def board(*seeds: int) -> Verification:
        takes = [Power(1.0, 0.5, False, False, needed) for needed in seeds]
        straddling = tuple(dataclasses.replace(judgement, verdict=Verdict.UNDECIDED, power=power) for power in takes)
        result = dataclasses.replace(first, verdict=Verdict.UNDECIDED, judgements=(*straddling, decided))
        return dataclasses.replace(verified, claims=(result,))

    assert tables.open_rows([board(34)])[0][3:] == ["1 of 2", "3", "34"]
    assert tables.overview([board(34)])[0] == ["method", "claims", "undecided"]
    assert tables.open_rows([board(34, MOST + 1)])[0][3:] == ["2 of 3", "3", f"{MOST + 1}: undecidable at this size"]
    assert tables.overview([board(34, MOST + 1)])[0] == ["method", "claims", "undecidable at this size"]


def test_a_scoreboard_links_to_pages_that_are_there(verified: Verification, tmp_path: Path) -> None:
    other = dataclasses.replace(verified, plugin="other")
    write_pages([verified], tmp_path)
    write_scoreboard([verified, other], tmp_path)
    page = (tmp_path / "scoreboard.html").read_text()
    links = set(re.findall(r'href="([^"]*)"', page))
    assert links == {"#demo", "#other", "demo.html"}
    assert all(f'id="{link[1:]}"' in page for link in links if link.startswith("#"))


def test_files(verified: Verification, tmp_path: Path) -> None:
    files = [*write_pages([verified], tmp_path / "out"), *write_scoreboard([verified], tmp_path / "out")]
    assert {p.name for p in files} == {
        "demo.html",
        "demo.json",
        "scoreboard.html",
        "scoreboard.md",
        "scoreboard.json",
    }
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    document = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert document["holds"] is False and len(document["claims"]) == 4


def test_a_stored_verification_comes_back_whole(verified: Verification, tmp_path: Path) -> None:
    write_scoreboard([verified], tmp_path)
    (back,) = stored(tmp_path)
    assert back.as_dict() == verified.as_dict() == from_dict(json.loads(json.dumps(verified.as_dict()))).as_dict()
    assert markdown([back]) == markdown([verified]) and scoreboard.render([back]) == scoreboard.render([verified])
    assert stored(tmp_path / "nothing") == []


def test_a_scoreboard_is_joined_claim_by_claim(verified: Verification) -> None:
    other = dataclasses.replace(verified, plugin="other")
    blank = tuple(dataclasses.replace(r, verdict=Verdict.NOT_RUN, judgements=(), arms=()) for r in verified.claims[1:])
    now = dataclasses.replace(verified, claims=(verified.claims[0], *blank), environment={"device_name": "another"})
    joined = join([verified, other], [now])
    assert [entry.plugin for entry in joined] == ["demo", "other"] and joined[1] is other
    assert [r.verdict for r in joined[0].claims] == [r.verdict for r in verified.claims]
    ran = [r.claim.id for r in verified.claims[1:] if r.verdict is not Verdict.NOT_RUN]
    assert ran and joined[0].notes[-1].startswith("from an earlier verification (")
    assert joined[0].notes[-1].endswith(f": {', '.join(ran)}") and joined[0].environment == now.environment
    assert join([verified], [verified]) == [verified] and join([], [other]) == [other]
    assert join([verified], [dataclasses.replace(now, scale="paper")])[0].claims == now.claims
    last = dataclasses.replace(verified, claims=verified.claims[-1:])
    again = join([verified], [last])[0].claims
    assert [r.claim for r in again] == [r.claim for r in verified.claims]  # each in its earlier place
    rest, first = (dataclasses.replace(verified, claims=c) for c in (verified.claims[1:], verified.claims[:1]))
    assert [r.claim for r in join([rest], [first])[0].claims] == [r.claim for r in (*rest.claims, *first.claims)]


def test_a_scoreboard_of_three_machines_says_which_ran_what(verified: Verification, tmp_path: Path) -> None:
    """Each claim keeps the machine that ran it, however often something is joined to it."""
    ran = [r for r in verified.claims if r.verdict is not Verdict.NOT_RUN]
    assert len(ran) >= 3
    parts = [
        dataclasses.replace(verified, claims=(result,), environment={"device_name": name}, notes=())
        for result, name in zip(ran[:3], ("first", "second", "third"), strict=True)
    ]
    board = parts[0]
    for part in parts[1:]:
        write_scoreboard(join([board], [part]), tmp_path)
        (board,) = stored(tmp_path)
    ids = [result.claim.id for result in ran]
    assert board.environment == {"device_name": "third"}
    assert board.notes == tuple(
        f"from an earlier verification ({name}, torch unknown): {id_}"
        for name, id_ in (("first", ids[0]), ("second", ids[1]))
    )


def test_judging_again_changes_only_what_rests_on_another_rule(verified: Verification, claims: Book) -> None:
    assert judged_again(verified, claims).as_dict() == verified.as_dict()
    assert judged_again(verified, None).as_dict() == verified.as_dict()
    first = verified.claims[0]
    other = dataclasses.replace(first.judgements[0], verdict=Verdict.FAILS, interval=None, power=None)
    stale = dataclasses.replace(first, verdict=Verdict.FAILS, judgements=(other,))
    board = dataclasses.replace(verified, claims=(stale, *verified.claims[1:]))
    assert judged_again(board, claims).as_dict() == verified.as_dict()


def test_an_earlier_choice_that_is_a_tie_today_keeps_its_figures_and_says_so(
    verified: Verification, claims: Book
) -> None:
    result = verified.claims[0]
    (tuned,) = [arm for arm in result.arms if arm.tuning]
    scores = ({100: 1.0, 101: 2.0}, {100: 4.0, 101: 1.0})  # 1 more on the mean, with a standard error of 2
    kept = tuple(
        dataclasses.replace(t, scores=s, score=sum(s.values()) / 2, default=False, gain=None)
        for t, s in zip(tuned.tuning, scores, strict=True)
    )
    assert kept[1].chosen
    arms = tuple(dataclasses.replace(arm, tuning=kept) if arm is tuned else arm for arm in result.arms)
    board = dataclasses.replace(verified, claims=(dataclasses.replace(result, arms=arms),))
    (again,) = judged_again(board, claims).claims
    (said,) = tables.ties(again)
    assert "options.bonus=2.0 minus the default options.bonus=1.0 is 1 ± 2" in said and "by an earlier rule" in said
    assert said in markdown([judged_again(board, claims)])
    assert [j.as_dict() for j in again.judgements] == [j.as_dict() for j in result.judgements]
    assert tables.ties(judged_again(board, None).claims[0]) == []


def test_a_board_of_the_first_rules_can_be_read(verified: Verification, claims: Book, tmp_path: Path) -> None:
    document = json.loads(json.dumps({"plugins": [verified.as_dict()]}))
    for claim in document["plugins"][0]["claims"]:
        for key in ("undecidable", "required"):
            del claim[key]
        for expectation in claim["expectations"]:
            for key in ("difference", "power", "undecidable"):
                del expectation[key]
        for arm in claim["arms"].values():
            for key in ("higher", "tie"):
                del arm[key]
            for tried in arm["tuning"]:
                del tried["default"], tried["gain"]
    (tmp_path / "scoreboard.json").write_text(json.dumps(document))
    (old,) = stored(tmp_path)
    assert judged_again(old, claims).as_dict() == verified.as_dict()


@pytest.mark.parametrize("text", ["no json", "[]", '{"plugins": [{"plugin": "a"}]}', '{"plugins": 3}'])
def test_a_damaged_scoreboard_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scoreboard.json").write_text(text)
    with pytest.raises(BadInput, match="is no scoreboard"):
        stored(tmp_path)
