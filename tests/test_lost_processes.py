"""What several processes say when one of them is lost, slow, or unlike the others: in seconds, and never a hang."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import Plugin, hookimpl
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state, first_difference
from plait_authoring.together import Ended, free_port, together

SECONDS = 30.0
"""More than any of these failures may take on a busy machine; the distributed.timeout of a run is 300."""


class TroublePlugin(Plugin):
    """At step 5 on rank 1: dies, sleeps, or refuses."""

    name = "trouble"
    contract = 1

    @hookimpl
    def optimizer_step(self, trainer: Any, batch: Any, proceed: Callable[[], Any]) -> Any:
        kind = os.environ.get("TROUBLE", "")
        if trainer.step == 5 and trainer.rank == 1:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "slow":
                time.sleep(60)
            if kind == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "terminated":
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "refusing":
                raise ValueError("the radius came out negative")
        return proceed()


RECIPE: dict[str, Any] = {
    "data": {"name": "tiny-images"},
    "model": {"name": "tiny-cnn"},
    "train": {"steps": 12, "batch_size": 24},
    "checkpoint": {"every_steps": 4},
    "distributed": {"timeout": 60},
    "device": "cpu",
    "plugins": {"trouble": {}},
}


@pytest.fixture(autouse=True)
def prepared() -> Iterator[None]:
    with pretend(TroublePlugin, alone=True):  # no report of every run
        yield


def run(path: Path, kind: str = "", **changes: Any) -> list[Ended]:
    table = {**RECIPE["distributed"], **changes.pop("distributed", {})}
    environments = [{"TROUBLE": kind}] * 2
    ended = together(lambda rank: plait.run({**RECIPE, "distributed": table}, out=path), environments=environments)
    assert all(e.seconds < SECONDS for e in ended), ended
    return ended


def failed(path: Path) -> str:
    return str(plait.load_run(path).directory.events()[-1]["error"])


def test_a_killed_process(tmp_path: Path) -> None:
    first, second = run(tmp_path / "r", "killed")
    assert second.code == -signal.SIGKILL
    assert first.code == 1
    assert "step 5: rank 1 of 2 was lost (killed, out of memory, or its machine is gone)" in first.error
    assert failed(tmp_path / "r") in first.error
    assert [p.stem for p in plait.load_run(tmp_path / "r").directory.saved_checkpoints()] == ["step-000000004"]
    # on as many processes as are left
    assert plait.resume(tmp_path / "r").finished


def test_a_process_that_refuses_tells_why_and_the_other_one_does_not_repeat_it(tmp_path: Path) -> None:
    first, second = run(tmp_path / "r", "refusing")
    assert (first.code, second.code) == (1, 1)
    assert "rank 1: step 5: plugin 'trouble': the radius came out negative" in second.error
    assert not second.shown
    assert "rank 1: step 5: plugin 'trouble': the radius came out negative" in first.error
    assert first.shown
    assert "the radius came out negative" in failed(tmp_path / "r")


@pytest.mark.parametrize("kind", ["slow", "stopped"])
def test_a_slow_process(tmp_path: Path, kind: str) -> None:
    """It is waited for as long as the recipe says; then its rank and step are named."""

    def act(rank: int) -> None:
        if rank == 0:
            plait.run({**RECIPE, "distributed": {"timeout": 3}}, out=tmp_path / "r")
        else:
            signal.setitimer(signal.ITIMER_REAL, 20)  # ends the sleeper, should nobody else
            plait.run({**RECIPE, "distributed": {"timeout": 3}}, out=tmp_path / "r")

    first = _first_of(act, kind)
    assert first.code == 1
    assert first.seconds < SECONDS
    said = (
        "rank 1 (at step 5) did not keep up: distributed.timeout = 3 s ran out"
        if kind == "slow"
        else "rank 1 of 2 was lost"
    )
    assert said in first.error, first.error


def _first_of(act: Callable[[int], object], kind: str) -> Ended:
    ended = together(act, environments=[{"TROUBLE": kind}] * 2, until=0)
    return ended[0]


def test_processes_that_were_started_differently(tmp_path: Path) -> None:
    def other_recipe(rank: int) -> None:
        plait.run({**RECIPE, "optimizer": {"lr": 0.1 if rank else 0.05}}, out=tmp_path / "r")

    def other_version(rank: int) -> None:
        from plait.storage import environment

        before = environment.versions

        def newer(names: list[str]) -> dict[str, str]:
            return {**before(names), "plait-core": "9.9"} if rank else before(names)

        environment.versions = newer
        plait.run(RECIPE, out=tmp_path / "r")

    for act, said in (
        (other_recipe, "optimizer.lr is 0.05 on rank 0 and 0.1 on rank 1"),
        (other_version, f"plait-core is {plait.__version__} on rank 0 and 9.9 on rank 1"),
    ):
        ended = together(act)
        assert [e.code for e in ended] == [2, 2]
        assert all(said in e.error for e in ended), ended
        assert [e.shown for e in ended] == [False, True]
        assert all(e.seconds < SECONDS for e in ended)
        assert not (tmp_path / "r").exists()


def test_a_directory_that_is_not_free(tmp_path: Path) -> None:
    assert [e.code for e in run(tmp_path / "r")] == [0, 0]
    ended = run(tmp_path / "r")
    assert [e.code for e in ended] == [2, 2]
    assert all("already holds a run" in e.error for e in ended)
    again = together(lambda rank: plait.run(RECIPE, out=tmp_path / "r", go_on=True))
    assert [e.code for e in again] == [0, 0]
    other = {**RECIPE, "seed": 3}
    ended = together(lambda rank: plait.run(other, out=tmp_path / "r", go_on=True))
    assert [e.code for e in ended] == [2, 2]
    assert "seed is 0 there and 3 here" in ended[0].error
    with plait.load_run(tmp_path / "r").directory.locked():
        ended = together(lambda rank: plait.resume(tmp_path / "r", checkpoint="step-000000008"))
    assert [e.code for e in ended] == [2, 2], ended
    assert "is being written by another process" in ended[0].error


def test_a_port_that_is_taken_and_a_process_that_never_comes(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        short = {**RECIPE, "distributed": {"timeout": 3}}
        ended = together(lambda rank: rank or plait.run(short, out=tmp_path / "r"), port=port)
        assert ended[0].code == 2
        assert f"127.0.0.1:{port} is taken on this machine: choose another MASTER_PORT" in ended[0].error
        assert ended[0].seconds < SECONDS
    ended = together(lambda rank: rank or plait.run(short, out=tmp_path / "r"), port=free_port())
    assert ended[0].code == 1
    assert "the 2 processes of this run did not come together" in ended[0].error
    assert ended[0].seconds < SECONDS
    assert not (tmp_path / "r").exists()


def test_several_processes_must_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(plait.BadInput, match="say where, with --out DIR"):
        plait.run(RECIPE)
    with pytest.raises(plait.BadInput, match="2 processes cannot share one device"):
        plait.run(RECIPE, device="cuda:0", out=tmp_path / "r")


def test_a_signal_stops_all_processes_at_one_step(tmp_path: Path) -> None:
    """As a scheduler sends it: between two steps, after a checkpoint, said once, and gone on with to the same bits."""
    wanted = {**RECIPE, "train": {"steps": 12, "batch_size": 24, "log_every": 3}}

    def act(rank: int) -> None:
        plait.run(wanted, out=tmp_path / "r")

    ended = together(act, environments=[{"TROUBLE": "terminated"}] * 2)
    assert [e.code for e in ended] == [130, 130], ended
    assert "stopped after step 6 of 12. Go on with: plait resume" in ended[0].error
    assert [e.shown for e in ended] == [False, True]
    ended = together(lambda rank: plait.resume(tmp_path / "r"))
    assert [e.code for e in ended] == [0, 0], ended
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "whole"))
    assert first_difference(final_state(tmp_path / "r"), final_state(tmp_path / "whole")) is None
