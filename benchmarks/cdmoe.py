"""Cost of cdmoe, in one process on one thread: CPU time, medians.

* the fast expert search over the slow one, which computes the network anew for every candidate (the same lists);
* one condensed layer over the routed one (d 1024, 16 experts of width 352, 4 for each token, 512 tokens), and prefill
  and decode of a small model with all layers condensed, against the original with the experts implementation named;
* bytes on disk of a condensed model against the formula;
* peak memory of `plait cdmoe condense` above that of its imports, against the model's size and its own estimate.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import plait_cdmoe  # noqa: F401 - transformers' Auto classes
from common import machine
from plait_cdmoe import storage
from plait_cdmoe.claims import layers_at_width
from plait_cdmoe.decoder import Decoder, batches_of
from plait_cdmoe.distance import jensen_shannon
from plait_cdmoe.experts import greedy_experts, slow_scores
from plait_cdmoe.measures import speed_of
from plait_cdmoe.options import SearchOptions
from plait_cdmoe.search import Search, condense
from plait_zoo.tokenization import train_bpe

TEXTS = 24


def fresh(**changes: Any) -> Any:
    """A Qwen2-MoE of the card's small sizes and random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2_moe", **{**sizes, **changes})).eval()


def texts(count: int = TEXTS, length: int = 64) -> list[Tensor]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(512, (length,), generator=generator) for _ in range(count)]


def searches() -> dict[str, float]:
    """CPU seconds of choosing 4 of 16 experts in every layer, both ways."""
    model, given = fresh(), texts()
    started = time.process_time()
    state = Search(Decoder(model), given, SearchOptions(layers=0)).run()
    fast = time.process_time() - started
    decoder = Decoder(model)
    family = Search(decoder, given, SearchOptions(layers=0)).family
    batches = batches_of(given, 8)
    started = time.process_time()
    for layer in range(6):
        weights = state.gates.weights(layer)
        slow = slow_scores(decoder, family, layer, batches, weights, jensen_shannon)
        assert [e for e, _ in greedy_experts(slow, weights, 4, layer)] == state.keep[layer]
    taken = time.process_time() - started
    return {"fast_seconds": fast, "slow_seconds": taken, "fast_over_slow": taken / fast}


def speeds() -> dict[str, float]:
    """Prefill of 32 x 64 tokens and decoding, all six layers condensed, over the original."""
    model, figures = fresh(), {}
    small = {mode: condense(model, texts(8), mode=mode, layers=6).model for mode in ("SR", "S")}
    for experts in ("grouped_mm", "eager"):
        models = [model, *(storage.folded(one) for one in small.values())]
        for one in models:
            one.set_experts_implementation(experts)
        original, *others = speed_of(models, 512)
        for mode, speed in zip(small, others, strict=True):
            figures[f"prefill_{mode}_{experts}"] = speed.prefill / original.prefill
            figures[f"decode_{mode}_{experts}"] = speed.decode / original.decode
    return figures


CONDENSE = """
import resource, sys
from pathlib import Path
import torch
from plait_cdmoe import commands, streaming, search, storage, replay
from plait_cdmoe.commands import condense
import transformers.models.qwen2_moe.modeling_qwen2_moe, rich.progress, plait_zoo.corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
condense(folder / "model", folder / "texts.jsonl", folder / "out", layers=6, count=16, tokens=64)
print("PEAK", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def on_disk() -> dict[str, float]:
    """A model of 0.4 GB condensed by the command in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = fresh(
            hidden_size=512, num_hidden_layers=12, num_experts=32, moe_intermediate_size=352, num_attention_heads=8
        )
        model.to(torch.bfloat16).save_pretrained(folder / "model", max_shard_size="200MB")
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        removed = 6 * 2 * ((32 - 4) * 3 * 512 * 352 + 32 * 512)
        tokenizer = train_bpe(["the quick brown fox jumps over the lazy dog " * 20], 300)
        for name, content in tokenizer.files.items():
            (folder / "model" / name).write_bytes(content)
        lines = [json.dumps({"text": " ".join(["the lazy fox"] * (20 + n))}) for n in range(16)]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        del model
        done = subprocess.run(
            [sys.executable, "-c", CONDENSE, place], capture_output=True, text=True, check=True
        ).stdout
        said = float(done.split("Memory at most about ")[1].split(" GB")[0]) * 1e9
        peak = float(done.split("PEAK ")[1])
        bytes_of = {
            name: sum(f.stat().st_size for f in (folder / name).glob("*.safetensors")) for name in ("model", "out")
        }
    return {
        "model_bytes": whole,
        "peak_bytes": peak,
        "estimated_bytes": said,
        "peak_over_model": peak / whole,
        "bytes_removed": bytes_of["model"] - bytes_of["out"],
        "bytes_by_formula": removed,
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    figures = {
        "machine": machine(),
        "search": searches(),
        "layer": layers_at_width_figures(),
        "model": speeds(),
        "disk": on_disk(),
    }
    print(json.dumps(figures, indent=2))


def layers_at_width_figures() -> dict[str, float]:
    """One layer at d 1024, as the claim ``speed`` has it."""
    from plait.declare.recipe import assemble

    recipe = assemble(None, plugins={"cdmoe": {"base_steps": 0}}, data="python-docs", model="transformers", seed=0)
    return dict(layers_at_width(recipe, Path()))


if __name__ == "__main__":
    main()
