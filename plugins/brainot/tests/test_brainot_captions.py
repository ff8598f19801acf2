"""Caption metrics against coco-caption (pycocoevalcap 1.2, whose values stand here), and every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plait_brainot import captions as measures
from plait_brainot import commands
from plait_brainot.errors import BrainotError

pytestmark = pytest.mark.smoke

SAID = [
    "a red car and a blue dog on grass at night",
    "a white cat on the sand by day",
    "two birds",
    "",
    "a man riding a wave on top of a surfboard",
    "the the the the",
]
WANTED = [
    ["a red car on grass at night", "a blue dog and a red car on the grass"],
    ["a white cat sleeps on sand", "the white cat by day on the sand there", "cat"],
    ["a flock of birds in the sky", "two birds are flying"],
    ["something to see", "a thing"],
    ["a man on a surfboard riding a wave", "surfer rides a big wave", "a person surfing in the ocean on a sunny day"],
    ["the cat sat", "on the mat the dog"],
]


def test_bleu_is_coco_captions() -> None:
    wanted = [0.8129585597296503, 0.6691095193764515, 0.486380030621875, 0.2662996942359458]
    np.testing.assert_allclose(measures.bleu(SAID, WANTED), wanted, rtol=1e-12)


def test_rouge_is_coco_captions() -> None:
    wanted = [0.8102466793168881, 0.8026315789473684, 0.6288659793814433, 0.0, 0.5669144981412639, 0.43571428571428567]
    np.testing.assert_allclose(measures.rouge_l(SAID, WANTED), wanted, rtol=1e-12)


def test_cider_is_coco_captions() -> None:
    wanted = [4.121857805010583, 2.354860883935282, 1.8166823948435007, 0.0, 1.292451207926806, 0.13014610194834694]
    np.testing.assert_allclose(measures.cider(SAID, WANTED), wanted, rtol=1e-12)


def test_the_peer_where_it_is_installed() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    numbered = {i: [text] for i, text in enumerate(SAID)}
    values, _ = bleu.Bleu(4).compute_score(dict(enumerate(WANTED)), numbered, verbose=0)
    np.testing.assert_allclose(measures.bleu(SAID, WANTED), values, rtol=1e-9)


def test_tokens_and_objects() -> None:
    assert measures.tokenised("A dog, (small) -- it's RED...") == ["a", "dog", "small", "it", "s", "red"]
    counted = measures.objects(
        ["a red car and a blue dog and a red car", "nothing"],
        [["red car", "red dog"], ["blue dog"]],
        ["red car", "blue dog", "red dog"],
    )
    assert counted.tolist() == [[1, 2, 2], [0, 0, 1]]


def test_a_single_sample_has_no_cider() -> None:
    figures = measures.score(["a dog"], [["a dog"]])
    assert figures["bleu1"][0] == pytest.approx(100)
    assert figures["cider"] == (None, "CIDEr needs two samples at least")
    assert figures["clip_s"][0] is None
    with pytest.raises(BrainotError, match="two samples at least, got 1"):
        measures.cider(["a"], [["a"]])


def test_meteor_without_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    value, reason = measures.meteor(["a"], [["a"]])
    assert value is None
    assert "pycocoevalcap is not installed" in reason


@pytest.mark.parametrize(
    ("said", "wanted", "message"),
    [
        ({"0": "a", "7": "b"}, {"0": ["a"], "1": ["b"]}, r"other ids: 1, 7"),
        ({str(i): "a" for i in range(9)}, {"z": ["a"]}, r"other ids: 0, 1, 2, 3, 4 \.\.\."),
        ({"0": "a"}, {"0": []}, "id 0 has no reference"),
        ({"0": 3}, {"0": ["a"]}, r"id 0 is no text \(int\)"),
        ({"0": "a"}, {"0": [["a"]]}, "id 0 is no text"),
    ],
)
def test_files_that_do_not_fit(
    said: dict[str, object], wanted: dict[str, object], message: str, tmp_path: Path
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(said))
    b.write_text(json.dumps(wanted))
    with pytest.raises(BrainotError, match=message):
        commands.score(a, b)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps({str(i): text for i, text in enumerate(SAID)}))
    b.write_text(json.dumps({str(i): of for i, of in enumerate(WANTED)}))
    commands.score(a, b, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["bleu4"] == pytest.approx(26.62996942359458)
    assert printed["empty"] == 1
    assert printed["spice"] is None
    assert "CoreNLP" in printed["null"]["spice"]
    commands.score(a, b)
    assert "6 captions, 1 of them empty" in capsys.readouterr().out
    with pytest.raises(BrainotError, match="--require-metric clip_s: no CLIP weights"):
        commands.score(a, b, require_metric="clip_s")
    with pytest.raises(BrainotError, match="no such file"):
        commands.score(tmp_path / "c.json", b)
    a.write_text("[1]")
    with pytest.raises(BrainotError, match=r"an object .* got list"):
        commands.score(a, b)
    a.write_text("{")
    with pytest.raises(BrainotError, match="no JSON"):
        commands.score(a, b)


def test_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    commands.bench_ot("6", samples=2, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["m"] for row in rows] == [0.5, 1.0]
    assert all(0.9 < row["ratio"] < 1.1 for row in rows)
