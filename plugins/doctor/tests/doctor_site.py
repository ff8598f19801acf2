"""Distributions made on disk as an installation leaves them, for the tests of `plait doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.planning import discovery
from plait_doctor.finding import Case, Finding, guarded
from plait_doctor.probe import Probe

Site = Callable[..., Path]
CONTRACT = plait.CONTRACT_VERSION
GOOD = f"""
import plait
class {{name}}(plait.Plugin):
    name, contract = "{{name}}", {CONTRACT}
    @plait.hookimpl
    def loss_terms(self, outputs): return {{{{"size": outputs.square().mean()}}}}
"""


@pytest.fixture(name="site")
def site_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Make a distribution as an installation leaves it, in front of everything else on the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))

    def make(
        name: str,
        version: str = "0.3",
        *,
        plugins: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        metadata: str = "",
        direct_url: dict[str, Any] | None = None,
    ) -> Path:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        if plugins:
            points = "".join(f"{plugin} = {path}\n" for plugin, path in plugins.items())
            (info / "entry_points.txt").write_text(f"[plait]\n{points}")
        if direct_url:
            (info / "direct_url.json").write_text(json.dumps(direct_url))
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        discovered.enter_context(discovery.pretend())  # what is on the path now counts as installed
        return folder

    with ExitStack() as discovered:
        yield make
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(str(folder)):
            del sys.modules[name]


def findings_of(path: str, case: Case | None = None) -> list[Finding]:
    """What an examiner says."""
    return guarded(path, "part", case or Case(Path.cwd()))


def finding_of(path: str, name: str, case: Case | None = None) -> Finding:
    """What an examiner says of the one thing of that name."""
    (finding,) = [finding for finding in findings_of(path, case) if finding.name == name]
    return finding


def answering(**answer: Any) -> Probe:
    """A probe whose process prints this."""
    return Probe("torch", f"found = {answer!r}")
