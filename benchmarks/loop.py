"""Cost of plait's loop per step over a hand-written PyTorch loop doing the same work, measured side by side.

Both loops shuffle and gather batches from memory, run forward, per-example cross-entropy, backward and SGD with
momentum under a cosine schedule, read the loss and check that it is finite. They take turns in short stretches, so a
busy moment of the machine hits both, and CPU time of the one thread is read; the figure is the median over stretches
of plait's time over the hand-written loop's. ``--profile`` prints where plait's time goes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from common import machine
from plait.data import Data, DataInfo, TensorSplit
from plait.declare.recipe import Recipe
from plait.distributed.accelerator import make_accelerator
from plait.distributed.world import World
from plait.planning.plan import make_plan
from plait.storage import progress
from plait.storage.directory import RunDirectory
from plait.storage.recorder import Recorder
from plait.training.trainer import Trainer

LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


def digits_mlp() -> tuple[Data, nn.Module]:
    """The 1,797 digits of scikit-learn and a 64-256-256-10 network."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    data = Data(DataInfo("classification", (64,), 10), *[TensorSplit({"input": x, "label": y}) for _ in range(3)])
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return data, model


def synthetic_resnet18() -> tuple[Data, nn.Module]:
    """Random 3x32x32 images and torchvision's ResNet-18 with a 3x3 stem."""
    from torchvision.models import resnet18

    x, y = torch.randn(512, 3, 32, 32), torch.randint(10, (512,))
    data = Data(DataInfo("classification", (3, 32, 32), 10), *[TensorSplit({"input": x, "label": y}) for _ in range(3)])
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return data, model


def hand_written(data: Data, model: nn.Module, batch_size: int, total: int) -> Iterator[None]:
    """A plain loop: one step each time it is advanced."""
    fields = data.train.fields  # type: ignore[attr-defined]
    x, y, index = fields["input"], fields["label"], fields["index"]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * min(1.0, t / total)))
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            inputs, labels, _ = x.index_select(0, rows), y.index_select(0, rows), index.index_select(0, rows)
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(inputs), labels, reduction="none").mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            if not math.isfinite(loss.item()):
                raise RuntimeError("the loss is not finite")
            yield


def plait_loop(
    data: Data,
    model: nn.Module,
    batch_size: int,
    total: int,
    folder: Path,
    plugins: dict[str, dict[str, Any]] | None = None,
) -> tuple[Trainer, Callable[[int], None]]:
    """plait's own loop, with or without plugins, advanced by whole stretches of steps."""
    return plait_loop_on("cpu", data, model, batch_size, total, folder, plugins)


def plait_loop_on(
    device: str,
    data: Data,
    model: nn.Module,
    batch_size: int,
    total: int,
    folder: Path,
    plugins: dict[str, dict[str, Any]] | None = None,
    precision: str = "fp32",
) -> tuple[Trainer, Callable[[int], None]]:
    """`plait_loop` on a device and in a precision."""
    recipe = Recipe.parse(
        {
            "data": {"name": "benchmark:data"},
            "model": {"name": "benchmark:model"},
            "device": device,
            "precision": precision,
            "train": {"steps": total, "batch_size": batch_size, "evaluate_every": 10**6},
            "optimizer": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY},
            "checkpoint": {"every_steps": 10**6},
            "plugins": plugins or {},
        }
    )
    directory = RunDirectory(folder)
    directory.create()
    recorder = Recorder(directory, progress.Silent())
    plan, accelerator = make_plan(recipe), make_accelerator(recipe, directory.path)
    trainer = Trainer(recipe, plan.plugins, plan.composed, World(accelerator.device, accelerator), recorder)
    trainer.build(data, model)
    return trainer, lambda steps: trainer.train_until(trainer.step + steps)


def compare(
    make: Callable[[], tuple[Data, nn.Module]], batch_size: int, stretches: int, steps: int
) -> dict[str, float]:
    """Median milliseconds per step of both loops and the median ratio over paired stretches."""
    torch.manual_seed(0)
    data, mine = make()
    _, other = make()
    total = (stretches + 2) * steps
    hand = hand_written(data, other, batch_size, total)
    with tempfile.TemporaryDirectory() as folder:
        _, advance = plait_loop(data, mine, batch_size, total, Path(folder) / "run")

        def hand_stretch() -> None:
            for _ in range(steps):
                next(hand)

        times: dict[str, list[float]] = {"hand": [], "plait": []}
        for turn in range(stretches + 1):
            order = [("hand", hand_stretch), ("plait", lambda: advance(steps))]
            for name, stretch in order if turn % 2 else reversed(order):
                start = time.process_time()
                stretch()
                if turn:  # the first turn warms up
                    times[name].append((time.process_time() - start) / steps * 1e3)
    ratios = [p / h for p, h in zip(times["plait"], times["hand"], strict=True)]
    return {
        "hand_ms": statistics.median(times["hand"]),
        "plait_ms": statistics.median(times["plait"]),
        "ratio": statistics.median(ratios),
        "ratio_q1": statistics.quantiles(ratios, n=4)[0],
        "ratio_q3": statistics.quantiles(ratios, n=4)[2],
    }


def main() -> None:
    """Print both comparisons as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="cProfile 2,000 steps of the digits MLP")
    parser.add_argument("--skip-resnet", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.profile:
        import cProfile
        import pstats

        data, model = digits_mlp()
        with tempfile.TemporaryDirectory() as folder:
            _, advance = plait_loop(data, model, 64, 4000, Path(folder) / "run")
            advance(200)
            with cProfile.Profile() as profile:
                advance(2000)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    figures = {"digits MLP 64-256-256-10, batch 64": compare(digits_mlp, 64, 30, 100)}
    if not arguments.skip_resnet:
        figures["ResNet-18, 32x32, batch 16"] = compare(synthetic_resnet18, 16, 6, 2)
    print(json.dumps({"machine": machine(), "loop": figures}, indent=2))


if __name__ == "__main__":
    main()
