"""What a condensed model is worth: perplexity, multiple choice, memory, and speed with its protocol."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from plait.training.frozen import evaluating
from plait.training.objectives import token_losses

__all__ = [
    "Speed",
    "layer_speed",
    "losses_of",
    "multiple_choice",
    "parameter_bytes",
    "perplexity",
    "retained",
    "speed_of",
]


@torch.no_grad()
def losses_of(model: nn.Module, windows: Tensor, batch: int = 64) -> Tensor:
    """Next-token loss of each window, its first token not predicted: [n, T] -> nats in sum and tokens, [n, 2]."""
    parts = torch.split(windows, batch)
    return torch.cat([token_losses(model(part).logits, {"input": part}) for part in parts]).double()


def perplexity(losses: Tensor, groups: Tensor | None = None, names: Sequence[str] = ()) -> dict[str, float]:
    """exp(nats / tokens) over all rows of [n, 2] (``""``), and of each domain by name."""
    parts = {"": losses}
    if groups is not None:
        parts |= {name: losses[groups == number] for number, name in enumerate(names) if bool((groups == number).any())}
    return {name: math.exp(float(part[:, 0].sum() / part[:, 1].sum())) for name, part in parts.items()}


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, tied ones once; buffers are not counted."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def retained(accuracy: float, original: float, chance: float = 0.0) -> float:
    """(accuracy - chance) / (original - chance); NaN (undefined) where the original is at chance."""
    return (accuracy - chance) / (original - chance) if abs(original - chance) > 1e-12 else math.nan


@torch.no_grad()
def multiple_choice(
    model: nn.Module,
    streams: Mapping[str, Tensor],
    questions: int,
    *,
    context: int = 48,
    option: int = 16,
    seed: int = 0,
    batch: int = 128,
) -> dict[str, float]:
    """Which of four continuations is the true one: % right in each domain, and over all questions (``""``); chance 25.

    The answer is the continuation with the largest summed log-likelihood; wrong ones are from random places of the
    same domain.

    Args:
        model: of transformers.
        streams: domain -> its tokens in a row, int64 [N].
        questions: of each domain, at most one for each ``option`` tokens of its stream.
        context, option: tokens before, and of each continuation.
        seed: of the questions; the same for every model.
    """
    right: dict[str, Tensor] = {}
    for number, (name, stream) in enumerate(streams.items()):
        generator = torch.Generator().manual_seed(seed * 1009 + number)
        count, last = min(questions, len(stream) // option), len(stream) - context - option
        if count < 1 or last < 1:
            continue
        starts = torch.randint(last, (count, 1), generator=generator)
        others = torch.randint(len(stream) - option, (count, 3), generator=generator)
        before = stream[starts + torch.arange(context)]
        ends = torch.cat([starts + context, others], 1)[..., None] + torch.arange(option)
        rows = torch.cat([before[:, None].expand(-1, 4, -1), stream[ends]], 2).flatten(0, 1)
        scores = []
        for part in torch.split(rows, batch):
            logits = model(part.to(_device(model))).logits[:, context - 1 : -1].float()
            cost = cross_entropy(logits.flatten(0, 1), part[:, context:].flatten().to(logits.device), reduction="none")
            scores.append(-cost.view(len(part), -1).sum(1).cpu())
        right[name] = torch.cat(scores).view(-1, 4).argmax(1) == 0
    if not right:
        return {}
    share = {name: 100 * float(hits.double().mean()) for name, hits in right.items()}
    return {"": 100 * float(torch.cat(list(right.values())).double().mean()), **share}


@dataclass(frozen=True)
class Speed:
    """Tokens a second, by process time on the CPU and by the clock elsewhere, with the experts implementation."""

    prefill: float
    decode: float
    experts: str


@torch.no_grad()
def speed_of(
    models: Sequence[Any],
    vocabulary: int,
    *,
    rows: int = 32,
    length: int = 64,
    new: int = 16,
    repeats: int = 20,
    decode: bool = True,
) -> list[Speed]:
    """Prefill of [rows, length] tokens, and greedy decoding of ``new`` more at batch 1: medians, three warm-ups."""
    device = _device(models[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, length), generator=generator).to(device)
    one = ids[:1, : max(1, length // 4)]
    settings: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(one)
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        prefill = _turns([partial(model, ids, use_cache=False) for model in models], device, repeats)
        generating = [partial(model.generate, one, **settings) for model in models]
        decoding = _turns(generating, device, max(3, repeats // 4)) if decode else [math.nan] * len(models)
    return [
        Speed(rows * length / first, new / later, model.config._experts_implementation)
        for model, first, later in zip(models, prefill, decoding, strict=True)
    ]


@torch.no_grad()
def layer_speed(blocks: Sequence[nn.Module], width: int, *, tokens: int = 512, repeats: int = 20) -> list[float]:
    """Tokens a second through single MLPs, [1, tokens, width]; the protocol of `speed_of`."""
    first = next(blocks[0].parameters())
    x = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0)).to(first)
    return [tokens / seconds for seconds in _turns([partial(block, x) for block in blocks], first.device, repeats)]


def _turns(works: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each; they take turns, so that whatever else the machine does meets all of them."""
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 3):
        for at, work in enumerate(works):
            started = _clock(device)
            work()
            if turn >= 3:
                taken[at].append(_clock(device) - started)
    return [max(median(times), 1e-9) for times in taken]


def _clock(device: torch.device) -> float:
    """Seconds: of this process on the CPU, else of the wall after the device has finished."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
