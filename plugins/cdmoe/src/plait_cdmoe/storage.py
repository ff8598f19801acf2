"""Condensed models as classes of transformers: `save_pretrained`, `from_pretrained` and `generate` work as ever.

``config.condensed_layers`` says which decoder layers are condensed, with which experts and weights. The classes build
small layers for these, so the removed experts are never allocated and never on disk.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import logging

from .condensed import CondensedMLP, fold
from .deepseek import DeepseekConfig, DeepseekForCausalLM
from .errors import CdmoeError
from .families import LAYOUTS
from .registration import PREFIX

__all__ = ["CONDENSED", "condensed_config", "folded", "quiet", "rebuild", "save"]

Entries = dict[int, dict[str, list[Any]]]
"""Decoder index -> {"experts": kept experts in their order, "weights": their constants}."""


def entries_of(given: Mapping[Any, Any] | None) -> Entries:
    """``condensed_layers`` of a config.json, whose keys are text.

    Raises:
        CdmoeError: it is not of that form.
    """
    try:
        entries = {
            int(place): {"experts": list(e["experts"]), "weights": list(e["weights"])}
            for place, e in (given or {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CdmoeError("condensed_layers must map a decoder layer to its 'experts' and 'weights'") from error
    for place, entry in entries.items():
        if len(entry["experts"]) != len(entry["weights"]) or not all(map(math.isfinite, entry["weights"])):
            raise CdmoeError(f"condensed_layers: layer {place} needs a finite weight for each of its experts")
    return entries


def _classes(kind: str, base_config: Any, base_model: Any) -> tuple[Any, Any]:
    """The family's configuration and model with condensed layers."""

    def after(self: Any, **kwargs: Any) -> None:
        base_config.__post_init__(self, **kwargs)
        self.condensed_layers = entries_of(self.condensed_layers)

    def build(self: Any, config: Any) -> None:
        base_model.__init__(self, config)
        for place, entry in config.condensed_layers.items():
            if not 0 <= place < len(self.model.layers):
                raise CdmoeError(f"condensed_layers: there is no decoder layer {place}")
            self.model.layers[place].mlp = CondensedMLP(config, LAYOUTS[kind], len(entry["experts"]))
        self.post_init()

    config = type(
        "Condensed" + base_config.__name__,
        (base_config,),
        {
            "__module__": __name__,
            "__qualname__": "Condensed" + base_config.__name__,
            "__annotations__": {"condensed_layers": dict | None},
            "condensed_layers": None,
            "model_type": PREFIX + kind,
            "base_model_tp_plan": None,
            "base_model_ep_plan": None,
            "__post_init__": after,
        },
    )
    model = type(
        "Condensed" + base_model.__name__,
        (base_model,),
        {"__module__": __name__, "__init__": build, "config_class": config, "config": config},
    )
    return config, model


CONDENSED: dict[str, tuple[Any, Any]] = {
    kind: _classes(kind, config, model)
    for kind, config, model in (
        ("qwen2_moe", Qwen2MoeConfig, Qwen2MoeForCausalLM),
        ("qwen3_moe", Qwen3MoeConfig, Qwen3MoeForCausalLM),
        ("deepseek_v2", DeepseekV2Config, DeepseekV2ForCausalLM),
        ("deepseek_v3", DeepseekV3Config, DeepseekV3ForCausalLM),
        ("deepseek", DeepseekConfig, DeepseekForCausalLM),
    )
}
"""Family -> its condensed configuration and model, registered with transformers' Auto classes."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars and warnings."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


MODELS: tuple[type, ...] = tuple(model for _, model in CONDENSED.values())


@torch.no_grad()
def reload_difference(model: Any) -> float:
    """The largest difference of a folded model's logits after `save_pretrained` and `from_pretrained`."""
    ids = torch.arange(16, device=model.device)[None] % model.config.vocab_size
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, local_files_only=True)
    again.to(model.device).train(model.training)
    again.set_experts_implementation(model.config._experts_implementation)
    return float((model(ids).logits - again(ids).logits).abs().max())


def _register() -> None:
    table = {DeepseekConfig.model_type: (DeepseekConfig, DeepseekForCausalLM)}
    table |= {PREFIX + kind: pair for kind, pair in CONDENSED.items()}
    for kind, (config, model) in table.items():
        AutoConfig.register(kind, config)
        AutoModelForCausalLM.register(config, model)
        family = kind.removeprefix(PREFIX)
        mapping = get_checkpoint_conversion_mapping(family) or get_checkpoint_conversion_mapping("qwen2_moe")
        register_checkpoint_conversion_mapping(kind, mapping)
        globals()[config.__name__], globals()[model.__name__] = config, model


def condensed_config(config: Any, entries: Entries) -> Any:
    """The condensed configuration of a model's."""
    kind = config.model_type.removeprefix(PREFIX)
    given = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "condensed_layers")}
    small = CONDENSED[kind][0](**given, condensed_layers=entries)
    small._attn_implementation = config._attn_implementation
    small._experts_implementation = config._experts_implementation
    return small


@torch.no_grad()
def rebuild(model: Any, layers: Mapping[int, CondensedMLP], entries: Entries) -> Any:
    """A model of the condensed class over the tensors of ``model``, with ``layers`` (decoder index -> module) in place.

    Nothing is copied: the two share what is not condensed.
    """
    config = condensed_config(model.config, entries)
    with torch.device("meta"):
        small = CONDENSED[config.model_type.removeprefix(PREFIX)][1](config)
    for place, layer in layers.items():
        small.model.layers[place].mlp = layer
    inside = tuple(f"model.layers.{place}.mlp." for place in layers)
    others = {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.startswith(inside)}
    condensed = {k: v for k, v in small.state_dict(keep_vars=True).items() if k.startswith(inside)}
    small.load_state_dict(others | condensed, assign=True)
    small.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    small.tie_weights()
    small.generation_config = copy.deepcopy(model.generation_config)
    return small.train(model.training)


def folded(model: Any) -> Any:
    """A condensed model with the constants in the weights; it shares what is not condensed."""
    entries = model.config.condensed_layers
    small = rebuild(model, {place: copy.deepcopy(model.model.layers[place].mlp) for place in entries}, entries)
    fold(small)
    return small


def save(model: Any, folder: Path | str) -> None:
    """`save_pretrained` of the `folded` model; the one given stays as it is."""
    folded(model).save_pretrained(folder)


_register()
