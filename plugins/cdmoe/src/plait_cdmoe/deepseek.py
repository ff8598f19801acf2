"""DeepSeekMoE-16B (``model_type`` deepseek), which transformers has not: Llama's attention, DeepSeek-V2's experts.

The first ``first_k_dense_replace`` layers are dense, of width ``intermediate_size``; the others have routed experts of
width ``moe_intermediate_size``, softmax gates that are not renormalised, and ungated shared experts.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, initialization
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2Moe, DeepseekV2TopkRouter
from transformers.utils.output_capturing import OutputRecorder

__all__ = ["DeepseekConfig", "DeepseekForCausalLM"]


class DeepseekConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's configuration and the sizes of the experts; names and defaults as in DeepSeekMoE-16B's config.json."""

    model_type = "deepseek"
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012 - as transformers has it
    base_model_tp_plan = None
    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    n_shared_experts: int = 2
    n_routed_experts: int = 64
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.norm_topk_prob:
            raise ValueError("norm_topk_prob = true is no DeepSeekMoE-16B, whose gates are not renormalised")


class DeepseekModel(LlamaModel):  # type: ignore[misc]
    """Llama's decoder with mixture-of-experts layers in the place of all but the first MLPs."""

    config_class = DeepseekConfig
    _can_record_outputs = {  # noqa: RUF012 - as transformers has it
        **LlamaModel._can_record_outputs,
        "router_logits": OutputRecorder(DeepseekV2TopkRouter, index=0),
    }
    _keep_in_fp32_modules_strict = ["gate.weight"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            if index >= config.first_k_dense_replace and index % config.moe_layer_freq == 0:
                layer.mlp = DeepseekV2Moe(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekV2TopkRouter):
            initialization.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, DeepseekV2Experts):
            initialization.normal_(module.gate_up_proj, std=self.config.initializer_range)
            initialization.normal_(module.down_proj, std=self.config.initializer_range)


class DeepseekForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The language model over `DeepseekModel`."""

    config_class = DeepseekConfig
    _keep_in_fp32_modules_strict = ["gate.weight"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.post_init()
