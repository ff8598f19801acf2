"""The page "Write a plugin in ten minutes", walked through as a reader would: every block, in order, in one folder.

A ``python`` or ``toml`` block begins with ``# path`` and is written there. ``sh`` blocks are run. In a ``console``
block a line ``$ command`` is run, and what follows is its output. ``text`` blocks are only read (publishing).
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "write-a-plugin.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
OFFLINE = "--no-index --no-build-isolation --quiet"
PROGRAMS = {
    "plait": "-m plait_cli",
    "pip": "-m pip",
    "pytest": "-m pytest -q -p no:cacheprovider",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment of its own, in which everything of ours can be imported: nothing is installed into ours."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    answer = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = sysconfig.get_paths()["purelib"]
    Path(answer.stdout.strip(), "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, arguments in PROGRAMS.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{python}" {arguments} "$@"\n')
        program.chmod(0o755)
    (folder / "bin" / "ruff").symlink_to(Path(sysconfig.get_path("scripts"), "ruff"))
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PLAIT_DEBUG")}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return kept | own


def offline(command: str) -> str:
    """The command without what needs the internet: everything it would download is here already."""
    command = re.sub(r"^pip install\b", f"pip install {OFFLINE}", command, flags=re.M)
    return re.sub(r"^python -m build$", "python -m build --no-isolation", command, flags=re.M)


@pytest.mark.timeout(1800)
def test_every_block_does_what_the_page_says(tmp_path: Path, environment: dict[str, str]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    here = tmp_path / "here"
    here.write_text(str(work))

    def run(script: str) -> subprocess.CompletedProcess[str]:
        ended = f'{offline(script)}\npwd > "{here}"\n'
        return subprocess.run(
            ["bash", "-ec", ended],
            cwd=here.read_text().strip(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )

    text = PAGE.read_text(encoding="utf-8")
    walked = []
    for match in FENCE.finditer(text):
        language, block = match[1], match[2]
        line = text.count("\n", 0, match.start()) + 1
        walked.append(language)
        if language in ("python", "toml"):
            first = block.partition("\n")[0]
            assert re.fullmatch(r"# [\w/.-]+", first), f"line {line}: a block that is a file begins with # path"
            file = Path(here.read_text().strip(), first[2:])
            assert file.parent.is_dir(), f"line {line}: {file.parent} is not there"
            file.write_text(block.partition("\n")[2] if language == "python" else block, encoding="utf-8")
        elif language == "sh":
            done = run(block)
            assert done.returncode == 0, f"line {line}:\n{block}\n{done.stdout[-4000:]}"
        elif language == "console":
            first, _, expected = block.partition("\n")
            done = run(first.removeprefix("$ "))
            printed = "\n".join(row.rstrip() for row in done.stdout.strip().splitlines())
            assert printed == expected.strip(), f"line {line}: {first}\n{done.stdout}"
        else:
            assert language == "text", f"line {line}: a block of an unknown language {language!r}"
    assert {"python", "toml", "sh", "console"} <= set(walked)
    built = Path(here.read_text().strip(), "dist")
    assert len(list(built.iterdir())) == 2
