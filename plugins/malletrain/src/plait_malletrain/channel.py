"""What manager and workers tell each other: lines of JSON over TCP, each signed with a key made from the token.

Both sides prove that they know the token without sending it, over a fresh number of each (so a recorded greeting is
worthless), and every later line is signed with its place in the conversation (so a recorded line is, too).
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .errors import MalletrainError

__all__ = ["Channel", "ChannelError", "Message", "greet", "welcome"]

LONGEST = 64 * 1024
"""Bytes of a line; a longer one is no message of ours."""
SECONDS = 10.0
"""How long a peer may take to answer a greeting, or to take a message."""


class ChannelError(Exception):
    """A peer that does not know the token, or a line that is no message; the connection is closed."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OfJob(_Message):
    job: str
    generation: int


class Work(_OfJob):
    """To a worker: be these ranks of a job's generation."""

    kind: Literal["work"] = "work"
    recipe: str
    directory: str
    ranks: tuple[int, ...]
    world: int
    address: str
    port: int


class Stop(_OfJob):
    """To a worker: let the job write a checkpoint at its next step boundary and end (``now``: end at once)."""

    kind: Literal["stop"] = "stop"
    now: bool = False


class Leave(_Message):
    """To a worker: the node is given back; end what runs there."""

    kind: Literal["leave"] = "leave"


class Imports(_Message):
    """Modules that a job has imported: to the manager, and on to every worker, where the next rank finds them."""

    kind: Literal["imports"] = "imports"
    names: tuple[str, ...]


class Progress(_OfJob):
    """From a worker, of a job's rank 0: how far it is."""

    kind: Literal["progress"] = "progress"
    step: int = Field(ge=0)
    total: int = Field(ge=0)
    time: float


class Ended(_OfJob):
    """From a worker: a rank has ended, and how."""

    kind: Literal["ended"] = "ended"
    rank: int
    outcome: Literal["finished", "stopped", "failed", "lost"]
    text: str = ""
    code: int = 0


Message = Work | Stop | Leave | Imports | Progress | Ended
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def read_token(path: Path) -> bytes:
    """The token in a file.

    Raises:
        MalletrainError: it cannot be read, or is too short.
    """
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise MalletrainError(f"{path}: the token cannot be read: {error.strerror}.") from None
    if len(token) < 16:
        raise MalletrainError(f"{path}: the token has {len(token)} characters; give at least 16.")
    return token


def new_token(path: Path) -> bytes:
    """Write a fresh token, readable by its owner only."""
    token = secrets.token_hex(32)
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(token)
    return token.encode()


class Channel:
    """One end of a conversation.

    Args:
        connection: a connected socket.
        key: of this conversation.
        mine, other: what the two ends sign with, so that a line cannot be sent back.
    """

    def __init__(self, connection: socket.socket, key: bytes, mine: str, other: str, rest: bytes = b"") -> None:
        self.connection, self._key, self._mine, self._other = connection, key, mine, other
        self._sent = self._seen = 0
        self._buffer = rest
        connection.settimeout(SECONDS)

    def fileno(self) -> int:
        """For selectors."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: the peer is gone.
        """
        body = message.model_dump_json().encode()
        signature = _sign(self._key, f"{self._mine}/{self._sent}".encode() + body)
        self._sent += 1
        self.connection.sendall(signature + b" " + body + b"\n")

    def receive(self) -> list[Message]:
        """The messages that have come; call it when there is something to read.

        Raises:
            ChannelError: a line that is no message, or is not signed as it must be.
            EOFError, OSError: the peer is gone.
        """
        data = self.connection.recv(LONGEST)
        if not data:
            raise EOFError("the connection is closed")
        self._buffer += data
        return self.buffered()

    def buffered(self) -> list[Message]:
        """The messages that have been read already, such as those that came with the greeting.

        Raises:
            ChannelError: as `receive`.
        """
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > LONGEST:
            raise ChannelError("a line without end")
        return [self._opened(line) for line in lines]

    def _opened(self, line: bytes) -> Message:
        signature, _, body = line.partition(b" ")
        expected = _sign(self._key, f"{self._other}/{self._seen}".encode() + body)
        if not hmac.compare_digest(signature, expected):
            raise ChannelError("a line that is not signed with this conversation's key")
        self._seen += 1
        try:
            return _ADAPTER.validate_json(body)
        except ValidationError as error:
            raise ChannelError(f"no message: {error.errors()[0]['msg']}") from None

    def close(self) -> None:
        """End the conversation."""
        self.connection.close()


def welcome(connection: socket.socket, token: bytes) -> tuple[str, Channel]:
    """The manager's greeting: the worker's name, and the conversation.

    Raises:
        ChannelError: the peer does not know the token, or says something else.
    """
    connection.settimeout(SECONDS)
    nonce = secrets.token_hex(16)
    try:
        _say(connection, {"nonce": nonce})
        answer, rest = _hear(connection)
        name, theirs, proof = (str(answer[key]) for key in ("name", "nonce", "proof"))
        if not hmac.compare_digest(proof.encode(), _sign(token, f"worker/{nonce}/{theirs}/{name}".encode())):
            raise ChannelError("a greeting that does not know the token")
        _say(connection, {"proof": _sign(token, f"manager/{nonce}/{theirs}".encode()).decode()})
    except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ChannelError(f"no greeting: {type(error).__name__}") from None
    return name, Channel(connection, _sign(token, f"key/{nonce}/{theirs}".encode()), "manager", "worker", rest)


def greet(connection: socket.socket, token: bytes, name: str) -> Channel:
    """The worker's greeting.

    Raises:
        ChannelError: the manager does not know the token.
    """
    connection.settimeout(SECONDS)
    try:
        offer, _ = _hear(connection)
        nonce, mine = str(offer["nonce"]), secrets.token_hex(16)
        proof = _sign(token, f"worker/{nonce}/{mine}/{name}".encode()).decode()
        _say(connection, {"name": name, "nonce": mine, "proof": proof})
        answer, rest = _hear(connection)
        expected = _sign(token, f"manager/{nonce}/{mine}".encode())
        if not hmac.compare_digest(str(answer["proof"]).encode(), expected):
            raise ChannelError("the manager does not know the token")
    except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ChannelError(f"no greeting: {type(error).__name__}; is the token the manager's?") from None
    return Channel(connection, _sign(token, f"key/{nonce}/{mine}".encode()), "worker", "manager", rest)


def _sign(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, "sha256").hexdigest().encode()


def _say(connection: socket.socket, document: dict[str, str]) -> None:
    connection.sendall(json.dumps(document).encode() + b"\n")


def _hear(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """A line, and what came after it."""
    data = b""
    while b"\n" not in data:
        part = connection.recv(4096)
        if not part or len(data) > 4096:
            raise EOFError
        data += part
    line, _, rest = data.partition(b"\n")
    return json.loads(line), rest
