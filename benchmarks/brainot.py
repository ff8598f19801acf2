"""Cost of brainot on one thread, in processor time: plans, tokenizer, and a training step's share of transport.

    python benchmarks/brainot.py [--json] [--device cuda]

* the plan of a sample: a plain loop over POT, exact and entropic as here, at 25, 49 and 256 tokens, of tokens as
  before and after training;
* a batch of samples at once against one after another (entropic);
* the rank-one tokenizer against the form as it is written (V = 15,724, L = 256, H = 1024);
* a step of training on `scenes`: forward and backward, distances, plans.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import nn

from common import machine
from plait_brainot.alignment import align
from plait_brainot.commands import line, milliseconds, timed
from plait_brainot.encoder import BrainEncoder
from plait_brainot.options import BrainotOptions, EncoderOptions
from plait_brainot.tokenizer import tokens_naive, tokens_of_rank_one
from plait_brainot.transport import distances, entropic_plan, exact_plan


def batched(n: int, samples: int, device: str) -> dict[str, float]:
    """Milliseconds a sample of entropic plans, all at once and one by one."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(samples, n, 64, generator=generator)
    cost = distances(image + 0.5 * torch.randn(image.shape, generator=generator), image).to(device)
    eps = 0.005 * float(cost.median())

    def alone() -> None:
        for one in cost:
            entropic_plan(one[None], 0.8, eps)

    together = milliseconds(lambda: entropic_plan(cost, 0.8, eps), device, 3)
    return {"tokens": n, "batched": together / samples, "looped": milliseconds(alone, device, 3) / samples}


def tokenizer(device: str, voxels: int = 15_724, batch: int = 4) -> dict[str, float]:
    """Milliseconds of both forms at the published size, and how far they differ."""
    torch.manual_seed(0)
    lin1, lin2 = nn.Linear(1, 256).to(device), nn.Linear(voxels, 1024).to(device)
    x = torch.randn(batch, voxels, device=device)
    with torch.no_grad():
        difference = float((tokens_naive(x, lin1, lin2) - tokens_of_rank_one(x, lin1, lin2)).abs().max())
        naive = milliseconds(lambda: tokens_naive(x, lin1, lin2), device, 2)
        shortcut = milliseconds(lambda: tokens_of_rank_one(x, lin1, lin2), device, 3)
    return {"naive": naive, "shortcut": shortcut, "difference": difference}


def step(device: str, name: str, m: float, n: int = 25, batch: int = 48, hidden: int = 128) -> dict[str, Any]:
    """Milliseconds of a training step of the default size, of its distances, and of its plans."""
    torch.manual_seed(0)
    net = BrainEncoder({1: 600}, n, 32, EncoderOptions(hidden=hidden)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, image = torch.randn(batch, 600, device=device), torch.randn(batch, n, 32, device=device)
    options = BrainotOptions(align=name, m=m)  # type: ignore[arg-type]

    def whole() -> None:
        optimizer.zero_grad(set_to_none=True)
        align(net(x), image, options).loss.mean().backward()
        optimizer.step()

    for _ in range(20):
        whole()
    brain = net(x).detach()
    cost = distances(brain, image)
    eps = 0.005 * float(cost.median())
    solve = (lambda: entropic_plan(cost, m, eps)) if name == "entropic_partial" else (lambda: exact_plan(cost, m))
    took, plans = milliseconds(whole, device, 10), milliseconds(solve, device, 10)
    return {
        "align": name,
        "m": m,
        "tokens": n,
        "step": took,
        "distances": milliseconds(lambda: distances(brain, image), device, 10),
        "plans": plans,
        "share": 100 * plans / took,
    }


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = given.device
    figures = {
        "machine": machine(),
        "plans": [timed(n, 4, round(m * n) / n, device) for n in (25, 49, 256) for m in (0.5, 1.0)],
        "batched": [batched(n, 8, device) for n in (25, 49)],
        "tokenizer": tokenizer(device),
        "step": [step(device, "emd", 1.0), step(device, "partial", 0.8), step(device, "entropic_partial", 0.8)],
    }
    if given.json:
        print(json.dumps(figures, indent=1))
        return
    for row in figures["plans"]:
        print("plan", line(row))
    for row in figures["batched"]:
        print("entropic N={tokens}: batched {batched:.2f}, looped {looped:.2f} ms a sample".format(**row))
    print(
        "tokenizer: naive {naive:.0f}, shortcut {shortcut:.1f} ms, differ by {difference:.1e}".format(
            **figures["tokenizer"]
        )
    )
    for row in figures["step"]:
        print(
            "step {align} m={m}: {step:.1f} ms, distances {distances:.1f}, plans {plans:.1f} ({share:.0f} %)".format(
                **row
            )
        )


if __name__ == "__main__":
    main()
