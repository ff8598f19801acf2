"""Tokenizers of texts: byte-level BPE trained on the spot and kept in the cache, or a Hugging Face folder's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.errors import BadInput, RunFailed, first_line
from plait.storage.files import write_text
from plait_zoo.cache import cache_dir

END = "<eos>"
PIECE = 1 << 16
"""Characters that are tokenised at once; longer texts are cut after line ends."""
INSTALL = "pip install 'plait-zoo[text]'"


@dataclass(frozen=True)
class Tokenizer:
    """Texts to numbers and back.

    Attributes:
        backend: a ``tokenizers.Tokenizer``, or one of transformers.
        end: the token between texts, None where there is none.
        size: every token is below it.
        files: what ``AutoTokenizer.from_pretrained`` loads it from, name -> content.
    """

    backend: Any
    end: int | None
    size: int
    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it is made of."""
        return _sha(json.dumps({name: _sha(content) for name, content in self.files.items()}))

    @cached_property
    def vocabulary(self) -> str:
        """SHA-256 of its tokens and their numbers."""
        return _sha(json.dumps(sorted(self.backend.get_vocab().items())))

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The tokens of each text, int32 [n], without any that mark its beginning or end."""
        cut = [list(pieces(text)) for text in texts]
        flat = [piece for parts in cut for piece in parts]
        if hasattr(self.backend, "encode_batch"):
            tokens = [encoding.ids for encoding in self.backend.encode_batch(flat, add_special_tokens=False)]
        else:
            tokens = self.backend(flat, add_special_tokens=False)["input_ids"] if flat else []
        each = iter(tokens)
        return [np.array([t for _ in parts for t in next(each)], np.int32) for parts in cut]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens."""
        text: str = self.backend.decode([int(token) for token in tokens], skip_special_tokens=False)
        return text


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """A text in parts of about ``size`` characters, cut after single line ends, where byte-level BPE cuts anyway."""
    start = 0
    while len(text) - start > size:
        cut = text.find("\n", start + size)
        while 0 <= cut < len(text) - 1 and (text[cut + 1].isspace() or text[cut - 1].isspace()):
            cut = text.find("\n", cut + 1)
        if not 0 <= cut < len(text) - 1:
            break
        yield text[start : cut + 1]
        start = cut + 1
    if start < len(text):
        yield text[start:]


def train_bpe(texts: Iterable[str], vocab: int = 512) -> Tokenizer:
    """Byte-level BPE of at most ``vocab`` tokens, ``<eos>`` the token 0; kept in the cache by texts and size.

    Raises:
        BadInput: the package tokenizers is not installed.
    """
    tokenizers = imported("tokenizers")
    parts = [piece for text in texts for piece in pieces(text)]
    key = _sha(json.dumps(["bpe", vocab, tokenizers.__version__, _sha("\0".join(parts))]))
    path = cache_dir() / "tokenizers" / f"{key}.json"
    try:
        kept = path.read_text(encoding="utf-8")
        return _of_json(kept)
    except Exception:  # none there, or damaged: tokenizers raises bare exceptions
        pass
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(parts, trainer)
    with contextlib.suppress(RunFailed):
        write_text(path, bpe.to_str())
    return _of_json(bpe.to_str())


def _of_json(content: str) -> Tokenizer:
    bpe = imported("tokenizers").Tokenizer.from_str(content)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    files = {"tokenizer.json": content.encode(), "tokenizer_config.json": json.dumps(config, indent=2).encode()}
    return Tokenizer(bpe, bpe.token_to_id(END), bpe.get_vocab_size(), files)


def load_folder(path: str) -> Tokenizer:
    """The tokenizer of a local Hugging Face folder. Nothing is downloaded and no code of the folder is run.

    Raises:
        BadInput: no such folder, no tokenizer in it, or transformers is not installed.
    """
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder):
        raise BadInput(f"there is no folder {path!r} with a tokenizer.")
    transformers = imported("transformers")
    try:
        backend = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with tempfile.TemporaryDirectory() as scratch:
            backend.save_pretrained(scratch)
            files = {file.name: file.read_bytes() for file in sorted(Path(scratch).iterdir()) if file.is_file()}
    except Exception as error:  # a stranger's files make it raise many things
        raise BadInput(f"{path}: no tokenizer could be loaded: {first_line(error)}") from None
    vocabulary = backend.get_vocab()
    if not vocabulary:
        raise BadInput(f"{path}: its tokenizer has no tokens; are its files (tokenizer.json, say) there?")
    return Tokenizer(backend, backend.eos_token_id, max(vocabulary.values()) + 1, files)


def imported(name: str) -> Any:
    """A package that only texts and language models need.

    Raises:
        BadInput: it is not installed.
    """
    try:
        module = __import__(name)
    except ImportError as error:
        raise BadInput(f"texts and language models need {name}: {INSTALL} ({first_line(error)}).") from None
    return module


def _sha(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
