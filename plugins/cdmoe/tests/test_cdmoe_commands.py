"""`plait cdmoe condense`: the same model as in memory, kills, and what bad input gets."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.errors import BadInput
from plait_cdmoe import commands, storage, streaming
from plait_cdmoe.commands import condense
from plait_cdmoe.decoder import Decoder
from plait_cdmoe.families import Family
from plait_cdmoe.options import SearchOptions
from plait_cdmoe.search import Search, SearchState
from plait_zoo.tokenization import train_bpe

Small = Callable[..., Any]
WORDS = ["in the beginning was the word and the word was long ", "def search(self, texts): return texts ", "a b c d e "]
TEXTS = [(WORDS[n % 3] * (1 + n % 4)).strip() for n in range(10)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_bpe(TEXTS, 280)


@pytest.fixture(scope="module")
def folder(small: Small, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[..., Path]:
    """``folder(kind, dtype)``: a stored model with a tokenizer, the same for all tests, which leave it as it is."""
    home = tmp_path_factory.mktemp("models")

    def make(kind: str = "qwen2_moe", dtype: torch.dtype = torch.float32) -> Path:
        path = home / f"{kind} {dtype}"
        if not path.exists():
            model = small(kind, dtype, vocab_size=300, max_position_embeddings=256)
            stored(model, tokenizer, path, max_shard_size="40KB")
        return path

    return make


def stored(model: Any, tokenizer: Any, path: Path, **settings: Any) -> None:
    """The model and the tokenizer in a folder."""
    model.save_pretrained(path, **settings)
    for name, content in tokenizer.files.items():
        (path / name).write_bytes(content)


@pytest.fixture(autouse=True)
def texts_file(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t, "url": "u"}) + "\n" for t in TEXTS))


def ids_of(tokenizer: Any) -> list[Tensor]:
    return [torch.tensor(row).long() for row in tokenizer.encode(TEXTS)]


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v2", "deepseek_v3", "deepseek"])
def test_layer_by_layer_it_is_the_model_made_in_memory(
    small: Small, folder: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    path = folder(kind)
    condense(path, tmp_path / "texts.jsonl", tmp_path / "out", layers=2, count=10, tokens=12)
    model = storage.AutoModelForCausalLM.from_pretrained(path)
    search = Search(Decoder(model), ids_of(tokenizer), SearchOptions(layers=2, text_tokens=12))
    search.run()
    written = json.loads((tmp_path / "out" / "cdmoe_report.json").read_text())
    found = SearchState.read(written["search"], "report")
    assert (found.keep, found.order) == (search.state.keep, search.state.order)
    again, how = storage.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(how[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = ids_of(tokenizer)[0][None, :9]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, storage.folded(search.small())(ids).logits)
    removed = 2 * Family(model).geometry().removed(2) * 4
    sizes = [sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (path, tmp_path / "out")]
    assert abs(sizes[0] - sizes[1] - removed) < 20_000
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not list(tmp_path.glob("*.search.json"))


def test_killed_anywhere_it_goes_on(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, options = folder(), {"layers": 2, "count": 10, "tokens": 12}
    condense(path, tmp_path / "texts.jsonl", tmp_path / "whole", **options)
    write = commands.write_text
    for number in (1, 9):
        calls: list[int] = []

        def dying(file: Path, text: str, calls: list[int] = calls, number: int = number) -> None:
            write(file, text)
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt

        out = tmp_path / f"out{number}"
        monkeypatch.setattr(commands, "write_text", dying)
        with pytest.raises(KeyboardInterrupt):
            condense(path, tmp_path / "texts.jsonl", out, **options)
        monkeypatch.setattr(commands, "write_text", write)
        assert not out.exists()
        with pytest.raises(BadInput, match="go on with --resume"):
            condense(path, tmp_path / "texts.jsonl", out, **options)
        condense(path, tmp_path / "texts.jsonl", out, **options, resume=True)
        files = sorted((tmp_path / "whole").glob("*.safetensors"))
        assert files and [file.name for file in files] == sorted(file.name for file in out.glob("*.safetensors"))
        for file in files:
            assert file.read_bytes() == (out / file.name).read_bytes()


def test_killed_while_writing_nothing_is_half_there(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    path = folder()
    with monkeypatch.context() as changed:
        changed.setattr(streaming, "save_file", full)
        with pytest.raises(BadInput, match=r"could not be written.*No space left"):
            condense(path, tmp_path / "texts.jsonl", tmp_path / "out", layers=1, count=4)
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == ["out.search.json"]
    condense(path, tmp_path / "texts.jsonl", tmp_path / "out", layers=1, count=4, resume=True)


def test_bfloat16_stays_bfloat16(folder: Any, tmp_path: Path) -> None:
    path = folder("deepseek_v2", torch.bfloat16)
    condense(path, tmp_path / "texts.jsonl", tmp_path / "out", layers=1, count=4, mode="S", dtype="float32")
    model = storage.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.model.layers[1].mlp is not None
    assert [type(layer.mlp).__name__ for layer in model.model.layers].count("CondensedMLP") == 1
    assert {p.dtype for n, p in model.named_parameters() if "gate.weight" not in n} == {torch.bfloat16}


def test_plain_and_gzipped_texts_and_replay(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder("deepseek")
    (tmp_path / "plain.txt").write_text("\n".join(TEXTS))
    with gzip.open(tmp_path / "c4.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": t, "timestamp": 0}) + "\n" for t in TEXTS)
    orders = []
    for number, name in enumerate(("texts.jsonl", "plain.txt", "c4.json.gz")):
        condense(path, tmp_path / name, tmp_path / f"out{number}", layers=2, count=12, tokens=12)
        assert "has 10 texts and not 12" in capsys.readouterr().err
        orders.append(json.loads((tmp_path / f"out{number}" / "cdmoe_report.json").read_text())["search"]["beams"])
    assert orders[0] == orders[1] == orders[2]
    published = tmp_path / "published"
    published.mkdir()
    gates = {f"{layer}-{e}": [1.0, 10, 0.1] for layer in range(3) for e in range(6)}
    for name, content in (("gates", gates), ("experts", {"0": [0, 1], "1": [2, 3], "2": [4, 5]}), ("layers", [2, 0])):
        (published / f"{name}.json").write_text(json.dumps(content))
    condense(path, tmp_path / "texts.jsonl", tmp_path / "replayed", layers=2, count=3, replay=published)
    config = json.loads((tmp_path / "replayed" / "config.json").read_text())
    assert config["condensed_layers"] == {
        "3": {"experts": [4, 5], "weights": [0.1, 0.1]},
        "1": {"experts": [0, 1], "weights": [0.1, 0.1]},
    }


def test_an_estimate_alone(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    condense(folder(), tmp_path / "texts.jsonl", tmp_path / "out", layers=2, dry=True, count=4)
    assert "TFLOP" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": "missing.jsonl"}, "missing.jsonl"),
        ({"texts": "empty.jsonl"}, "empty"),
        ({"texts": "broken.jsonl"}, "broken.jsonl"),
        ({"texts": "other.jsonl"}, "'text'"),
        ({"layers": 5}, "layers = 5 is more than the 4 layers"),
        ({"layers": -1}, "--layers"),
        ({"kept": 7}, "kept = 7 is more than the 6 experts"),
        ({"kept": -1}, "--kept"),
        ({"kept": 6, "count": 1}, r"layer \d: 6 experts are to be kept, and only \d were ever selected"),
        ({"mode": "layer-drop"}, "SR or S"),
        ({"distance": "far"}, "--distance"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"path": "nowhere"}, "no folder with a config.json"),
        ({"path": "llama"}, "model_type 'llama' has no adapter; there are adapters for qwen2_moe"),
        ({"path": "condensed"}, "condensed already"),
        ({"path": "weightless"}, r"has no \*\.safetensors"),
        ({"path": "tokenless"}, "no tokenizer"),
        ({"path": "smallvocab"}, "the tokenizer has 2.. tokens and the model 64"),
        ({"path": "shallow"}, "max_position_embeddings"),
        ({"path": "torn"}, "cannot be read|does not fit"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    small: Small, folder: Any, tokenizer: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = folder()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "other.jsonl").write_text('{"words": "a"}\n')
    if change.get("path") in ("llama", "condensed", "weightless"):
        other = tmp_path / change["path"]
        other.mkdir()
        content = {"model_type": "qwen2_moe", "condensed_layers": {"1": {}}} if "condensed" in str(other) else {}
        content = {"model_type": "llama"} if "llama" in str(other) else content or {"model_type": "qwen2_moe"}
        (other / "config.json").write_text(json.dumps(content))
    if change.get("path") == "tokenless":
        small("qwen2_moe", torch.float32).save_pretrained(tmp_path / "tokenless")
    for name, size in (("smallvocab", 64), ("shallow", 300)):
        if change.get("path") == name:
            model = small("qwen2_moe", torch.float32, max_position_embeddings=8, vocab_size=size)
            stored(model, tokenizer, tmp_path / name)
    if change.get("path") == "torn":
        shutil.copytree(path, tmp_path / "torn")
        shard = sorted((tmp_path / "torn").glob("*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:100])
    before = sorted([*tmp_path.rglob("*"), *path.parent.rglob("*")])
    arguments = {"path": path, "texts": "texts.jsonl", "layers": 2, "count": 10, **change}
    with pytest.raises(BadInput, match=message) as caught:
        condense(tmp_path / arguments.pop("path"), tmp_path / arguments.pop("texts"), tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    after = [p for p in (*tmp_path.rglob("*"), *path.parent.rglob("*")) if "search.json" not in p.name]
    assert sorted(after) == before
