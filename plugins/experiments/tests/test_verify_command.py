"""plait verify, and the claims in plait info, with a plugin of a stranger's."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plait.planning.discovery import pretend
from plait_experiments.plugin import ExperimentsPlugin

PLUGIN = """
from plait import Plugin

class DemoPlugin(Plugin):
    name = "demo"
    summary = "has claims"
    paper = "A Paper, 2024"
    contract = 1
"""
CLAIMS = """
schema = 1

[metrics.accuracy]
name = "task/accuracy"
better = "higher"
unit = "%"

[scales.laptop]
seeds = [0, 1, 2]

[scales.laptop.recipe]
device = "cpu"
data = { name = "tiny-images", train = 64, size = 8, noise = 0.02 }
model = { name = "tiny-cnn", width = 4 }
train = { steps = 40, batch_size = 32 }
checkpoint = { every_steps = 100 }

[arms.trained]
about = "forty steps"

[arms.untrained]
set = { "train.steps" = 0 }

[[claims]]
id = "learns"
sentence = "Training helps."
source = "section 1"
expect = ["trained.accuracy - untrained.accuracy > 0"]
minutes = { laptop = 0.1 }

[[claims]]
id = "harms"
sentence = "Training harms."
source = "section 2"
ours = true
reconstruction = "[inferred]: all of it"
expect = ["untrained.accuracy - trained.accuracy > 0"]
minutes = { laptop = 0.1 }

[[claims]]
id = "aside"
sentence = "Training is asked about, beside the gate."
source = "section 3"
gate = false
expect = ["trained.accuracy - untrained.accuracy > 0"]
minutes = { laptop = 0.1 }
"""
Program = Callable[..., Any]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    package = folder / "plait_demo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(PLUGIN)
    (package / "claims.toml").write_text(CLAIMS)
    info = folder / "plait_demo-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plait-demo\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[plait]\ndemo = plait_demo.plugin:DemoPlugin\n")
    return folder


@pytest.fixture
def demo(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin of `site` and the commands, in this process."""
    monkeypatch.syspath_prepend(site)
    plugin = importlib.import_module("plait_demo.plugin").DemoPlugin
    with pretend(plugin, ExperimentsPlugin, distribution="plait", alone=True):
        yield


def test_verify(program: Program, site: Path, tmp_path: Path) -> None:
    false = program("verify", "demo", "--workers", "1", "--cache", "cache", "--json", packages=(site,))
    assert false.code == 4, false.err
    document = false.document
    assert [c["verdict"] for c in document["claims"]] == ["holds", "fails", "holds"]
    assert document["holds"] is False
    assert document["cells"] == {"ran": 6, "cached": 0}
    assert json.loads((tmp_path / "verify" / "demo.json").read_text())["claims"] == document["claims"]

    true = program("verify", "demo", "--claim", "learns", "--cache", "cache", packages=(site,))
    assert true.code == 0, true.err
    assert "holds" in true.out and "demo 0.3 at laptop scale" in true.out
    assert "0 run now, 6 from the cache" in true.out and "page: verify/demo.html" in true.out
    assert "[inferred]" not in true.out


def test_everything_gives_a_scoreboard(call: Callable[..., Any], demo: None, tmp_path: Path) -> None:
    everything = call("verify", "--all", "--gating", "--workers", "0", "--cache", "cache", "--out", "board", "--json")
    assert everything.code == 4, everything.err
    assert [entry["plugin"] for entry in everything.document["plugins"]] == ["demo"]
    text = (tmp_path / "board" / "scoreboard.md").read_text()
    assert "beside the gate" not in text
    assert "| Training helps. | holds |" in text and "| Training harms. | fails |" in text
    assert "`harms`: [inferred]: all of it" in text
    assert {p.name for p in (tmp_path / "board").iterdir()} >= {"scoreboard.html", "scoreboard.json", "demo.html"}

    again = ("verify", "demo", "--workers", "0", "--cache", "cache", "--scoreboard", "--out", "board")
    aside = call(*again, "--claim", "aside")
    assert aside.code == 0, aside.err
    text = (tmp_path / "board" / "scoreboard.md").read_text()
    assert "beside the gate" in text and "| Training harms. | fails |" in text  # the earlier verdicts stay
    assert "from an earlier verification" in text and "page: board/scoreboard.html" in aside.out

    board = tmp_path / "board" / "scoreboard.json"
    document = json.loads(board.read_text())
    judged = document["plugins"][0]["claims"][1]
    kept = json.loads(json.dumps(document))
    judged["verdict"] = judged["expectations"][0]["verdict"] = "holds"  # as another rule would have it
    judged["expectations"][0]["interval"] = None
    board.write_text(json.dumps(document))
    again = call("verify", "--rejudge", "--out", "board")
    assert again.code == 4 and "demo harms: holds, now fails" in again.out, again.err
    assert (
        json.loads(board.read_text()) == kept
        and "| Training harms. | fails |" in (tmp_path / "board" / "scoreboard.md").read_text()
    )

    drift = call("verify", "demo", "--drift", "--workers", "0", "--cache", "cache", "--out", "board")
    assert drift.code == 0 and "learning rate + 1e-08" in drift.out and "page: board/scoreboard.html" in drift.out
    first = json.loads(board.read_text())["plugins"][0]["claims"][0]["drift"][0]
    assert first["change"] == "run again" and set(first["moves"].values()) == {0.0}

    shown = call("verify", "demo", "--workers", "0", "--cache", "cache")
    assert shown.code == 4 and "Reconstruction: [inferred]: all of it" in shown.out
    assert "trained.accuracy - untrained.accuracy > 0" in shown.out and "±" in shown.out
    assert "seeds for 80 % power" in shown.out and "one-sided" in shown.out


def test_a_pilot_says_what_a_verdict_takes_and_writes_nothing(
    call: Callable[..., Any], demo: None, tmp_path: Path
) -> None:
    common = ("verify", "demo", "--claim", "harms", "--power", "--seeds", "2", "--workers", "0", "--cache", "cache")
    pilot = call(*common)
    assert pilot.code == 0, pilot.err
    assert "pilot" in pilot.out and "seeds for 80 % power" in pilot.out and "fails" not in pilot.out
    assert not (tmp_path / "verify").exists()
    (claim,) = call(*common, "--json").document["claims"]
    (expectation,) = claim["expectations"]
    assert claim["verdict"] == expectation["verdict"] == "pilot" and expectation["n"] == 2
    left, right = (claim["arms"][name]["metrics"]["accuracy"]["by_seed"] for name in ("untrained", "trained"))
    first, second = (left[seed] - right[seed] for seed in left)
    assert expectation["power"]["sides"] == "one-sided"
    assert expectation["power"]["deviation"] == pytest.approx(abs(first - second) / 2**0.5)


def test_info_shows_claims_and_refuses_bad_ones(program: Program, site: Path) -> None:
    shown = program("info", "demo", packages=(site,))
    assert shown.code == 0 and "plait verify demo" in shown.out and "Training helps." in shown.out
    (claim, *_) = program("info", "demo", "--json", packages=(site,)).document["paper_claims"]
    assert claim["id"] == "learns" and claim["minutes"] == {"laptop": 0.1}
    file = site / "plait_demo" / "claims.toml"
    file.write_text(CLAIMS.replace("trained.accuracy - untrained", "trained.acuracy - untrained"))
    for command in ("info", "verify"):
        bad = program(command, "demo", packages=(site,))
        assert bad.code == 2 and "plait_demo/claims.toml: claims.learns.expect.0" in bad.err
    file.write_text(CLAIMS.replace('"train.steps" = 0', '"train.setps" = 0'))
    bad = program("info", "demo", packages=(site,))
    assert bad.code == 2 and "arms.untrained" in bad.err and "train.setps" in bad.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give one plugin, or --all"),
        (["chase", "--all"], "give one plugin, or --all"),
        (["--all", "--claim", "x"], "--claim goes with one plugin"),
        (["chase", "--claim", "x", "--gating"], "give --claim or --gating"),
        (["chase", "--gating", "--extra"], "give --extra or --gating"),
        (["chase", "--power", "--scoreboard"], "--power gives no verdict"),
        (["chase", "--rejudge"], "--rejudge takes the figures as they are"),
        (["--rejudge", "--seeds", "3"], "--rejudge takes the figures as they are"),
        (["--drift"], "give one plugin, or --all"),
        (["--all", "--drift"], "--drift goes with one plugin"),
        (["chase", "--drift", "--fresh"], "--drift goes with one plugin"),
        (["task", "--drift", "--out", "nowhere"], "nowhere/scoreboard.json has no figures of task"),
        (["--rejudge", "--out", "nowhere"], "nowhere holds no scoreboard.json"),
        (["nobody"], "no plugin named 'nobody'"),
        (["task"], "brings no claims.toml"),
        (["task", "--scale", "moon"], "moon"),
    ],
)
def test_bad_calls(call: Callable[..., Any], args: list[str], said: str) -> None:
    answer = call("verify", *args)
    assert answer.code == 2 and said in answer.err
