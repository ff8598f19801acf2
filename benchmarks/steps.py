"""Cost of a fairsam step over an SGD step, and of chase over dense training, measured side by side in one process.

Both sides run in plait's own loop on the same data and network, in turns, CPU time of one thread; the figure is the
median over paired stretches. The limit of a fairsam step is 2.0: two passes. For chase two figures: stretches without
a mask update, and whole runs of 600 steps with all their updates (24 explorations, 10 channel removals).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine
from loop import plait_loop
from plait.data import Data, DataInfo, TensorSplit
from plait.declare.options import load_object
from plait_zoo.options import CnnOptions, VggOptions


def images(size: int, classes: int, n: int = 2560) -> Data:
    """Random grey images in two groups."""
    generator = torch.Generator().manual_seed(0)
    fields = {
        "input": torch.rand(n, 1, size, size, generator=generator),
        "label": torch.randint(classes, (n,), generator=generator),
        "group": (torch.rand(n, generator=generator) < 0.2).long(),
    }
    info = DataInfo("classification", (1, size, size), classes, 2, frozenset({*fields, "index"}))
    return Data(info, *[TensorSplit(fields) for _ in range(3)])


def cnn() -> tuple[Data, nn.Module]:
    """The card's small CNN on 32x32 images."""
    data = images(32, 2)
    model: nn.Module = load_object("plait_zoo.cnn:build", "model")(CnnOptions(), data.info)
    return data, model


def vgg() -> tuple[Data, nn.Module]:
    """The card's BN-VGG 32-32-M-64-64-M-128-128 on 14x14 images."""
    data = images(14, 10)
    model: nn.Module = load_object("plait_zoo.vgg:build", "model")(VggOptions(), data.info)
    return data, model


def turns(first: Callable[[], None], second: Callable[[], None], stretches: int) -> dict[str, float]:
    """Median ratio of the CPU time of ``second`` over ``first`` in alternating stretches."""
    ratios = []
    for turn in range(stretches + 1):
        spent = {}
        order = [("first", first), ("second", second)]
        for name, stretch in order if turn % 2 else reversed(order):
            start = time.process_time()
            stretch()
            spent[name] = time.process_time() - start
        if turn:  # the first turn warms up
            ratios.append(spent["second"] / spent["first"])
    quartiles = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "ratio_q1": quartiles[0], "ratio_q3": quartiles[2]}


def per_step(make: Callable[[], tuple[Data, nn.Module]], plugins: dict[str, Any], stretches: int, steps: int) -> Any:
    """Ratio of a step with plugins over a plain step."""
    total = (stretches + 2) * steps
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name, chosen in (("plain", {}), ("woven", plugins)):
            torch.manual_seed(0)
            data, model = make()
            _, advance = plait_loop(data, model, 64, total, Path(folder) / name, chosen)
            sides.append(lambda advance=advance: advance(steps))
        return turns(sides[0], sides[1], stretches)


def whole_run(plugins: dict[str, Any], steps: int, repeats: int) -> Any:
    """Ratio of the CPU time of whole training runs, dense and chase in turn."""
    count = 0

    def train(chosen: dict[str, Any], folder: str) -> None:
        nonlocal count
        count += 1
        torch.manual_seed(0)
        data, model = vgg()
        _, advance = plait_loop(data, model, 64, steps, Path(folder) / str(count), chosen)
        advance(steps)

    with tempfile.TemporaryDirectory() as folder:
        return turns(lambda: train({}, folder), lambda: train(plugins, folder), repeats)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer stretches, for a first look")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    stretches = 6 if quick else 20
    fair = {"fairsam": {}}
    updating = {"chase": {"exploration_interval": 25, "channel_interval": 50}}
    # between updates: a run long enough that none falls into it is simulated by a static mask of the same density
    between = {"chase": {"explore": False, "channel_sparsity": 0.0}}
    results = {
        "fairsam step over SGD step, CNN 32x32, batch 64": per_step(cnn, fair, stretches, 20),
        "fairsam step over SGD step, BN-VGG 14x14, batch 64": per_step(vgg, fair, stretches, 10),
        "chase step between updates over dense step, BN-VGG 14x14": per_step(vgg, between, stretches, 10),
        "chase whole run of 600 steps over dense run": whole_run(updating, 600, 2 if quick else 5),
    }
    print(json.dumps({"machine": machine(), "steps": results}, indent=2))


if __name__ == "__main__":
    main()
