"""Cost of cdmoe, in one process on one thread: CPU time, medians.

* the fast expert search over the slow one, which computes the network anew for every candidate (the same lists);
* one condensed layer over the routed one (d 1024, 16 experts of width 352, 4 for each token, 512 tokens), and prefill
  and decode of a small model with all layers condensed, against the original with the experts implementation named;
* bytes on disk of a condensed model against the formula;
* peak memory of `plait cdmoe condense` above that of the same command on a tiny model, without the pages of mapped
  files (RssAnon), against the model's size and the bound that the command prints.

``--plot=FILE`` draws instead: excess against memory of one trained base (the claims' first seed), and what was kept.
"""

from __future__ import annotations

import json
import math
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
from plait.declare.recipe import assemble
from plait_cdmoe import storage
from plait_cdmoe.base import trained_base
from plait_cdmoe.claims import layers_at_width
from plait_cdmoe.decoder import Decoder, batches_of
from plait_cdmoe.distance import jensen_shannon
from plait_cdmoe.experts import greedy_experts, slow_scores
from plait_cdmoe.measures import losses_of, parameter_bytes, perplexity, speed_of
from plait_cdmoe.options import CdmoeOptions, SearchOptions
from plait_cdmoe.search import Search, condense
from plait_cdmoe.windows import calibration, shortened
from plait_zoo.tokenization import train_bpe

TEXTS = 24
WAYS = {
    "SR": {},
    "S": {"mode": "S"},
    "SR, random experts": {"experts": "random"},
    "layer trimming": {"mode": "layer-trimming"},
    "blocks removed": {"mode": "block-trimming"},
}


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
import sys, threading
from pathlib import Path
from plait_cdmoe.commands import condense

folder, peak, done = Path(sys.argv[1]), [0], threading.Event()

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

condense(folder / "tiny", folder / "texts.jsonl", folder / "first", layers=1, count=2, tokens=8)
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
condense(folder / "model", folder / "texts.jsonl", folder / "out", layers=6, count=16, tokens=64)
done.set()
watcher.join()
print("PEAK", peak[0] - before)
"""


def on_disk() -> dict[str, float]:
    """A model of 0.9 GB condensed by the command in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = fresh(
            hidden_size=512, num_hidden_layers=24, num_experts=32, moe_intermediate_size=352, num_attention_heads=8
        )
        model.to(torch.bfloat16).save_pretrained(folder / "model", max_shard_size="200MB")
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        removed = 6 * 2 * ((32 - 4) * 3 * 512 * 352 + 32 * 512)
        fresh().save_pretrained(folder / "tiny")
        tokenizer = train_bpe(["the quick brown fox jumps over the lazy dog " * 20], 300)
        for name, content in tokenizer.files.items():
            for of_model in ("model", "tiny"):
                (folder / of_model / name).write_bytes(content)
        lines = [json.dumps({"text": " ".join(["the lazy fox"] * (20 + n))}) for n in range(16)]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        del model
        line = [sys.executable, "-c", CONDENSE, str(folder)]
        done = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        said = float(done.split("Memory at most ")[2].split(" GB")[0]) * 1e9
        peak = float(done.split("PEAK ")[1])
        bytes_of = {
            name: sum(f.stat().st_size for f in (folder / name).glob("*.safetensors")) for name in ("model", "out")
        }
    return {
        "model_bytes": whole,
        "peak_bytes": peak,
        "bound_bytes": said,
        "peak_over_model": peak / whole,
        "bytes_removed": bytes_of["model"] - bytes_of["out"],
        "bytes_by_formula": removed,
    }


def draw(path: Path) -> None:
    """Excess against memory, a line for each way to make one base smaller; and experts, gates and layers of SR."""
    import matplotlib
    from matplotlib.figure import Figure

    from plait.data.seeds import seed_everything
    from plait.loading import build_model, load_data

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "cdmoe"}  # small, and the same every time
    options = CdmoeOptions(base_steps=600, layers=5)
    recipe = small_recipe(options, {"data.characters": 1_500_000}, seed=1000)
    seed_everything(recipe.seed)
    data = shortened(load_data(recipe.data, recipe.seed), options.windows)
    model: Any = build_model(recipe.model, data.info)
    trained_base(options, recipe.seed, model, data)
    model.eval()
    windows, given = data.test.__getitems__(torch.arange(len(data.test)))["input"], calibration(data, options.texts)

    def cost(changed: Any) -> float:
        return math.log(perplexity(losses_of(changed.eval(), windows))[""])

    whole = cost(model)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, changes in WAYS.items():
        search = Search(Decoder(model), given, options.model_copy(update=changes))
        search.run()
        small = [model, *(search.reduced(count) for count in range(1, 4 if "blocks" in name else 6))]
        memory = [parameter_bytes(each) / parameter_bytes(model) for each in small]
        left.plot(memory, [cost(each) - whole for each in small], marker="o", markersize=4, label=name)
        if name == "SR":
            chosen = search
    left.set(xlabel="memory over the original's", ylabel="ln(perplexity / original's), nats", title="1 to 5 layers")
    left.invert_xaxis()
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    state = chosen.state
    gates = torch.stack([state.gates.weights(layer) for layer in range(len(state.keep))])
    image = right.imshow(gates, aspect="auto", cmap="Blues", vmin=0)
    for rank, layer in enumerate(state.order[:3], 1):
        right.plot(state.keep[layer], [layer] * len(state.keep[layer]), "o", color="tab:red", markersize=7)
        right.annotate(f"condensed {rank}.", (15.7, layer), va="center", annotation_clip=False, fontsize=8)
    right.set(xlabel="expert", ylabel="layer", title="mean gate where selected; red: kept, P = 3")
    figure.colorbar(image, ax=right, pad=0.14)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure and print, or draw."""
    plots = [Path(argument.removeprefix("--plot=")) for argument in sys.argv[1:] if argument.startswith("--plot=")]
    if plots:
        draw(plots[0])
        return
    torch.set_num_threads(1)
    figures = {
        "machine": machine(),
        "search": searches(),
        "layer": dict(layers_at_width(small_recipe(CdmoeOptions(base_steps=0), {}), Path())),
        "model": speeds(),
        "disk": on_disk(),
    }
    print(json.dumps(figures, indent=2))


def small_recipe(options: CdmoeOptions, settings: dict[str, Any], seed: int = 0) -> Any:
    """As of a run of the plugin on the embedded texts."""
    plugins = {"cdmoe": options.model_dump(mode="json", exclude_unset=True)}
    return assemble(None, plugins=plugins, data="python-docs", model="transformers", seed=seed, settings=settings)


if __name__ == "__main__":
    main()
