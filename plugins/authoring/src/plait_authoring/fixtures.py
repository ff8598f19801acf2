"""pytest fixtures for tests of commands and plugins: the command line, in this process (fast) and as a program (real).

A ``conftest.py`` imports those that its tests use, by name::

    from plait_authoring.fixtures import call, install, program  # noqa: F401
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plait.planning import discovery
from plait.plugin import Plugin


@dataclass(frozen=True)
class Answer:
    """What a call of the command line gave: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as exactly one JSON document, strictly (no NaN)."""

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


def command_line(*args: str) -> Answer:
    """The command line in this process."""
    from plait_cli.app import app

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(list(args), prog_name="plait")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def surroundings(*folders: Path) -> dict[str, str]:
    """The environment of a subprocess, with folders in front of its import path."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PLAIT_DEBUG": ""}


@pytest.fixture
def install() -> Iterator[Callable[..., None]]:
    """Make plugin classes installed until the test ends, and hide those that really are."""
    with contextlib.ExitStack() as stack:

        def add(*plugins: type[Plugin]) -> None:
            stack.enter_context(discovery.pretend(*plugins, alone=True))

        yield add


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """The command line in this process, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return command_line


@pytest.fixture(scope="session")
def caller() -> Callable[..., Answer]:
    """`call` for hypothesis, which must not see fixtures of a single test."""
    return command_line


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a subprocess."""
    return surroundings()


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Answer]:
    """The command line as a program of its own, in ``tmp_path``."""

    def run(*args: str, packages: tuple[Path, ...] = (), **extra: str) -> Answer:
        ended = subprocess.run(
            [sys.executable, "-m", "plait_cli", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**surroundings(*packages), **extra},
            timeout=120,
            check=False,
        )
        return Answer(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make an importable folder with modules and the metadata of a distribution that registers plugins."""

    def make(distribution: str, plugins: dict[str, str], **modules: str) -> Path:
        folder = tmp_path_factory.mktemp("site")
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        info = folder / f"{distribution.replace('-', '_')}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.3\n", encoding="utf-8")
        lines = [f"{name} = {path}" for name, path in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join(["[plait]", *lines, ""]), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def lone_process() -> Iterator[None]:
    """Afterwards this process is one of its own again, whatever a host has set up for several to find each other."""
    import torch.distributed
    from accelerate.state import AcceleratorState

    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
