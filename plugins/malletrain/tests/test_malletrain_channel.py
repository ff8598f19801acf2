"""What manager and workers say to each other, and what strangers get."""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait_malletrain.channel import (
    LONGEST,
    Channel,
    ChannelError,
    Ended,
    Leave,
    Progress,
    Stop,
    greet,
    new_token,
    read_token,
    welcome,
)
from plait_malletrain.errors import MalletrainError

TOKEN = b"0123456789abcdef" * 2


def both(left: Callable[[socket.socket], Any], right: Callable[[socket.socket], Any]) -> tuple[Any, Any]:
    """What each side gets or raises, over one connection."""
    ends: dict[str, Any] = {}
    sockets = socket.socketpair()

    def run(name: str, side: Callable[[socket.socket], Any], end: socket.socket) -> None:
        try:
            ends[name] = side(end)
        except Exception as error:
            ends[name] = error
            end.close()

    threads = [
        threading.Thread(target=run, args=given) for given in (("left", left, sockets[0]), ("right", right, sockets[1]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    return ends["left"], ends["right"]


def connected() -> tuple[Channel, Channel]:
    """The manager's and the worker's end."""
    (name, manager), worker = both(lambda s: welcome(s, TOKEN), lambda s: greet(s, TOKEN, "slot 1"))
    assert name == "slot 1"
    return manager, worker


def test_messages_arrive_as_they_were_sent() -> None:
    manager, worker = connected()
    sent = [Stop(job="a", generation=2), Leave()]
    for message in sent:
        manager.send(message)
    assert worker.receive() == sent
    report = Progress(job="a", generation=2, step=3, total=9, time=1.5)
    worker.send(report)
    worker.send(Ended(job="a", generation=2, rank=0, outcome="lost"))
    assert manager.receive()[0] == report


def test_what_comes_with_the_greeting_is_not_left_lying() -> None:
    def manager(end: socket.socket) -> Channel:
        _, channel = welcome(end, TOKEN)
        channel.send(Leave())
        return channel

    def worker(end: socket.socket) -> Channel:
        time.sleep(0.1)  # the manager is faster
        return greet(end, TOKEN, "x")

    _, channel = both(manager, worker)
    channel.connection.setblocking(False)
    said = channel.buffered()
    assert said == [Leave()] or channel.receive() == [Leave()]


def test_neither_side_trusts_another_token() -> None:
    first, second = both(lambda s: welcome(s, TOKEN), lambda s: greet(s, b"another token, as long", "x"))
    assert isinstance(first, ChannelError) and "does not know the token" in str(first)
    assert isinstance(second, ChannelError)

    def false_manager(end: socket.socket) -> None:
        end.sendall(b'{"nonce": "00"}\n')
        end.recv(4096)
        end.sendall(b'{"proof": "00"}\n')

    _, second = both(false_manager, lambda s: greet(s, TOKEN, "x"))
    assert "the manager does not know the token" in str(second)


def test_a_recorded_greeting_is_worthless() -> None:
    # the greeting of one conversation, by hand
    nonce = "11" * 16
    proof = hmac.new(TOKEN, f"worker/{nonce}/22/x".encode(), "sha256").hexdigest()
    replay = json.dumps({"name": "x", "nonce": "22", "proof": proof}).encode() + b"\n"

    def replayed(end: socket.socket) -> None:
        end.recv(4096)
        end.sendall(replay)

    first, _ = both(lambda s: welcome(s, TOKEN), replayed)
    assert "does not know the token" in str(first)


@pytest.mark.parametrize("said", [b"hello\n", b"[1]\n", b"{}\n", b'{"name": 1}\n', b"x" * 9000, b""])
def test_a_stranger_is_turned_away(said: bytes) -> None:
    def stranger(end: socket.socket) -> None:
        end.recv(4096)
        end.sendall(said)
        end.close()

    first, _ = both(lambda s: welcome(s, TOKEN), stranger)
    assert isinstance(first, ChannelError) and "no greeting" in str(first)


def test_a_replayed_line_and_a_changed_one_end_the_conversation() -> None:
    manager, worker = connected()
    report = Progress(job="a", generation=1, step=1, total=2, time=0.0)
    sent: list[bytes] = []

    class Tapped:
        def sendall(self, data: bytes) -> None:
            sent.append(data)

    connection, worker.connection = worker.connection, Tapped()  # type: ignore[assignment]
    worker.send(report)
    connection.sendall(sent[0])
    assert manager.receive() == [report]
    connection.sendall(sent[0])
    with pytest.raises(ChannelError, match="not signed"):
        manager.receive()
    manager, worker = connected()
    worker.send(Progress(job="a", generation=1, step=1, total=2, time=0.0))
    changed = manager.connection.recv(LONGEST).replace(b'"step":1', b'"step":7')
    worker.connection.sendall(changed)
    with pytest.raises(ChannelError, match="not signed"):
        manager.receive()


def test_a_line_without_end_and_a_signed_line_that_is_no_message() -> None:
    manager, worker = connected()
    threading.Thread(target=worker.connection.sendall, args=(b"x" * (2 * LONGEST),)).start()
    with pytest.raises(ChannelError, match="without end"):  # noqa: PT012
        while True:
            assert manager.receive() == []

    class Odd:
        def model_dump_json(self) -> str:
            return '{"kind": "progress", "job": "a", "generation": 1, "step": -4, "total": 1, "time": 0}'

    manager, worker = connected()
    worker.send(Odd())  # type: ignore[arg-type]
    with pytest.raises(ChannelError, match="no message"):
        manager.receive()


def test_a_peer_that_goes_is_noticed() -> None:
    manager, worker = connected()
    worker.close()
    with pytest.raises(EOFError):
        manager.receive()


def test_tokens_are_secret_and_fresh(tmp_path: Path) -> None:
    first, second = new_token(tmp_path / "token"), new_token(tmp_path / "token")
    assert first != second and read_token(tmp_path / "token") == second
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    (tmp_path / "short").write_text("abc")
    with pytest.raises(MalletrainError, match="3 characters"):
        read_token(tmp_path / "short")
    with pytest.raises(MalletrainError, match="cannot be read"):
        read_token(tmp_path / "none")
