"""Random models of every family, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

KINDS = ("qwen2_moe", "deepseek_v2", "deepseek_v3", "deepseek")


def small_config(kind: str, **changes: Any) -> Any:
    """A configuration of four layers, hidden size 32, six experts of width 8, two for each token."""
    from transformers import AutoConfig

    import plait_cdmoe  # noqa: F401 - makes deepseek known

    common = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    routed = {"n_routed_experts": 6, "n_shared_experts": 2, "first_k_dense_replace": 1, "intermediate_size": 48}
    latent = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    own: dict[str, dict[str, Any]] = {
        "qwen2_moe": {"num_experts": 6, "shared_expert_intermediate_size": 12, "tie_word_embeddings": True},
        "qwen3_moe": {"num_experts": 6, "norm_topk_prob": True, "head_dim": 16},
        "deepseek_v2": {**routed, **latent, "routed_scaling_factor": 1.5},
        "deepseek_v3": {**routed, **latent, "n_group": 2, "topk_group": 1},
        "deepseek": routed,
    }
    return AutoConfig.for_model(kind, **{**common, **own.get(kind, {}), **changes})


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenizers and bases are kept in a folder of these tests."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cdmoe-cache"))
        yield


@pytest.fixture(scope="session")
def small() -> Callable[..., Any]:
    """``small(kind, dtype, **config)``: the same random model every time, in eval mode."""

    def build(kind: str = "qwen2_moe", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small_config(kind, **changes)).to(dtype).eval()
        if dtype == torch.float64:
            model.set_experts_implementation("eager")
        return model

    return build


@pytest.fixture(scope="session")
def texts() -> list[torch.Tensor]:
    """Texts of several lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(64, (n,), generator=generator) for n in (16, 11, 16, 9, 16, 9, 5, 11)]
