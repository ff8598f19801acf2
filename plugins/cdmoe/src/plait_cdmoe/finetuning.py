"""A short training of the condensed layers alone (card, section 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from .condensed import CondensedMLP
from .errors import CdmoeError

__all__ = ["Finetuned", "as_control", "finetune", "freeze"]


def freeze(model: nn.Module) -> list[str]:
    """Leave only the linear weights of condensed layers trainable, without the shared expert's gate; their names.

    Raises:
        CdmoeError: the model has no condensed layer.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, CondensedMLP):
            module.requires_grad_(True)
            if module.gated:
                module.shared_expert_gate.requires_grad_(False)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise CdmoeError("no layer is condensed, so there is nothing to fine-tune")
    return names


class _Rows(nn.Module):
    """The whole tensor of a layer's experts, of which only some rows are trained."""

    def __init__(self, whole: Tensor, rows: list[int]) -> None:
        super().__init__()
        self.register_buffer("whole", whole.detach().clone())
        self.register_buffer("rows", torch.tensor(rows))
        self.whole: Tensor
        self.rows: Tensor

    def forward(self, some: Tensor) -> Tensor:
        """[k, ...] -> [E, ...]."""
        return self.whole.index_copy(0, self.rows, some)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """[E, ...] -> [k, ...]."""
        return whole[self.rows]


def as_control(model: Any, layers: dict[int, list[int]], shared: str | None) -> list[str]:
    """Leave of the original model trainable what `freeze` leaves in the condensed one, in place; the names.

    Args:
        model: the original, routed model.
        layers: decoder index -> experts that would be kept.
        shared: name of the shared expert in a block.
    """
    model.requires_grad_(False)
    for place, kept in layers.items():
        block = model.model.layers[place].mlp
        if kept:
            for name in ("gate_up_proj", "down_proj"):
                rows = _Rows(getattr(block.experts, name), kept)
                parametrize.register_parametrization(block.experts, name, rows, unsafe=True)
                block.experts.parametrizations[name].original.requires_grad_(True)
        if shared is not None:
            getattr(block, shared).requires_grad_(True)
    return [name for name, p in model.named_parameters() if p.requires_grad]


@dataclass(frozen=True)
class Finetuned:
    """Steps done, and the loss of each, nats."""

    steps: int
    losses: list[float]


def finetune(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    steps: int,
    lr: float = 1e-5,
    warmup: float = 0.1,
    floor: float = 0.5,
    clip: float = 1.0,
    frozen: bool = False,
) -> Finetuned:
    """Train the condensed layers on next tokens.

    AdamW (weight decay 0.01), with float32 copies of weights of lower precision; linear warm-up, then linear decay.

    Args:
        model: condensed, its constants not yet folded.
        batches: token ids [B, T] and the attention mask or None; padding is not trained on.
        steps: of the optimizer, at most; the learning rate follows them.
        lr, warmup, floor: peak learning rate; share of the steps; share of the peak at the end.
        clip: largest norm of the gradient.
        frozen: what is trainable has been chosen (`freeze`, `as_control`); default: `freeze` does it.

    Raises:
        CdmoeError: no condensed layer, or a loss that is not finite.
    """
    if not frozen:
        freeze(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    masters = [p if p.dtype in (torch.float32, torch.float64) else p.detach().float().clone() for p in weights]
    copies = [(master, weight) for master, weight in zip(masters, weights, strict=True) if master is not weight]
    optimizer = torch.optim.AdamW(masters, lr=lr, weight_decay=0.01)
    rising = max(1, round(warmup * steps))
    losses: list[float] = []
    was = model.training
    model.train()
    for step, (ids, mask) in enumerate(batches):
        if step == steps:
            break
        for group in optimizer.param_groups:
            fall = 1 - (1 - floor) * max(0, step - rising) / max(1, steps - rising)
            group["lr"] = lr * min((step + 1) / rising, fall)
        model.zero_grad()
        logits = model(ids, attention_mask=mask).logits[:, :-1].float()
        target = ids[:, 1:] if mask is None else ids[:, 1:].masked_fill((mask[:, 1:] * mask[:, :-1]) == 0, -100)
        loss = cross_entropy(logits.flatten(0, 1), target.flatten())
        if not bool(loss.isfinite()):
            raise CdmoeError(
                f"fine-tuning step {step + 1}: the loss is {float(loss.detach())}; lower the learning rate"
            )
        torch.autograd.backward(loss)
        for master, weight in copies:
            master.grad = None if weight.grad is None else weight.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, clip)
        optimizer.step()
        with torch.no_grad():
            for master, weight in copies:
                weight.copy_(master)
        losses.append(float(loss.detach()))
    model.train(was)
    return Finetuned(len(losses), losses)
