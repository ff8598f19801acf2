"""What `claims.toml` measures: every way to condense one trained model, and single layers at a larger size.

One base serves all ways of a seed, so they are compared on the same model, texts and test windows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.data.seeds import seed_everything
from plait.declare.recipe import Recipe
from plait.loading import build_model, load_data

from . import storage
from .base import trained_base
from .condensed import condensed_layer
from .decoder import Decoder
from .families import Family
from .finetuning import as_control, finetune
from .measures import layer_speed, losses_of, multiple_choice, parameter_bytes, perplexity
from .options import CdmoeOptions
from .search import Search, condense
from .windows import by_domain, calibration, shortened

__all__ = ["compared", "layers_at_width"]

WAYS: Mapping[str, Mapping[str, Any]] = {
    "sr": {},
    "s": {"mode": "S"},
    "trimmed": {"mode": "layer-trimming"},
    "dropped": {"mode": "layer-drop"},
    "blocks": {"mode": "block-trimming"},
    "frequency": {"experts": "frequency"},
    "weight": {"experts": "weight"},
    "unconditional": {"weights": "unconditional"},
    **{f"random{draw}": {"experts": "random", "draw": draw} for draw in range(3)},
}
STEPS, ROWS, RATE = 60, 24, 1e-3
"""Of the fine-tuning."""


def compared(recipe: Recipe, folder: Path) -> Mapping[str, float]:
    """Excess of every way after P = 1 to 5 layers, memory, fine-tuning at P = 3, multiple choice, reloading.

    ``<way>_p<P>`` is excess in nats, ``random_p<P>`` the mean of three draws; ``tuned_<way>_p3`` after fine-tuning,
    ``recovered_<way>`` in %, ``control_<way>`` what the original gains on the same tensors, nats. The recipe is as of a
    run of the plugin; its base is the run's, from the cache.
    """
    options = CdmoeOptions(**{**recipe.plugins["cdmoe"], "layers": 5})
    seed_everything(recipe.seed)
    data = shortened(load_data(recipe.data, recipe.seed), options.windows)
    model: Any = build_model(recipe.model, data.info)
    trained_base(options, recipe.seed, model, data)
    model.eval()
    test = data.test.__getitems__(torch.arange(len(data.test)))["input"]
    train = data.train.tokens.view(len(data.train), -1)  # type: ignore[attr-defined]
    texts = calibration(data, options.texts)

    def cost(changed: Any) -> float:
        return math.log(perplexity(losses_of(changed.eval(), test))[""])

    whole, size = cost(model), parameter_bytes(model)
    figures: dict[str, float] = {"perplexity": math.exp(whole)}
    searches: dict[str, Search] = {}
    for way, changes in WAYS.items():
        chosen = options.model_copy(update=dict(changes))
        search = searches[way] = Search(Decoder(model), texts, chosen, seed=recipe.seed)
        search.run()
        for count in range(1, 6 if way != "blocks" else 4):
            small = search.reduced(count)
            figures[f"{way}_p{count}"] = cost(small) - whole
            figures[f"{way}_memory_p{count}"] = parameter_bytes(small) / size
    for count in range(1, 6):
        figures[f"random_p{count}"] = sum(figures[f"random{draw}_p{count}"] for draw in range(3)) / 3

    questions = {str(domain): stream for domain, stream in by_domain(data.test).items()}
    figures["choice"] = multiple_choice(model, questions, options.questions, seed=recipe.seed)[""]
    for way in ("sr", "s"):
        search = searches[way]
        small = search.small(3)
        figures[f"choice_{way}_p3"] = multiple_choice(small, questions, options.questions, seed=recipe.seed)[""]
        finetune(small, drawn(train, recipe.seed), steps=STEPS, lr=RATE)
        figures[f"tuned_{way}_p3"] = cost(small) - whole
        figures[f"recovered_{way}"] = 100 * (1 - figures[f"tuned_{way}_p3"] / figures[f"{way}_p3"])
        figures[f"reload_{way}"] = storage.reload_difference(storage.folded(small))
        kept = {place: search.state.keep[layer] for place, layer in search.chosen(3).items()}
        control = copy.deepcopy(model)
        as_control(control, kept, search.family.layout.shared)
        finetune(control, drawn(train, recipe.seed), steps=STEPS, lr=RATE, frozen=True)
        figures[f"control_{way}"] = whole - cost(control)
    greedy, counted = searches["sr"].state.keep, searches["frequency"].state.keep
    common = [len({*a} & {*b}) for a, b in zip(greedy, counted, strict=True)]
    figures["common_with_frequency"] = sum(common) / len(common)
    figures["never_selected"] = len(searches["sr"].state.gates.never_selected())
    return figures


def drawn(windows: Tensor, seed: int) -> Any:
    """Endless batches of training windows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield windows[torch.randint(len(windows), (ROWS,), generator=generator)].long(), None


def layers_at_width(recipe: Recipe, folder: Path) -> Mapping[str, float]:
    """One layer of random weights, d = 1024, m = s = 352, E = 16, K = 4: throughput of 512 tokens on one thread.

    It is over the original's, with both experts implementations. Also the logits' difference after reloading. Of the
    recipe the seed matters.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    seed_everything(recipe.seed)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 352,
        "num_experts_per_tok": 4,
    }
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen2_moe", **sizes, num_experts=16, shared_expert_intermediate_size=352)
    ).eval()
    family = Family(model)
    figures: dict[str, float] = {}
    layers = {"sr": condensed_layer(family, 0, [1, 5, 7, 11], [0.1] * 4), "s": condensed_layer(family, 0, [], [])}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for experts in ("grouped_mm", "eager"):
            model.set_experts_implementation(experts)
            original, *small = layer_speed([family.block(0), *layers.values()], 1024)
            figures |= {f"{name}_{experts}": speed / original for name, speed in zip(layers, small, strict=True)}
    finally:
        torch.set_num_threads(threads)
    latent = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    little = {**sizes, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    for kind, own in (
        ("qwen2_moe", {"num_experts": 6, "shared_expert_intermediate_size": 16}),
        ("deepseek_v2", {"n_routed_experts": 6, "n_shared_experts": 1, "first_k_dense_replace": 1, **latent}),
    ):
        fresh = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**little, **own, "moe_intermediate_size": 16, "intermediate_size": 64})
        ).eval()
        texts = list(torch.randint(64, (4, 12)))
        small = condense(fresh, texts, layers=2, kept=2).model
        figures[f"reload_{kind}"] = storage.reload_difference(storage.folded(small))
    return figures
