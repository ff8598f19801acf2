"""The captioner: what it is trained on, that it is kept, and language models from a folder."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from plait_brainot import captioner as module
from plait_brainot.captioner import Captioner, Words, fitted
from plait_brainot.errors import BrainotError
from plait_brainot.options import BrainotOptions

TEXTS = [["a red dog", "one red dog"], ["a blue cat", "one blue cat"], ["a red cat", "one red cat"]]
TOKENS = 2 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plait" / "brainot-captioner"


def made(known: str = "x", **options: Any) -> Captioner:
    chosen = {"captioner_steps": 60, "captioner_width": 24, **options}
    return fitted(TOKENS, TEXTS, torch.arange(3), known, BrainotOptions(**chosen))


def test_words() -> None:
    words = Words(["a red dog", "blue"])
    assert words.words == ["<pad>", "<bos>", "<eos>", "<unk>", "a", "blue", "dog", "red"]
    assert words.encoded("A dog, green!") == [4, 6, 3, 2]
    assert words.decoded([4, 6, 2, 7]) == "a dog"
    assert words.decoded([4, 0, 7]) == "a red"


def test_it_learns_image_tokens_and_is_kept(cache: Path) -> None:
    before = torch.random.get_rng_state()
    first = made(captioner_steps=150)
    assert torch.equal(torch.random.get_rng_state(), before)
    said = first.captions(TOKENS)
    assert all(text in of for text, of in zip(said, TEXTS, strict=True)), said
    assert not any(p.requires_grad for m in (first.lm, first.projector) for p in m.parameters())
    files = list(cache.iterdir())
    assert len(files) == 1
    again = made(captioner_steps=150)
    assert again.identity == first.identity
    files[0].write_bytes(b"damaged")
    assert made(captioner_steps=150).identity == first.identity
    assert made(captioner_steps=150, captioner_seed=1).identity != first.identity


def test_its_training_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 4)  # four seconds a step
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    said: list[str] = []
    options = BrainotOptions(captioner_steps=8, captioner_width=24)
    fitted(TOKENS, TEXTS, torch.arange(3), "told", options, said.append)
    assert said[0] == "brainot: training the captioner, step 2 of 8, about 36 s left"
    assert [text.split(", ")[1] for text in said] == ["step 2 of 8", "step 5 of 8"]
    fitted(TOKENS, TEXTS, torch.arange(3), "told", options, said.append)
    assert len(said) == 2  # it is kept


def test_padding_does_not_matter_and_the_loss_is_by_hand() -> None:
    chosen = made(captioner_steps=1)
    texts = ["a red dog", "cat"]
    whole = chosen.loss(TOKENS[:2], texts)
    numbers = [chosen.text.encoded(text) for text in texts]
    total = 0.0
    for row, ids in enumerate(numbers):
        words = chosen.lm.get_input_embeddings()(torch.tensor([1, *ids[:-1]]))
        prefix = chosen.projector(TOKENS[row])
        logits = chosen.lm(inputs_embeds=torch.cat([prefix, words])[None]).logits[0, 4:]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum"))
    assert float(whole) == pytest.approx(total / sum(map(len, numbers)), rel=1e-4)


def test_batches_of_captions_do_not_matter() -> None:
    chosen = made()
    assert chosen.captions(TOKENS, batch=1) == chosen.captions(TOKENS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama with a word tokenizer, as a folder of Hugging Face."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "<im_start>", "<im_end>", "Describe", "this", "image", "as", "simply", "possible", "."]
    words += ["a", "one", "red", "blue", "dog", "cat"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<im_start>", "<im_end>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", eos_token="</s>", additional_special_tokens=special
    )
    tokenizer.save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_a_language_model_of_ones_own(folder: Path, projector: str) -> None:
    chosen = made(lm=str(folder), projector=projector, captioner_steps=5)
    assert chosen.before[-1] == 2  # <im_start>
    assert chosen.after[0] == 3
    assert chosen.prefix(TOKENS).shape == (3, len(chosen.before) + 4 + len(chosen.after), 16)
    said = chosen.captions(TOKENS, max_new_tokens=5)
    assert len(said) == 3
    assert all(isinstance(text, str) and "<" not in text for text in said)
    other = made(lm=str(folder), projector=projector, captioner_steps=5)
    assert other.identity == chosen.identity
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_pretrained(folder)
    for a, b in zip(chosen.lm.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # the language model itself is frozen


def test_its_own_tokens_continue_as_without_brains(folder: Path) -> None:
    """Embeddings in the place of the image give what the model says of the words."""
    chosen = made(lm=str(folder), captioner_steps=1)
    embed = chosen.lm.get_input_embeddings()
    chosen.projector = torch.nn.Identity()
    words = torch.tensor([[9, 10, 12]])
    said = chosen.captions(embed(words).detach(), max_new_tokens=4)
    ids = torch.tensor([[*chosen.before, *words[0].tolist(), *chosen.after]])
    wanted = chosen.lm.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=1)[
        0, ids.shape[1] :
    ]
    assert said == [chosen.text.decoded(wanted.tolist())]


def test_leftovers_are_left_out() -> None:
    assert (
        " ".join(module.LEFTOVERS.sub(" ", "<s> a dog [0.1,0.2,0.3,0.4] runs </s><|im_end|>").split()) == "a dog runs"
    )


def test_folders_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BrainotError, match=r"no config.json"):
        made(lm=str(tmp_path / "nothing"))
    with pytest.raises(BrainotError, match=r"reads 64 tokens at most; 4 image tokens, prompt and caption are"):
        made(lm=str(folder), max_new_tokens=60)
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(BrainotError, match="no causal language model with a tokenizer"):
        made(lm=str(folder))
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrainotError, match="no causal language model"):
        made(lm=str(folder))


def test_a_vocabulary_that_is_too_large(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BrainotError, match=r"the tokenizer has 18 tokens and the model 17"):
        made(lm=str(folder))
