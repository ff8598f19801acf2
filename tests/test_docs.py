"""The documentation is true: generated parts are up to date, code runs, commands are accepted, links lead somewhere.

A page's ``python`` blocks are one script, run in an empty folder. A block that begins with ``# name.py`` is that file.
Lines that begin with ``plait`` in ``sh`` blocks are planned or looked at, not run; on the pages in `EXECUTED` all
``sh`` blocks are one script that is run. The Python blocks of a plugin's README are run by the plugin's own tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import plait
from plait_authoring.kill import forked
from plait_experiments import sweep, verification

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
EXECUTED = [ROOT / "docs" / "resume.md"]
WALKED = [ROOT / "docs" / "write-a-plugin.md"]
"""Walked through by test_tutorial.py."""
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("*/README.md"))]
PLUGINS = sorted(ROOT.glob("plugins/*/README.md"))
OTHERS += PLUGINS
METHODS = [readme.parent.name for readme in PLUGINS if list(readme.parent.glob("src/*/claims.toml"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every fenced block in a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)), match[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [*PAGES, *PLUGINS], ids=named)
def test_generated_parts_are_up_to_date(page: Path, tables: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- end -->") == len(tables.PART.findall(text)), "a marker of a generated part is misspelt"
    assert tables.render(text) == text, "run: python docs/make_tables.py"


@pytest.mark.parametrize("page", [p for p in PAGES if p not in WALKED and any(blocks(p, "python"))], ids=named)
def test_python_blocks_run(page: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a fork: a process of its own, in which torch is imported already."""
    lines: list[str] = []
    for start, block in blocks(page, "python"):
        first = block.partition("\n")[0]
        if re.fullmatch(r"# \w+\.py", first):
            (tmp_path / first[2:]).write_text(block, encoding="utf-8")
        else:
            lines += [""] * (start - len(lines)) + block.splitlines()  # errors show the page's own line numbers
    script = tmp_path / f"{page.stem}_md.py"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run() -> None:
        os.chdir(tmp_path)
        sys.path.insert(0, str(tmp_path))
        runpy.run_path(script.name, run_name="__main__")

    assert forked(run) == 0, f"{named(page)}: {capfd.readouterr().err[-3000:]}"


@pytest.mark.parametrize("page", EXECUTED, ids=named)
def test_shell_blocks_run(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    script = "\n".join(block for _, block in blocks(page, "sh"))
    done = subprocess.run(
        ["timeout", "--kill-after=5", "500", "bash", "-euo", "pipefail", "-c", script],  # also ends what it started
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{named(page)}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert "the same bits\n" in done.stdout


def commands() -> list[Any]:
    parameters = []
    for page in [p for p in (*PAGES, *OTHERS) if p not in EXECUTED + WALKED]:
        for start, block in [*blocks(page, "sh"), *blocks(page, "")]:
            for number, line in enumerate(block.splitlines(), start + 1):
                command = line.partition("#")[0].strip()
                if command.startswith("plait "):
                    parameters.append(pytest.param(command, id=f"{named(page)}:{number}"))
    return parameters


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plait_cli.app import app
    from plait_cli.groups import COMMANDS, TOOLS

    monkeypatch.chdir(tmp_path)
    for folder in ("examples",):
        (tmp_path / folder).symlink_to(ROOT / folder)
    _, name, *rest = shlex.split(command)
    if name not in {*COMMANDS, *TOOLS} or "NAME" in command:
        if name in ("NAME", "attic") or name.startswith("-"):
            return
        rest = [rest[0], "--help"]  # a command of a plugin
    if name == "run":
        name, rest = "plan", planned(rest)
    away = any(word.isupper() or "://" in word for word in rest) or "attic" in command
    if name in ("resume", "report", "compare", "doctor") or away or {"--rejudge", "--drift"} & {*rest}:
        rest = ["--help"]
    if name == "verify":
        monkeypatch.setattr(verification, "verify", only_look)
    if name == "sweep":
        rest = [word for word in rest if word != "recipe.toml"]
        monkeypatch.setattr(sweep, "sweep", no_sweep)
    with pytest.raises(SystemExit) as ended:
        app([name, *rest], prog_name="plait")
    said = capsys.readouterr().err
    assert ended.value.code in (0, 3) or "looked at, not run" in said, said


def only_look(book: Any, *, only: Any, **options: Any) -> None:
    """In place of an hour of experiments: the claims that a command names exist."""
    for claim in only:
        book.claim(claim)
    raise plait.BadInput("looked at, not run")


def no_sweep(recipe: Any, over: Any, **options: Any) -> None:
    """In place of many runs: what is varied was understood."""
    raise plait.BadInput("looked at, not run")


def planned(arguments: list[str]) -> list[str]:
    """The arguments of ``plait run`` that ``plait plan`` takes as well."""
    left, words = [], iter(arguments)
    for word in words:
        if word in ("--out", "--epochs", "--steps", "--seed", "--seeds", "--device", "--nproc", "--restarts"):
            next(words)
        elif word in ("recipe.toml", "--go-on"):
            continue
        else:
            left.append(word)
    return left


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=named)
def test_relative_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def details(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every metric of small runs of everything: the methods for images woven into one, the strategies alone."""
    from plait.planning import discovery

    def tiny(name: str) -> Mapping[str, Any]:
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        return plugin.tiny

    beside = {"companions": ["naive", "naive@adjacent"], "defence": "balance"}
    rounds = {"rounds": 2, "p_g": 0.5, "mask_epochs": 3, "fix_epochs": 2, "warmup": 0}
    frames = {"data.train_frames": 8, "data.validation_frames": 2, "data.test_frames": 4}
    pruned = {"protocol": "paper", "structure": "channels", "sparsity": 0.5}
    small: dict[str, Any] = {"data": "tiny-images", "model": "tiny-cnn", "steps": 30}
    runs: list[dict[str, Any]] = [
        {"plugins": {"chase": {}, "fairsam": {"severities": [3]}}, "settings": {"data.classes": 2}, **small},
        {"plugins": {"fairprune": pruned}, "settings": {"data.classes": 2}, **small},
        {"plugins": {"flamefinder": {}}, "data": "flame-synth", "settings": frames, "steps": 20},
        {"plugins": {"glt": rounds}, "data": "karate", "model": "gcn"},
        *({"plugins": {name: dict(tiny(name))}, "steps": 2} for name in ("brainot", "cdmoe", "dydca", "malletrain")),
        {"plugins": {"dbadfl": {**tiny("dbadfl"), **beside}}, **small, "steps": 4},
    ]
    folder, details = tmp_path_factory.mktemp("metrics"), {}
    for number, chosen in enumerate(runs):
        details |= json.loads(json.dumps(plait.run(**chosen, out=folder / str(number)).details))
    return details


@pytest.mark.parametrize("plugin", METHODS)
def test_metric_tables_say_what_a_run_reports(plugin: str, details: dict[str, dict[str, Any]]) -> None:
    page = (ROOT / "plugins" / plugin / "README.md").read_text(encoding="utf-8")
    section = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    written = {row[0].strip("`"): (row[1], row[2]) for row in rows}
    reported: dict[str, tuple[str, str]] = {}
    for name, detail in details.items():
        owner, _, metric = name.partition("@")[0].partition("/")
        if owner == plugin:
            better = "" if detail["better"] == "neither" else detail["better"]
            reported[_row(metric, written)] = (detail["unit"], better)
    assert written == reported


def _row(metric: str, written: Collection[str]) -> str:
    """The row of a metric: its own, or one with capital letters in the place of a number or a name."""
    if metric in written:
        return metric
    patterns = {row: re.sub(r"(?<![a-z])[A-Z]+(?![a-z])", "[A-Za-z0-9_]+", row) for row in written}
    fitting = [row for row, pattern in patterns.items() if pattern != row and re.fullmatch(pattern, metric)]
    return max(fitting, key=len, default=metric)


@pytest.mark.parametrize("plugin", METHODS)
def test_a_methods_page_has_its_options_and_every_claim_with_its_verdict(plugin: str) -> None:
    readme = (ROOT / "plugins" / plugin / "README.md").read_text(encoding="utf-8")
    assert f"<!-- options:{plugin} -->" in readme
    part = readme.partition(f"<!-- claims:{plugin} -->")[2].partition("<!-- end -->")[0].strip()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:3] == "| `"]
    shown = {row[0].strip("`"): row[1] for row in rows[: len(part.partition("\n\n")[0].splitlines()) - 2]}
    (file,) = ROOT.glob(f"plugins/{plugin}/src/*/claims.toml")
    claims = tomllib.loads(file.read_text(encoding="utf-8"))["claims"]
    board = json.loads((ROOT / "docs/scoreboard/scoreboard.json").read_text(encoding="utf-8"))
    verdicts = {
        c["id"]: "undecidable at this size" if c.get("undecidable") else c["verdict"]
        for p in board["plugins"]
        if p["plugin"] == plugin
        for c in p["claims"]
    }
    assert list(shown) == [claim["id"] for claim in claims]
    for claim in claims:
        assert shown[claim["id"]].strip("*").startswith(verdicts.get(claim["id"], "not run"))


def test_every_rule_has_its_refusals_on_their_page() -> None:
    from plait.declare.rules import Rule

    headings = re.findall(r"^##+ (.*)$", (ROOT / "docs/refusals.md").read_text(encoding="utf-8"), re.M)
    missing = [rule.value for rule in Rule if not any(h.lower().startswith(f"{rule.value}:") for h in headings)]
    assert not missing


def test_the_terminal_picture_shows_what_the_command_prints(tables: ModuleType) -> None:
    picture = ElementTree.parse(ROOT / "docs" / "terminal.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    lines: dict[float, dict[int, str]] = {}
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        if text.get("clip-path"):
            line = lines.setdefault(float(text.attrib["y"]), {})
            line[round(float(text.attrib["x"]) / 12.2)] = "".join(text.itertext()).replace("\u00a0", " ")
    shown = [" ".join("".join(part for _, part in sorted(line.items())).split()) for _, line in sorted(lines.items())]
    printed = tables.PARTS["prints"]("plan -p chase -p fairsam --data toned-digits --model cnn")
    expected = [" ".join(line.split()) for line in printed.splitlines()[1:-1] if line.strip()]
    assert [line for line in shown if line][: len(expected)] == expected
    assert not re.search(r"@font-face|@import|url\((?!#)", ElementTree.tostring(picture, encoding="unicode"))
