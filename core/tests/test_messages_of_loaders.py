"""What a loader process raises is said again as it was said there; files that plait writes follow the umask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import Batch
from plait.data.streams import Stream, column
from plait.errors import BadInput
from plait.storage import checkpoints


class Foreign(Exception):
    """An exception that takes no text."""

    def __init__(self, number: int, *, unit: str) -> None:
        super().__init__(f"{number} {unit}\nand more")


class Raising:
    """A split on files whose reading fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def __getitems__(self, rows: Sequence[int]) -> Any:
        try:
            raise LookupError('File "other.py", line 7')
        except LookupError:
            raise self.error from None


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("row 3: odd\n  indented\nmore"), ValueError, "row 3: odd\n  indented\nmore"),
        (KeyError("label"), KeyError, "'label'"),
        (BadInput("a.png: no image"), BadInput, "a.png: no image"),
        (AssertionError(), AssertionError, ""),
        (FileNotFoundError(2, "No such file", "a.png"), FileNotFoundError, "[Errno 2] No such file: 'a.png'"),
        (Foreign(3, unit="mm"), RuntimeError, f"{Foreign.__module__}.Foreign: 3 mm\nand more"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_a_loader_process_is_unwrapped(error: Exception, kind: type, said: str) -> None:
    with pytest.raises(kind) as caught:
        next(Stream(Raising(error), "train", 0, 4, workers=1))
    assert type(caught.value) is kind and str(caught.value) == said
    assert "__getitems__" in caught.value.__notes__[0]  # where it was raised, for a traceback


class Lazy(dict[str, torch.Tensor]):
    """Columns that are read when they are asked for; `in` does not know them."""

    def __missing__(self, name: str) -> torch.Tensor:
        if name != "group":
            raise KeyError(name)
        return torch.tensor([1, 0])


def test_columns_that_a_mapping_makes_when_asked() -> None:
    class Split:
        fields = Lazy()

        def __len__(self) -> int:
            return 2

        def __getitems__(self, rows: Any) -> Batch:
            return Batch(index=torch.as_tensor(rows), label=torch.tensor([5, 6]))

    assert column(Split(), "group").tolist() == [1, 0]
    assert column(Split(), "label").tolist() == [5, 6]
    with pytest.raises(BadInput, match="no field 'other'"):
        column(Split(), "other")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_checkpoint_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        checkpoints.save(tmp_path / "one.safetensors", {"w": torch.ones(2)})
        (tmp_path / "plain").write_text("", encoding="utf-8")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode for name in ("one.safetensors", "plain")]
    assert modes[0] == modes[1]
