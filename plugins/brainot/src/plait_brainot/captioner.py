"""The captioner: a frozen language model that reads image tokens in the place of words (card, 2.7 and 5.2).

It is trained on image tokens and captions alone, never on brains, and is the same for every loss that it judges.
Without a folder it is a small GPT-2 with the words of the training captions; with one, any causal language model of
Hugging Face, of which only the projector from token width to model width is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn import functional

from plait.data.seeds import seed_of
from plait.errors import RunFailed
from plait.storage.checkpoints import digest
from plait.storage.files import write_atomically

from .captions import tokenised
from .errors import BrainotError
from .options import BrainotOptions
from .samples import tokens_of

__all__ = ["Captioner", "Words", "fitted"]

VERSION = 2
"""Of the training below; part of the name that a captioner is kept under."""
BATCH = 48
RATE = 1e-3
PROMPTS = ("<im_start>", "<im_end>")
"""Tokens that stand around image tokens where the tokenizer knows them."""
LEFTOVERS = re.compile(r"</?s>|<\|[a-z_]+\|>|\[[\d., ]+\]")
"""What is left out of a caption: marks of the model, and boxes ``[x, y, w, h]``."""


class Words:
    """Word by word: the words of some captions, after padding (0), begin (1), end (2) and unknown (3)."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.words = ["<pad>", "<bos>", "<eos>", "<unk>", *sorted({w for text in captions for w in tokenised(text)})]
        self.number = {word: i for i, word in enumerate(self.words)}
        self.pad, self.eos = 0, 2

    def encoded(self, text: str) -> list[int]:
        """The numbers of a caption, with the end."""
        return [*(self.number.get(word, 3) for word in tokenised(text)), self.eos]

    def decoded(self, numbers: Sequence[int]) -> str:
        """The words of these numbers, up to the end."""
        return " ".join(self.words[i] for i in _before(self.eos, numbers) if i > 3)


class Pieces:
    """The tokenizer of a language model's folder."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def encoded(self, text: str) -> list[int]:
        """The numbers of a caption, with the end."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos]

    def decoded(self, numbers: Sequence[int]) -> str:
        """The text of these numbers, up to the end."""
        text: str = self.tokenizer.decode(_before(self.eos, numbers), skip_special_tokens=True)
        return " ".join(LEFTOVERS.sub(" ", text).split())

    def around(self, prompt: str) -> tuple[list[int], list[int]]:
        """The numbers before and after the image tokens, in the tokenizer's chat template where it has one."""
        if getattr(self.tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, _, after = prompt.partition("<image>")
        known = self.tokenizer.get_vocab()
        start, end = ([known[mark]] if mark in known else [] for mark in PROMPTS)
        ids = [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
        first = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        return [*first, *ids[0], *start], [*end, *ids[1]]


def _before(end: int, numbers: Sequence[int]) -> list[int]:
    return list(itertools.takewhile(lambda number: number != end, numbers))


@dataclass
class Captioner:
    """A language model, the projector of image tokens into it, and its tokenizer; frozen.

    Attributes:
        lm: a causal language model of transformers.
        projector: from D to the model's width.
        text: the tokenizer.
        before, after: numbers of the prompt around the image tokens.
        identity: hash of all weights.
    """

    lm: Any
    projector: nn.Module
    text: Words | Pieces
    before: list[int]
    after: list[int]
    identity: str = ""

    def prefix(self, tokens: Tensor) -> Tensor:
        """What the language model sees before the caption, [B, T, W]."""
        embed = self.lm.get_input_embeddings()
        weight = embed.weight
        before, after = (
            embed(torch.tensor(numbers, dtype=torch.int64, device=weight.device)).expand(len(tokens), -1, -1)
            for numbers in (self.before, self.after)
        )
        return torch.cat([before, self.projector(tokens.to(weight.device)).to(weight.dtype), after], 1)

    def loss(self, tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """Mean cross-entropy of a word, captions padded at their end."""
        numbers = [self.text.encoded(caption) for caption in captions]
        longest = max(map(len, numbers))
        embed = self.lm.get_input_embeddings()
        target = torch.tensor([n + [-100] * (longest - len(n)) for n in numbers], device=embed.weight.device)
        prefix = self.prefix(tokens)
        words = embed(target[:, :-1].clamp(min=0))
        known = torch.cat([target.new_ones(prefix.shape[:2]), (target[:, :-1] != -100).long()], 1)
        out = self.lm(inputs_embeds=torch.cat([prefix, words], 1), attention_mask=known)
        logits = out.logits[:, prefix.shape[1] - 1 :].float()
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    @torch.no_grad()
    def captions(self, tokens: Tensor, max_new_tokens: int = 32, batch: int = 150) -> list[str]:
        """Greedy captions of tokens [n, N, D]."""
        texts: list[str] = []
        for part in torch.split(tokens, batch):
            prefix = self.prefix(part)
            numbers = self.lm.generate(
                inputs_embeds=prefix,
                attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64, device=prefix.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.text.pad,
                eos_token_id=self.text.eos,
            )
            texts += [self.text.decoded(row) for row in numbers.tolist()]
        return texts

    def to(self, device: torch.device | str) -> Captioner:
        """The same captioner on a device."""
        self.lm.to(device)
        self.projector.to(device)
        return self


def fitted(
    tokens: Any,
    captions: Sequence[Sequence[str]],
    rows: Tensor,
    known: str,
    options: BrainotOptions,
    say: Callable[[str], None] = lambda text: None,
) -> Captioner:
    """The captioner of a data set: from the cache where it is, else trained on image tokens and their captions.

    Args:
        tokens: image tokens of all scenes [S, M, D].
        captions: of all scenes.
        rows: the scenes that it may be trained on, int64.
        known: says which data these are (a fingerprint).
        options: ``lm`` and what belongs to it, ``captioner_*``.
        say: is told every ten seconds how far the training is.

    Raises:
        BrainotError: a folder without a usable language model.
    """
    with torch.random.fork_rng(devices=[]):
        seed = seed_of(options.captioner_seed, "captioner")
        torch.manual_seed(seed)
        captioner = _made(tokens.shape[1:], [text for row in rows.tolist() for text in captions[row]], options)
        trained = captioner.projector if options.lm else nn.ModuleList([captioner.lm, captioner.projector])
        sizes = (options.captioner_steps, options.captioner_seed, options.captioner_width)
        asked = (options.lm and digest(captioner.lm.state_dict()), options.projector, options.prompt * bool(options.lm))
        name = hashlib.sha256(repr((VERSION, known, *sizes, *asked)).encode()).hexdigest()[:24]
        file = user_cache_path("plait", appauthor=False) / "brainot-captioner" / f"{name}.safetensors"
        if not _loaded(trained, file):
            captioner.lm.train(not options.lm)
            _train(captioner, trained, tokens, captions, rows, options, seed, say)
            with contextlib.suppress(RunFailed):  # a cache that cannot be written is no error
                write_atomically(file, lambda temporary: save_model(trained, str(temporary)))
    both = {"lm": captioner.lm, "projector": captioner.projector}
    for module in both.values():
        module.eval().requires_grad_(False)
    captioner.identity = digest({name: module.state_dict() for name, module in both.items()})
    return captioner


def _made(shape: Sequence[int], texts: Sequence[str], options: BrainotOptions) -> Captioner:
    """A captioner with its first weights."""
    count, dim = shape
    if options.lm is None:
        from transformers import GPT2Config, GPT2LMHeadModel

        words = Words(texts)
        width = options.captioner_width
        config = GPT2Config(
            vocab_size=len(words.words),
            n_positions=4096 if count > 900 else 1024,
            n_embd=width,
            n_layer=2,
            n_head=max(1, width // 24),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,  # else transformers warns of padding, which captions that have ended are made of
        )
        return Captioner(GPT2LMHeadModel(config), nn.Linear(dim, width), words, [], [1])
    lm, tokenizer = _language_model(Path(options.lm))
    text = Pieces(tokenizer)
    before, after = text.around(options.prompt)
    width = lm.get_input_embeddings().weight.shape[1]
    context = getattr(lm.config, "max_position_embeddings", None)
    needed = count + len(before) + len(after) + options.max_new_tokens
    if context is not None and needed > context:
        raise BrainotError(
            f"{options.lm}: the model reads {context} tokens at most; {count} image tokens, prompt and caption are "
            f"{needed}"
        )
    projector: nn.Module = nn.Linear(dim, width)
    if options.projector == "mlp":
        projector = nn.Sequential(projector, nn.GELU(), nn.Linear(width, width))
    lm.requires_grad_(False)
    return Captioner(lm, projector, text, before, after)


def _language_model(folder: Path) -> tuple[Any, Any]:
    """A causal language model and its tokenizer from a local folder; nothing is downloaded, no code of it is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise BrainotError(
            f"{folder}: no language model (no config.json): give the folder of a Hugging Face causal model"
        )
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BrainotError(
            f"{folder}: no causal language model with a tokenizer: {str(error).splitlines()[0]}"
        ) from None
    rows = lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BrainotError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {rows}: they do not belong together"
        )
    return lm.float().eval(), tokenizer


def _train(
    captioner: Captioner,
    trained: nn.Module,
    tokens: Any,
    captions: Sequence[Sequence[str]],
    rows: Tensor,
    options: BrainotOptions,
    seed: int,
    say: Callable[[str], None],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=options.captioner_steps + 1)
    began = told = time.monotonic()
    with torch.enable_grad():
        for done in range(options.captioner_steps):
            if (now := time.monotonic()) - told > 10:
                left = (now - began) / done * (options.captioner_steps - done)
                step = f"step {done} of {options.captioner_steps}"
                say(f"brainot: training the captioner, {step}, about {left:.0f} s left")
                told = now
            chosen = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]
            known = [captions[row] for row in chosen.tolist()]
            texts = [of[int(torch.randint(len(of), (1,), generator=generator))] for of in known]
            optimizer.zero_grad(set_to_none=True)
            captioner.loss(tokens_of(tokens, chosen), texts).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _loaded(trained: nn.Module, file: Path) -> bool:
    try:
        stored = load_file(file)
    except Exception:  # no file, or a damaged one, which may raise many things: train it
        return False
    own = trained.state_dict()
    if stored.keys() - own.keys() or any(value.shape != own[name].shape for name, value in stored.items()):
        return False
    trained.load_state_dict(stored, strict=False)  # tied weights are kept once
    return True
