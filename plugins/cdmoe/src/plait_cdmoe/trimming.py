"""What the method is compared with: layers and blocks that are removed whole (arXiv 2406.02500, card section 9)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Nothing", "without_blocks", "without_layers"]


class Nothing(nn.Module):
    """An MLP that adds nothing to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like x."""
        return torch.zeros_like(x)


def without_layers(model: Any, places: Sequence[int]) -> Any:
    """A copy whose decoder layers ``places`` have attention only: the MLP goes, and its norm."""
    small = copy.deepcopy(model)
    for place in places:
        small.model.layers[place].mlp = Nothing()
        small.model.layers[place].post_attention_layernorm = nn.Identity()
    return small


def without_blocks(model: Any, places: Sequence[int]) -> Any:
    """A copy without the decoder layers ``places``; the others are numbered anew, for the cache of keys and values."""
    small = copy.deepcopy(model)
    left = [place for place in range(len(small.model.layers)) if place not in set(places)]
    small.model.layers = nn.ModuleList([small.model.layers[place] for place in left])
    for place, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = place
    config = small.config
    config.num_hidden_layers = len(left)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in left]
    if getattr(config, "mlp_only_layers", None):
        config.mlp_only_layers = [at for at, place in enumerate(left) if place in config.mlp_only_layers]
    if getattr(config, "first_k_dense_replace", None):
        config.first_k_dense_replace = sum(place < config.first_k_dense_replace for place in left)
    return small
