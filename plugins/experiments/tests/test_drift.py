"""How far an arm moves with what should not matter: run again, threads, a nudged rate; kept, joined, and said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from claims_book import book, values

from plait.errors import BadInput
from plait.storage.environment import KERNELS, describe
from plait_experiments import drift, scoreboard, tables
from plait_experiments.results import Drift, Verification
from plait_experiments.schema import parse_book
from plait_experiments.verification import verify


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verification]:
    cache = tmp_path_factory.mktemp("drift")
    return cache, verify(book(), cache=cache, workers=0)


def measured(board: tuple[Path, Verification]) -> Verification:
    after, problems = drift.measure(board[1], book(), cache=board[0], workers=0)
    assert not problems
    return after


@pytest.mark.smoke
def test_the_same_run_moves_nothing_and_a_large_nudge_does(
    board: tuple[Path, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    again, threads, nudged = measured(board).claims[0].drifts
    assert again.change == "run again" and again.moves == {"accuracy": 0.0}
    assert again.arm == "trained" and again.seeds == 3 and "torch" in again.where
    assert "threads" in threads.change and threads.moves.keys() == {"accuracy"}
    assert threads.moves["accuracy"] >= 0 and threads.seeds == 3
    assert nudged.change == "learning rate + 1e-08"
    monkeypatch.setattr(drift, "NUDGE", 0.95)  # a rate of 1: no rounding any more
    _, _, *others = measured(board).claims[0].drifts
    assert others[-1].change == "learning rate + 0.95" and others[-1].moves["accuracy"] > 0


def test_the_runs_have_the_threads_that_are_said(tmp_path: Path) -> None:
    counted = book(arms__trained={"function": "test_drift:threads"}, claims__0__expect=["trained.other >= 1"])
    verification = verify(counted, cache=tmp_path, workers=0)
    after, _ = drift.measure(verification, counted, cache=tmp_path, workers=0)
    again, several, _ = after.claims[0].drifts
    assert again.moves["other"] == 0
    assert several.moves["other"] == int(several.change.partition(" ")[0]) - 1


def threads(recipe: object, folder: Path) -> dict[str, float]:
    """An arm that says how many threads it has."""
    import torch

    return {"made/other": float(torch.get_num_threads())}


def test_a_margin_below_the_move_is_said(board: tuple[Path, Verification]) -> None:
    result = board[1].claims[0]
    margin = result.judgements[0].margin
    assert margin is not None and not drift.smaller(result)
    small = Drift("trained", "2 threads", "here", 3, {"accuracy": margin / 2})
    large = Drift("trained", "2 threads", "there", 3, {"accuracy": margin * 1.5, "other": 1e9})
    assert not drift.smaller(dataclasses.replace(result, drifts=(small,)))
    (text,) = drift.smaller(dataclasses.replace(result, drifts=(small, large)))
    assert f"the margin {margin:.3g} is smaller" in text and "2 threads, there" in text


def test_drifts_are_written_read_joined_and_judged_again(board: tuple[Path, Verification], tmp_path: Path) -> None:
    elsewhere = Drift("trained", "run again", "another CPU, torch 1", 3, {"accuracy": 100.0})
    before = board[1]
    result = dataclasses.replace(before.claims[0], drifts=(elsewhere,))
    after, _ = drift.measure(dataclasses.replace(before, claims=(result,)), book(), cache=board[0], workers=0)
    assert after.claims[0].drifts[0] == elsewhere and len(after.claims[0].drifts) == 4
    again, _ = drift.measure(after, book(), cache=board[0], workers=0)
    assert again.as_dict() == after.as_dict()  # what this machine measured stands in the place of what it had
    scoreboard.write_scoreboard([after], tmp_path)
    (read,) = scoreboard.stored(tmp_path)
    assert read.claims[0].drifts == after.claims[0].drifts
    assert scoreboard.judged_again(read, book()).claims[0].drifts == read.claims[0].drifts
    (joined,) = scoreboard.join([read], [before])
    assert joined.claims[0].drifts == read.claims[0].drifts
    other = dataclasses.replace(
        before.claims[0],
        arms=tuple(
            dataclasses.replace(arm, values={m: {**of, min(of): -1.0} for m, of in arm.values.items()})
            for arm in before.claims[0].arms
        ),
    )
    (joined,) = scoreboard.join([read], [dataclasses.replace(before, claims=(other,))])
    assert joined.claims[0].drifts == ()  # it was compared with figures that stand no more
    assert "another CPU" in (tmp_path / "scoreboard.md").read_text()
    assert "is smaller than" in (tmp_path / "scoreboard.html").read_text()
    assert tables.drift_rows(read.claims[0])[0][-1] == "accuracy 100"
    old = json.loads((tmp_path / scoreboard.SCOREBOARD).read_text())
    del old["plugins"][0]["claims"][0]["drift"]  # a scoreboard from before there were any
    (tmp_path / scoreboard.SCOREBOARD).write_text(json.dumps(old))
    assert scoreboard.stored(tmp_path)[0].claims[0].drifts == ()


def test_what_cannot_be_measured_here_is_said(
    board: tuple[Path, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = values(
        scales__laptop__environment={"NOWHERE": "a folder"}, arms__trained__set={"train.steps": 40, "out": "$NOWHERE"}
    )
    monkeypatch.delenv("NOWHERE", raising=False)
    after, problems = drift.measure(board[1], parse_book(here, "made"), cache=board[0], workers=0)
    assert "NOWHERE is not set" in problems["learns"] and after.claims[0].drifts == ()
    with pytest.raises(BadInput, match="the scoreboard has no figures"):
        drift.measure(dataclasses.replace(board[1], claims=()), book(), only=["learns"], cache=board[0])


def test_claims_that_share_an_arm_run_it_once_and_the_most_shared_comes_first() -> None:
    a, b, c = (("a", (), (0,)), ("b", (), (0,)), ("c", (), (0,)))
    chosen = drift._shared({"first": [a, b], "second": [b, c], "third": [c], "fourth": [b]})
    assert chosen == {"first": b, "second": b, "fourth": b, "third": c}
    assert drift._shared({"alone": [a, b]}) == {"alone": a}  # the first named of equals
    assert drift._shared({}) == {}


def test_threads_and_rounding_are_measured_on_one_machine_and_seeds_as_many_as_asked_for(
    board: tuple[Path, Verification],
) -> None:
    result = dataclasses.replace(
        board[1].claims[0], drifts=(Drift("trained", "2 threads", "another CPU, torch 1", 3, {"accuracy": 1.0}),)
    )
    there = dataclasses.replace(board[1], claims=(result,))
    after, _ = drift.measure(there, book(), seeds=2, cache=board[0], workers=0)
    assert [(d.change, d.seeds) for d in after.claims[0].drifts] == [("2 threads", 3), ("run again", 2)]
    of_another_arm = dataclasses.replace(result, drifts=(Drift("other", "2 threads", "another CPU", 3, {}),))
    after, _ = drift.measure(dataclasses.replace(there, claims=(of_another_arm,)), book(), cache=board[0], workers=0)
    assert len(after.claims[0].drifts) == 4
    with pytest.raises(BadInput, match="--seeds 0: give a number from 1 on"):
        drift.measure(there, book(), seeds=0, cache=board[0])


def test_a_cpu_that_is_held_to_older_instructions_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KERNELS:
        monkeypatch.delenv(name, raising=False)
    plain = describe("cpu", [])
    assert plain["kernels"] == {}
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    held = drift.place(describe("cpu", []))
    assert ", ATEN_CPU_CAPABILITY=avx2, torch " in held
    assert held.replace(", ATEN_CPU_CAPABILITY=avx2", "") == drift.place(plain)
    del plain["kernels"]  # of a scoreboard from before it was told
    assert drift.place(plain) == held.replace(", ATEN_CPU_CAPABILITY=avx2", "")
