"""Models as they are saved, shared and trimmed. That they load in a fresh process: test_cdmoe_process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plait_cdmoe import storage
from plait_cdmoe.decoder import Decoder
from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.options import SearchOptions
from plait_cdmoe.search import Search, condense
from plait_cdmoe.trimming import without_blocks, without_layers

Small = Callable[..., Any]


def condensed(model: Any, texts: list[Tensor], mode: str = "SR", layers: int = 2) -> Any:
    return condense(model, texts, mode=mode, layers=layers).model


def test_the_file_has_the_small_layers_and_tied_weights_once(small: Small, texts: list[Tensor], tmp_path: Path) -> None:
    from safetensors import safe_open

    model = small("qwen2_moe", torch.float32)
    model.generation_config.max_new_tokens = 7
    storage.save(condensed(model, texts), tmp_path / "small")
    model.save_pretrained(tmp_path / "whole")
    with safe_open(tmp_path / "small" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    places = [int(place) for place in config["condensed_layers"]]
    assert config["model_type"] == "cdmoe_qwen2_moe"
    for place in range(4):
        prefix = f"model.layers.{place}.mlp."
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if place in places:
            shared = {f"shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")}
            parts = {f"condensed.{part}_proj.weight" for part in ("gate", "up", "down")}
            assert inside == shared | parts | {"shared_expert_gate.weight"}
        else:
            assert "experts.5.down_proj.weight" in inside, "as other releases of transformers read it"
    assert "lm_head.weight" not in names
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    removed = 2 * ((6 - 2) * 3 * 32 * 8 + 6 * 32) * 4
    assert abs(sizes[0] - sizes[1] - removed) < 8000, "but for the header"
    assert json.loads((tmp_path / "small" / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_a_folder_that_does_not_agree_with_itself_is_refused(small: Small, texts: list[Tensor], tmp_path: Path) -> None:
    storage.save(condensed(small("deepseek_v2", torch.float32), texts), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    place = next(iter(config["condensed_layers"]))
    for change, message in (
        ({place: {"experts": [1], "weights": [0.1, 0.2]}}, "a finite weight for each"),
        ({place: {"experts": [1]}}, "must map a decoder layer"),
        ({"9": {"experts": [1], "weights": [0.1]}}, "no decoder layer 9"),
        ({place: {"experts": [1], "weights": [0.1]}}, "size|mismatch|shape"),
    ):
        path.write_text(json.dumps({**config, "condensed_layers": change}))
        with pytest.raises((CdmoeError, RuntimeError, ValueError), match=message):
            storage.AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_the_condensed_model_shares_what_is_not_condensed_and_leaves_the_original(
    small: Small, texts: list[Tensor]
) -> None:
    model = small("qwen2_moe", torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = condensed(model, texts)
    assert result.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.is_meta for p in [*result.parameters(), *result.buffers()])


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v2"])
def test_trimmed_models_compute_and_generate(small: Small, kind: str) -> None:
    model, ids = small(kind, torch.float32), torch.tensor([[5, 6, 7, 8]])
    layers = without_layers(model, [2])
    with torch.no_grad():
        hidden = model.model(ids, output_hidden_states=True).hidden_states[2]
        attended = layers.model(ids, output_hidden_states=True).hidden_states
        own = model.model.layers[2]
        seen: list[Tensor] = []
        with own.post_attention_layernorm.register_forward_pre_hook(lambda m, g: seen.append(g[0])):
            model(ids)
    assert torch.equal(attended[2], hidden)
    torch.testing.assert_close(attended[3], seen[0])
    blocks = without_blocks(model, [1, 3])
    assert blocks.config.num_hidden_layers == len(blocks.model.layers) == 2
    with_cache = blocks.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
    assert torch.equal(with_cache, blocks.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in layers.parameters())
    assert removed == sum(p.numel() for p in own.mlp.parameters()) + 32


def test_a_condensed_model_is_not_searched_again(small: Small, texts: list[Tensor]) -> None:
    with pytest.raises(CdmoeError, match="condensed already"):
        Search(Decoder(condensed(small(), texts)), texts, SearchOptions())
