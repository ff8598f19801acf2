"""Cost of fairprune, side by side in one process: CPU time of one thread, medians over paired stretches.

* a step of BiFP over a step of plain training, averaged over a whole schedule (dense, pruning, frozen), with the
  fairness term in both problems (goal 1.25), and the same without the fairness term;
* throughput of the network without 70 % of its channels over the dense one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import machine
from plait.data import DataInfo
from plait_fairprune.bifp import BiFP
from plait_zoo.cnn import build
from plait_zoo.options import CnnOptions

STEPS, BATCH, PAIRS = 80, 128, 5


def network() -> nn.Module:
    """The zoo's small CNN for images of 32x32."""
    torch.manual_seed(0)
    return build(CnnOptions(), DataInfo("classification", (1, 32, 32), 2, 2))


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and groups of every step, and as many for the mask."""
    generator = torch.Generator().manual_seed(0)
    label, group = torch.arange(BATCH) % 2, (torch.arange(BATCH) // 2) % 5 // 4
    return [(torch.rand(BATCH, 1, 32, 32, generator=generator), label, group) for _ in range(2 * STEPS)]


def plain(drawn: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """A training without anything of ours."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y, _ in drawn[:STEPS]:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def pruned(drawn: list[tuple[Tensor, Tensor, Tensor]], **options: Any) -> nn.Module:
    """The same with BiFP."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    _, labels, groups = drawn[0]
    bifp = BiFP(model, optimizer, labels=labels, groups=groups, total_steps=STEPS, example=drawn[0][0][:2], **options)
    for number in range(STEPS):
        bifp.step(drawn[number], drawn[STEPS + number])
    return bifp.export()


def ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """CPU time of the first over the second, the median over pairs that take turns."""
    ratios = []
    for _ in range(PAIRS + 1):
        times = []
        for action in (first, second):
            start = time.process_time()
            action()
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> None:
    """Some passes in eval mode."""
    for _ in range(20):
        model(images)


def main() -> None:
    """Print the figures as JSON."""
    torch.set_num_threads(1)
    drawn = batches()
    figures = {
        "step over plain": ratio(lambda: pruned(drawn, sparsity=0.95), lambda: plain(drawn)),
        "step over plain, strength 0": ratio(lambda: pruned(drawn, sparsity=0.95, strength=0.0), lambda: plain(drawn)),
    }
    narrow = pruned(drawn, sparsity=0.7, structure="channels").eval()
    dense = network().eval()
    for size in (1, 128):
        images = drawn[0][0][:size]
        figures[f"speed of the narrowed network, batch {size}"] = ratio(
            lambda images=images: forward(dense, images), lambda images=images: forward(narrow, images)
        )
    print(json.dumps({"machine": machine(), "fairprune": figures}, indent=2))


if __name__ == "__main__":
    main()
