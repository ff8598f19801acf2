"""What only a fresh process shows: either order of imports, and the memory that the command takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plait_cdmoe import storage
from plait_cdmoe.search import condense
from plait_zoo.tokenization import train_bpe

Small = Callable[..., Any]
KINDS = ("qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek")
LAYERS = 8
"""Of the model whose memory is measured."""
IDS = torch.tensor([[1, 2, 3, 4]])
READ = """
def read(folder):
    import torch
    model, how = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(how[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), how
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.save([model(ids).logits, model.generate(ids, max_new_tokens=16, do_sample=False)], folder + "/seen.pt")
"""
PLUGIN_FIRST = f"""
import sys
import plait_cdmoe
from transformers import AutoConfig, AutoModelForCausalLM
{READ}
for folder in sys.argv[1:]:
    read(folder)
assert type(AutoConfig.from_pretrained(sys.argv[1])).__name__ == "CondensedQwen2MoeConfig"
"""
TRANSFORMERS_FIRST = f"""
import json, sys, threading
from pathlib import Path
from transformers import AutoModelForCausalLM
import plait_cdmoe
{READ}
read(sys.argv[1])
from plait_cdmoe.commands import condense

folder = Path(sys.argv[2])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def peak(name):
    seen, done, before = [], threading.Event(), anonymous()

    def watch():
        while not done.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    condense(folder / name, folder / "texts.jsonl", folder / f"out-{{name}}", layers=2, count=8, tokens=8)
    done.set()
    watcher.join()
    return max(seen) - before

if Path("/proc/self/status").exists():
    condense(folder / "little", folder / "texts.jsonl", folder / "out-little", layers=1, count=3, tokens=8)
    for name in ("float32", "bfloat16"):
        print("PEAK", peak(name))
"""


def check(folder: Path, model: Any) -> None:
    """What a process has read and written is the model's, bit for bit."""
    logits, written = torch.load(folder / "seen.pt")
    folded = storage.folded(model)
    with torch.no_grad():
        assert torch.equal(folded(IDS).logits, logits)
        assert float((model(IDS).logits - logits).abs().max()) < 2e-6
    assert torch.equal(folded.generate(IDS, max_new_tokens=16, do_sample=False), written)


def test_the_plugin_first_then_transformers(small: Small, texts: list[Tensor], tmp_path: Path) -> None:
    models = {}
    for kind in KINDS:
        for mode in ("SR", "S") if kind != "qwen3_moe" else ("SR",):
            folder = tmp_path / f"{kind}-{mode}"
            models[folder] = condense(small(kind, torch.float32), texts[:3], mode=mode, layers=2).model
            storage.save(models[folder], folder)
    subprocess.run([sys.executable, "-c", PLUGIN_FIRST, *map(str, models)], check=True, capture_output=True)
    for folder, model in models.items():
        check(folder, model)


@pytest.fixture(scope="module")
def said(small: Small, texts: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A folder, the condensed model in it, and what a process says that reads it and condenses larger ones."""
    home = tmp_path_factory.mktemp("process")
    model = condense(small("qwen2_moe", torch.float32), texts[:3], layers=2).model
    storage.save(model, home / "condensed")
    words = ["in the beginning was the word", "def search(self, texts):", "a b c d e f g", "return texts or None"] * 2
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 24, "num_hidden_layers": LAYERS}
    tokenizer, large = train_bpe(words, 280), small("qwen2_moe", torch.float32, vocab_size=300, **sizes)
    little = small("qwen2_moe", torch.float32, vocab_size=300)
    for name, given in (("little", little), ("float32", large), ("bfloat16", large)):
        given.to(getattr(torch, name, torch.float32)).save_pretrained(home / name)
        for file, content in tokenizer.files.items():
            (home / name / file).write_bytes(content)
    line = [sys.executable, "-c", TRANSFORMERS_FIRST, str(home / "condensed"), str(home)]
    ran = subprocess.run(line, capture_output=True, text=True, check=True)
    return home, model, ran.stdout


def test_transformers_first_then_the_plugin(said: tuple[Path, Any, str]) -> None:
    home, model, _ = said
    check(home / "condensed", model)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_stays_within_the_bound_that_is_printed_first(said: tuple[Path, Any, str], dtype: str) -> None:
    """Above what the same command takes for a little model, without pages of mapped files."""
    home, _, stdout = said
    part = stdout[stdout.index(f"/{dtype}: ") :]
    assert part.index("Memory at most") < part.index("condensed layers")
    bound = float(part.split("Memory at most ")[1].split(" GB")[0]) * 1e9
    whole = (home / dtype / "model.safetensors").stat().st_size
    assert whole / LAYERS < float(part.split("PEAK ")[1].split()[0]) <= bound, "at least the layer is in memory"
    assert dtype == "bfloat16" or bound < whole / 2, "compiled kernels of 16 bits take as much as a small model"
