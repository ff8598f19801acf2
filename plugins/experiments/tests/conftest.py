"""What the tests share: the command line, plugins that count as installed, and one thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plait.planning.discovery import pretend
from plait_authoring.fixtures import call, install, program
from plait_experiments.plugin import ExperimentsPlugin

__all__ = ["call", "install", "program"]

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # for claims_book, which worker processes import by name


@pytest.fixture(scope="module", autouse=True)
def _only_experiments() -> Iterator[None]:
    """No other plugin: what is installed beside must not change a test, and a report of every run would take half of
    its time."""
    with pretend(ExperimentsPlugin, distribution="plait", alone=True):
        yield
