"""Fixtures shared by the core's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from plait.plugin import Plugin
from plait.testing.strangers import installed

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # for claims_book, which worker processes import by name


@pytest.fixture
def install() -> Iterator[Callable[..., None]]:
    """Make plugin classes installed, and hide what really is."""
    with ExitStack() as stack:

        def add(*plugins: type[Plugin]) -> None:
            stack.enter_context(installed(*plugins, alone=True))

        yield add
