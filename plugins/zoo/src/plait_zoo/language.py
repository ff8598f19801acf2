"""``transformers``: a causal language model of a local Hugging Face folder, or a small fresh one of any family."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from plait.data import DataInfo
from plait.errors import BadInput, first_line, nearest
from plait.training.frozen import evaluating
from plait_zoo.text_options import TransformersOptions
from plait_zoo.tokenization import Tokenizer, imported, load_folder


@dataclass(frozen=True)
class RouterLoss:
    """The load-balancing loss of a mixture of experts while it trains, as the model's own term of the loss.

    Attributes:
        factor: the loss is multiplied by it.
    """

    factor: float

    def before(self, model: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A hook before the forward pass: the router's logits are wanted in training."""
        return args, {"output_router_logits": model.training, **given}

    def __call__(self, raw: Any, batch: Any) -> dict[str, Tensor]:
        """``router`` of all that the model gave."""
        loss = getattr(raw, "aux_loss", None)
        return {"router": self.factor * loss} if isinstance(loss, Tensor) else {}


def build(options: TransformersOptions, info: DataInfo) -> nn.Module:
    """A causal language model in training mode, its vocabulary at least ``info.num_classes``.

    Its ``export_files`` are the data's tokenizer, so that the exported folder is whole.

    Raises:
        BadInput: transformers is not installed, no folder or no safetensors in it, a family or a value that there is
            not, a tokenizer of the data that is not the model's.
    """
    transformers = imported("transformers")
    with _quiet(transformers):
        model: nn.Module = _stored(transformers, options, info) if options.path else _fresh(transformers, options, info)
    require_causal(model)
    tokenizer = info.extra.get("tokenizer")
    if isinstance(tokenizer, Tokenizer):
        model.export_files = dict(tokenizer.files)  # type: ignore[assignment]
    with_router(model, options.router_loss)
    if gated_layers(model):
        model.channel_groups = MethodType(gated_layers, model)  # type: ignore[assignment]
    model.train()
    return model


def gated_layers(model: nn.Module) -> list[tuple[str, None, tuple[str], tuple[str]]]:
    """Channels that can be removed: (producer, None, consumers, further producers) of each gated feed-forward layer.

    A channel is a row of ``up_proj`` and of ``gate_proj`` and a column of ``down_proj``. Of routed experts, whose
    weights lie in one tensor, there are none.
    """
    parts = ("up_proj", "gate_proj", "down_proj")
    gated = [
        name
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in parts)
    ]
    return [(f"{name}.up_proj", None, (f"{name}.down_proj",), (f"{name}.gate_proj",)) for name in gated]


@torch.no_grad()
def require_causal(model: Any) -> None:
    """Refuse a model that sees the tokens that it is to predict, as an encoder (BERT) does.

    Raises:
        BadInput: the outputs of a token depend on a later one, or the model cannot be called with tokens.
    """
    tokens = torch.tensor([[1, 2, 1, 2], [1, 2, 1, 1]]) % model.get_input_embeddings().num_embeddings
    kind = model.config.model_type
    try:
        with evaluating(model):
            outputs = model(input_ids=tokens.to(model.device)).logits[:, :-1].float()
    except Exception as error:  # every family has checks of its own
        raise BadInput(f"model transformers: {kind} fails on four tokens: {first_line(error)}") from None
    if not torch.allclose(outputs[0], outputs[1], rtol=1e-2, atol=1e-3):
        raise BadInput(
            f"model transformers: {kind} sees the tokens that it is to predict, so it is no causal language model "
            "(an encoder becomes one with is_decoder = true in its configuration)."
        )


def with_router(model: Any, factor: float | None = None) -> None:
    """Add the routers' load-balancing loss to what the model is trained for, where it has routers.

    Args:
        model: of transformers.
        factor: of the loss; default its configuration's ``router_aux_loss_coef``; 0 leaves it out.

    Raises:
        BadInput: a factor for a model without such a loss.
    """
    known = hasattr(model.config, "output_router_logits")
    if factor and not known:
        raise BadInput(f"model.router_loss: the family {model.config.model_type} has no load-balancing loss.")
    factor = getattr(model.config, "router_aux_loss_coef", 0.0) if factor is None else factor
    if known and factor:
        model.loss_terms = RouterLoss(float(factor))
        model.register_forward_pre_hook(model.loss_terms.before, with_kwargs=True)


def _fresh(transformers: Any, options: TransformersOptions, info: DataInfo) -> Any:
    """A model of a family with the generators' present state."""
    family = options.family
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if family not in known:
        raise BadInput(f"model transformers: no family {family!r}.{nearest(family, known)}")
    if options.hidden % options.heads:
        raise BadInput(f"model.hidden = {options.hidden} is not a multiple of model.heads = {options.heads}.")
    tokenizer = info.extra.get("tokenizer")
    end = tokenizer.end if isinstance(tokenizer, Tokenizer) else None
    sizes = {
        **_sizes(options.hidden, options.layers, options.heads),
        "vocab_size": info.num_classes,
        "max_position_embeddings": max(1024, int(info.extra.get("length", 0))),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
    }
    try:
        default = transformers.AutoConfig.for_model(family)
        names = {*default.to_dict(), *default.attribute_map}
        for name in options.config:
            if name not in names:
                raise BadInput(f"model.config: {family} has no {name!r}.{nearest(name, sorted(names))}")
        values = {name: value for name, value in sizes.items() if name in names}
        config = transformers.AutoConfig.for_model(family, **{**values, **options.config})
        return transformers.AutoModelForCausalLM.from_config(config, dtype=_dtype(options))
    except BadInput:
        raise
    except Exception as error:  # every family has checks of its own
        raise BadInput(
            f"model transformers: {family} cannot be built: {type(error).__name__}: {first_line(error)}"
        ) from None


def _sizes(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """What families call the sizes of a model; each takes those that it knows. Others stay as the family has them."""
    head, narrow = hidden // heads, max(1, hidden // 4)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * hidden,
        "tie_word_embeddings": True,
        # mixtures of experts: 16 narrow ones, of which a token takes 4, and a shared one
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16),
        **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 4),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), narrow),
        **dict.fromkeys(("n_shared_experts", "first_k_dense_replace", "n_group", "topk_group"), 1),
        "router_aux_loss_coef": 0.01,
        # attention with latent keys and values (DeepSeek), whose head_dim is that of its rotary part
        "kv_lora_rank": narrow,
        "q_lora_rank": None,
        **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), head),
    }


def _stored(transformers: Any, options: TransformersOptions, info: DataInfo) -> Any:
    folder = os.path.expanduser(options.path)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise BadInput(f"model transformers: {options.path!r} is no folder with a config.json of a Hugging Face model.")
    if not glob(os.path.join(escape(folder), "*.safetensors")):
        raise BadInput(
            f"model transformers: {options.path} has no *.safetensors. Other weights are not read, as loading them can "
            "run code: convert them with save_pretrained."
        )
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=_dtype(options),
            output_loading_info=True,
        )
    except Exception as error:  # a stranger's folder makes it raise many things
        raise BadInput(f"model transformers: {options.path} cannot be loaded: {first_line(error)}") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, loading.get(kind, ()))):
            raise BadInput(f"model transformers: {options.path}: weights are not all there ({kind}: {wrong[0]}, ...).")
    size, own = model.get_input_embeddings().num_embeddings, f"--set data.tokenizer={options.path}"
    if info.num_classes > size:
        raise BadInput(
            f"the data's tokenizer has {info.num_classes} tokens and the model of {options.path} {size}: take the "
            f"model's tokenizer, {own}, or one that fits."
        )
    tokenizer = info.extra.get("tokenizer")
    stored = [
        name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if os.path.isfile(f"{folder}/{name}")
    ]
    if stored and isinstance(tokenizer, Tokenizer) and load_folder(folder).vocabulary != tokenizer.vocabulary:
        raise BadInput(
            f"the data's tokenizer is not that of {options.path}, to whose model its tokens mean something else: take "
            f"the model's, {own}."
        )
    return model


def _dtype(options: TransformersOptions) -> Any:
    return "auto" if options.dtype == "stored" else getattr(torch, options.dtype)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Neither progress bars nor warnings of transformers: what is wrong is said by our errors."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
