"""What happens to the slots, as a file: for tests, demonstrations and the live trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import MalletrainError

__all__ = ["Order", "read_script"]


@dataclass(frozen=True)
class Order:
    """A line of a script: at ``time`` seconds a slot joins, is asked back (leave), or is killed."""

    time: float
    action: str
    slot: str


def read_script(path: Path) -> list[Order]:
    """Lines ``SECONDS join|leave|kill SLOT``; ``#`` begins a comment.

    Raises:
        MalletrainError: with the line.
    """
    orders: list[Order] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MalletrainError(f"{path}: cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            seconds, action, slot = float(fields[0]), fields[1], fields[2]
        except (ValueError, IndexError):
            seconds, action, slot = -1.0, "", ""
        if action not in ("join", "leave", "kill") or not 0 <= seconds < 1e9 or len(fields) != 3:
            raise MalletrainError(f"{path}: line {number}: {line.strip()!r}: write SECONDS join|leave|kill SLOT.")
        if orders and seconds < orders[-1].time:
            raise MalletrainError(f"{path}: line {number}: {seconds:g} s is before {orders[-1].time:g} s.")
        orders.append(Order(seconds, action, slot))
    if not orders:
        raise MalletrainError(f"{path}: the script is empty.")
    return orders
