"""Cost of fairprune, side by side in one process: CPU time of one thread, medians over paired stretches.

* a step of BiFP over a step of plain training, averaged over a whole schedule (dense, pruning, frozen), with the
  fairness term in both problems (goal 1.25), and the same without the fairness term;
* throughput of the network without 70 % of its channels over the dense one.

``--plot=FILE`` draws instead, from the figures that docs/scoreboard keeps of the claim ``strengths``: the accuracy gap
against the accuracy of each group, along the strength of the constraint.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import machine
from plait.data import DataInfo
from plait_fairprune.bifp import BiFP
from plait_zoo.cnn import build
from plait_zoo.options import CnnOptions

STEPS, BATCH, PAIRS = 160, 128, 5
SCOREBOARD = Path(__file__).parents[1] / "docs" / "scoreboard" / "scoreboard.json"
LINES = {
    "BiFP": ["u98_bip", "half_bifp", "u98_bifp", "double_bifp"],
    "fair weights only (w/o m)": ["u98_bip", "half_without_mask", "u98_without_mask", "double_without_mask"],
    "one cut, then fair (P&F)": ["magnitude_98", "half_once", "unit_once", "double_once"],
    "gradual magnitude, fair weights": ["zero_gradual", "half_gradual", "unit_gradual", "double_gradual"],
}
"""What is drawn: a line -> its arms, lambda 0, 0.5, 1 and 2."""


def network(side: int) -> nn.Module:
    """The zoo's small CNN for images of that side."""
    torch.manual_seed(0)
    return build(CnnOptions(), DataInfo("classification", (1, side, side), 2, 2))


def batches(side: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and groups of every step, and as many for the mask."""
    generator = torch.Generator().manual_seed(0)
    label, group = torch.arange(BATCH) % 2, (torch.arange(BATCH) // 2) % 5 // 4
    return [(torch.rand(BATCH, 1, side, side, generator=generator), label, group) for _ in range(2 * STEPS)]


def plain(drawn: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """A training without anything of ours."""
    model = network(drawn[0][0].shape[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y, _ in drawn[:STEPS]:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def pruned(drawn: list[tuple[Tensor, Tensor, Tensor]], **options: Any) -> nn.Module:
    """The same with BiFP."""
    model = network(drawn[0][0].shape[-1])
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


def draw(path: Path) -> None:
    """The accuracy of each group and of all against the gap, a line for each method, means over the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "fairprune"}  # small, and the same every time
    board = json.loads(SCOREBOARD.read_text(encoding="utf-8"))
    (plugin,) = (entry for entry in board["plugins"] if entry["plugin"] == "fairprune")
    (claim,) = (entry for entry in plugin["claims"] if entry["id"] == "strengths")
    arms = claim["arms"]

    def mean(arm: str, metric: str) -> float:
        return float(arms[arm]["metrics"][metric]["mean"])

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"accuracy": "all", "first": "women (the better-off group)", "second": "men"}
    for axes, (metric, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for name, of_line in LINES.items():
            points = [(mean(arm, "gap"), mean(arm, metric)) for arm in of_line]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(title=title, xlabel="accuracy gap, points", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
        axes.invert_xaxis()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the figures as JSON, or draw."""
    plots = [Path(argument.removeprefix("--plot=")) for argument in sys.argv[1:] if argument.startswith("--plot=")]
    if plots:
        return draw(plots[0])
    torch.set_num_threads(1)
    figures = {}
    for side in (32, 16):
        drawn = batches(side)
        for said, strength in (("", 1.0), (", strength 0", 0.0)):
            figures[f"step over plain, {side}x{side}{said}"] = ratio(
                lambda drawn=drawn, strength=strength: pruned(drawn, sparsity=0.95, strength=strength),
                lambda drawn=drawn: plain(drawn),
            )
    drawn = batches(32)
    narrow = pruned(drawn, sparsity=0.7, structure="channels").eval()
    dense = network(32).eval()
    for size in (1, 128):
        images = drawn[0][0][:size]
        figures[f"speed of the narrowed network, batch {size}"] = ratio(
            lambda images=images: forward(dense, images), lambda images=images: forward(narrow, images)
        )
    print(json.dumps({"machine": machine(), "fairprune": figures}, indent=2))
    return None


if __name__ == "__main__":
    main()
