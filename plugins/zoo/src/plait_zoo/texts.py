"""``python-docs`` and ``text-files``: tokens of texts in windows or rows, by domain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.data import Batch, Data, DataInfo
from plait.errors import BadInput
from plait_zoo import cache, corpus
from plait_zoo.corpus import Texts
from plait_zoo.text_options import PythonDocsOptions, TextFilesOptions, TokenOptions
from plait_zoo.tokenization import Tokenizer, load_folder, train_bpe

Tokens = npt.NDArray[np.int32]
PARTS = ("train", "validation", "test")
AT_ONCE = 1 << 26
"""Logits that an evaluation holds at once, at most."""


class TokenSplit:
    """Texts in memory as tokens, four bytes each.

    Args:
        tokens: int32 [N], one example after another.
        starts: int64 [n + 1], where each example begins, and N.
        group: the domain of each, int64 [n].
        fill: the token of padding where lengths differ; its ``attention_mask`` is 0.
        left: pad on the left.
        vocab: tokens that there are, for how many examples are predicted at once.

    Batches hold ``input`` int64 [B, T], ``group``, ``index``, and ``attention_mask`` int64 [B, T] where lengths differ.
    """

    in_memory = True

    def __init__(
        self, tokens: Tensor, starts: Tensor, group: Tensor, *, fill: int = 0, left: bool = False, vocab: int = 0
    ) -> None:
        self.tokens, self.starts, self.fill, self.left = tokens, starts, fill, left
        self.lengths = starts[1:] - starts[:-1]
        self.fields: dict[str, Tensor] = {"group": group, "index": torch.arange(len(group))}
        self.even = len(set(self.lengths.tolist())) <= 1
        longest = int(self.lengths.max()) if len(group) else 1
        self.at_once = max(1, min(512, AT_ONCE // max(1, longest * vocab)))
        self.fingerprint = hashlib.sha256(tokens.numpy().tobytes() + starts.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[picked]
        width = int(lengths.max())
        column = torch.arange(width)
        # of each place of the batch the place among the tokens, from the example's beginning or back from its end
        first = self.starts[1:][picked] - width if self.left else self.starts[picked]
        real = column >= (width - lengths)[:, None] if self.left else column < lengths[:, None]
        place = (first[:, None] + column).clamp(0, len(self.tokens) - 1)
        batch = Batch({"input": torch.where(real, self.tokens[place].long(), self.fill)})
        if not self.even:
            batch["attention_mask"] = real.long()
        batch.update({name: value[picked] for name, value in self.fields.items()})
        return batch


def positions(batch: Batch) -> Batch:
    """The batch with ``position_ids`` that count real tokens only, so that padding on the left changes nothing."""
    if "attention_mask" not in batch:
        return batch
    return Batch({**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)})


def load_python_docs(options: PythonDocsOptions, seed: int) -> Data:
    """Windows of three unlike domains that come with Python and its packages (`plait_zoo.corpus.python_docs`).

    Raises:
        BadInput: a domain that is not installed.
    """
    texts = corpus.python_docs(options.domains, options.characters)
    shares = {"validation": options.validation_share, "test": options.test_share}
    return tokenized("python-docs", options, divided(texts, shares), corpus.digest(texts))


def load_text_files(options: TextFilesOptions, seed: int) -> Data:
    """Windows, or texts, of files (`plait_zoo.corpus.read_files`).

    Raises:
        BadInput: a file that cannot be read, or too little text.
    """
    by_window = options.rows == "windows"
    paths = {"train": options.path, "validation": options.validation_path, "test": options.test_path}
    given = {
        name: corpus.read_files(
            path, field=options.field, domain=options.domain, most=options.texts, by_line=not by_window
        )
        for name, path in paths.items()
        if path
    }
    for name, texts in given.items():
        if not options.domain and len(texts) == len(given["train"]) == 1:  # one file each: one domain
            given[name] = dict(zip(given["train"], texts.values(), strict=True))
    shares = {"validation": options.validation_share, "test": options.test_share}
    shares = {name: share for name, share in shares.items() if name not in given}
    parts = {**given, **divided(given["train"], shares, by_window=by_window)}
    hashed = corpus.digest({f"{name}/{of}": part for name, texts in given.items() for of, part in texts.items()})
    left = options.padding == "left"
    return tokenized("text-files", options, parts, hashed, by_window=by_window, left=left)


def divided(texts: Texts, shares: Mapping[str, float], *, by_window: bool = True) -> dict[str, Texts]:
    """Every domain by position: ``train`` is its beginning, then each of ``shares`` its share, in their order.

    Args:
        texts: by domain.
        shares: part -> share of the domain.
        by_window: cut between any two characters; else between texts, of which each part has one at least.

    Raises:
        BadInput: a domain with too few texts.
    """
    parts: dict[str, Texts] = {name: {} for name in ("train", *shares)}
    for domain, own in texts.items():
        size = sum(map(len, own)) if by_window else len(own)
        sizes = [round(share * size) if by_window else max(1, round(share * size)) for share in shares.values()]
        sizes = [size - sum(sizes), *sizes]
        if sizes[0] < 1:
            raise BadInput(
                f"the domain {domain!r} has {size} text{'s' * (size != 1)}, too few to divide into "
                f"{', '.join(parts)}: give data.validation_path and data.test_path, or data.rows=windows."
            )
        start = 0
        for name, length in zip(parts, sizes, strict=True):
            stop = start + length
            parts[name][domain] = _characters(own, start, stop) if by_window else own[start:stop]
            start = stop
    return parts


def _characters(texts: Sequence[str], start: int, stop: int) -> list[str]:
    """What lies between two characters of texts in a row."""
    inside, begins = [], 0
    for text in texts:
        inside.append(text[max(0, start - begins) : max(0, stop - begins)])
        begins += len(text)
    return [part for part in inside if part]


def tokenized(
    source: str,
    options: TokenOptions,
    parts: Mapping[str, Texts],
    hashed: str,
    *,
    by_window: bool = True,
    left: bool = False,
) -> Data:
    """`Data` of texts. Fields: ``input`` int64 [B, T], ``group`` (the domain), ``index``, and, of texts of different
    length, ``attention_mask``. ``info.num_classes`` is the size of the vocabulary; ``info.extra`` has ``tokenizer`` (a
    `Tokenizer`), ``corpus_sha256``, and ``length``, T at most.

    Args:
        source: name of the data source, for messages.
        options: length and tokenizer.
        parts: the texts of train, validation and test.
        hashed: the corpus' SHA-256.
        by_window: examples are windows of T tokens out of the domain's joined texts, the rest of a window is left
            out; else each text is one, cut off at T.
        left: pad on the left.

    Raises:
        BadInput: no tokenizer, or a part without an example.
    """
    train = [text for texts in parts["train"].values() for text in texts]
    tokenizer = load_folder(options.tokenizer) if options.tokenizer else train_bpe(train, options.vocab)
    domains = list(dict.fromkeys(domain for name in PARTS for domain in parts[name]))
    notes = [f"{source}: {sum(map(len, train)):,} characters to train on ({', '.join(domains)}), sha256 {hashed}."]
    splits = []
    for name in PARTS:
        flat, lengths, groups = [], [], []
        for number, domain in enumerate(domains):
            own = _tokens(parts[name].get(domain, ()), tokenizer)
            if by_window:
                joined = np.concatenate([np.empty(0, np.int32), *own])
                rows = len(joined) // options.length
                own = [joined[: rows * options.length]]
                lengths.append(np.full(rows, options.length))
            else:
                own = [tokens[: options.length] for tokens in own if len(tokens) > 1]  # one token predicts nothing
                lengths.append(np.array([len(tokens) for tokens in own], np.int64))
            flat += own
            groups.append(np.full(len(lengths[-1]), number))
        starts = np.concatenate([[0], *lengths]).cumsum()
        if len(starts) == 1:
            what = f"a window of {options.length} tokens" if by_window else "a text of two tokens"
            raise BadInput(f"data {source}: the {name} split has not {what}; give more text, or a smaller data.length.")
        arrays = (np.concatenate(flat), starts, np.concatenate(groups))
        tensors = map(torch.from_numpy, arrays)
        splits.append(TokenSplit(*tensors, fill=tokenizer.end or 0, left=left, vocab=tokenizer.size))
    known = frozenset({"input", "group", "index"} | ({"attention_mask"} if not by_window else set()))
    shape = (options.length,) if by_window else ()
    extra = {"tokenizer": tokenizer, "corpus_sha256": hashed, "length": options.length}
    info = DataInfo("causal-lm", shape, tokenizer.size, len(domains), known, extra)
    first, validation, test = splits
    return Data(info, first, validation, test, prepare=positions, names={"group": domains}, notes=notes)


def _tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
    """The tokens of each text with the end after it, int32; kept in the cache by the hash of both."""
    if not texts:
        return []
    key = hashlib.sha256(f"{tokenizer.digest} {corpus.digest({'': texts})}".encode()).hexdigest()
    kept = cache.load(f"tokens-{key}")
    if kept is None or set(kept) != {"tokens", "counts"} or len(kept["counts"]) != len(texts):
        each = tokenizer.encode(texts)
        kept = {"tokens": np.concatenate(each), "counts": np.array([len(tokens) for tokens in each], np.int64)}
        cache.store(f"tokens-{key}", kept)
    end = [] if tokenizer.end is None else [tokenizer.end]
    cut = np.split(kept["tokens"], kept["counts"].cumsum()[:-1])
    return [np.concatenate([tokens, np.array(end, np.int32)]) for tokens in cut]
