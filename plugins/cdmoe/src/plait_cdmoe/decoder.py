"""A causal language model as a chain of decoder layers that are run one by one, over texts without padding.

Texts are computed in batches of one length, so there is no padding and nothing can depend on its side. What is computed
for a text depends on the others of its batch only by rounding, and batches are the same for any number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CdmoeError

__all__ = ["Decoder", "TextBatch", "Weights", "batches_of", "unpadded"]


@dataclass(frozen=True)
class TextBatch:
    """Texts of one length: their places in the collection, and token ids [B, T]."""

    rows: tuple[int, ...]
    ids: Tensor

    def owners(self, device: torch.device) -> Tensor:
        """The text of each token, int64 [B*T]."""
        return torch.tensor(self.rows, device=device).repeat_interleave(self.ids.shape[1])


def unpadded(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The texts of a padded batch, ids and mask [B, T], padded on whichever side; without a mask they are whole."""
    return list(ids) if mask is None else [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]


def batches_of(texts: Sequence[Tensor], size: int, limit: int | None = None) -> list[TextBatch]:
    """Batches of at most ``size`` texts of equal length, each cut to ``limit`` tokens; empty ones are left out."""
    by_length: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        by_length.setdefault(min(len(text), limit or len(text)), []).append(row)
    return [
        TextBatch(tuple(part), torch.stack([texts[row][:length] for row in part]).long())
        for length, rows in sorted(by_length.items())
        if length
        for part in (rows[start : start + size] for start in range(0, len(rows), size))
    ]


class Weights:
    """Where the weights of a decoder layer are while it computes; here in the model, at all times."""

    resident = True

    def of(self, place: int) -> contextlib.AbstractContextManager[None]:
        """Inside the context the decoder layer of that index has its weights."""
        return contextlib.nullcontext()


class _Tap(nn.Module):
    """Stands for a decoder layer: remembers how it is called."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden: Tensor, **settings: Any) -> Tensor:
        self.calls.append(settings)
        return hidden


class Decoder:
    """A model of transformers (``model.model.layers``, ``.norm``) in eval mode, layer by layer.

    In float64, and where rows are no multiple of 16 bytes, it switches to the eager experts: the others cannot do it.
    ``weights`` says where its layers' weights come from; default: they are in the model.
    """

    def __init__(self, model: Any, weights: Weights | None = None) -> None:
        self.model, self.layers, self.weights = model.eval(), model.model.layers, weights or Weights()
        dtype = next(model.parameters()).dtype
        sizes = (model.config.hidden_size, getattr(model.config, "moe_intermediate_size", 0))
        odd = dtype == torch.float64 or any(size * dtype.itemsize % 16 for size in sizes)
        if odd and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        self._settings: dict[int, list[dict[str, Any]]] = {}
        limit = getattr(model.config, "max_position_embeddings", None)
        self.longest: int | None = int(limit) if limit else None

    def __len__(self) -> int:
        return len(self.layers)

    def _enter(self, ids: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        calls: list[dict[str, Any]] = []
        base, layers = self.model.model, self.layers
        base.layers = nn.ModuleList([_Tap(calls) for _ in layers])
        norm, base.norm = base.norm, nn.Identity()
        try:
            hidden: Tensor = base(input_ids=ids.to(self.model.device), use_cache=False).last_hidden_state
        finally:
            base.layers, base.norm = layers, norm
        return hidden, calls

    @torch.no_grad()
    def embed(self, batch: TextBatch) -> Tensor:
        """What enters the first layer, [B, T, d].

        Raises:
            CdmoeError: texts longer than the model's positions, or tokens outside its vocabulary.
        """
        length = batch.ids.shape[1]
        if self.longest is not None and length > self.longest:
            raise CdmoeError(
                f"a text of {length} tokens is longer than the model's {self.longest} positions "
                "(max_position_embeddings): truncate the texts"
            )
        size = self.model.get_input_embeddings().weight.shape[0]
        if int(batch.ids.max()) >= size:
            raise CdmoeError(
                f"token {int(batch.ids.max())} is outside the model's vocabulary of {size}: the tokenizer is another's"
            )
        if length not in self._settings:
            self._settings[length] = self._enter(batch.ids[:1])[1]
        return self._enter(batch.ids)[0]

    @torch.no_grad()
    def run(self, place: int, hidden: Tensor, mlp: nn.Module | None = None) -> Tensor:
        """Decoder layer ``place`` on [R, T, d], any number of rows R; with ``mlp`` in the place of its own."""
        layer, own = self.layers[place], self.layers[place].mlp
        settings = self._settings[hidden.shape[1]][place]
        if mlp is not None:
            layer.mlp = mlp
        try:
            output = layer(hidden, **settings)
        finally:
            layer.mlp = own
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after

    def capture(self, place: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run decoder layer ``place``: the MLP's input, the residual that it is added to, the layer's output."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
            seen.append(given[0])

        layer = self.layers[place]
        hooks = [
            layer.post_attention_layernorm.register_forward_pre_hook(keep),
            layer.mlp.register_forward_pre_hook(keep),
        ]
        try:
            output = self.run(place, hidden)
        finally:
            for hook in hooks:
                hook.remove()
        residual, x = seen
        return x, residual, output

    @torch.no_grad()
    def final(self, place: int, hidden: Tensor) -> Tensor:
        """``hidden_states`` after layer ``place`` as transformers gives them: after the last with the final norm."""
        last = place == len(self.layers) - 1
        output: Tensor = self.model.model.norm(hidden) if last else hidden
        return output

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of states after the final norm, [..., d] -> [..., V]."""
        output: Tensor = self.model.lm_head(hidden)
        return output
