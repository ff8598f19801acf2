"""The woven step beside the loops that people have: by hand, Composer's and pytorch_optimizer's SAM, and the hosts.

Both sides of a figure take turns in short stretches of one process, CPU time of one thread is read, and the figure is
the median over the stretches of one side's time over the other's. Memory is the growth of the resident peak over twenty
steps in a process of its own, in multiples of the parameters' bytes.

Composer does not install beside today's torch; without its own dependencies it works: ``pip install --no-deps --target
DIR mosaicml`` and what its import asks for, then ``PYTHONPATH=DIR``. What is not installed is left out of the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import plait
from common import machine
from loop import DECAY, LR, MOMENTUM, digits_mlp
from steps import cnn, turns

ROUNDS = 10**6
RHO = 0.05


def batches(data: plait.Data, size: int = 64) -> Iterator[dict[str, Tensor]]:
    """Endless shuffled batches out of memory, as a loop of one's own has them."""
    fields = {name: value for name, value in data.train.fields.items() if name != "index"}  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(data.train), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield {name: value.index_select(0, rows) for name, value in fields.items()}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every loop here."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, foreach=True)


def by_hand(data: plait.Data, model: nn.Module, *, per_example: bool) -> Callable[[int], None]:
    """A plain loop; with ``per_example`` it keeps the loss of each example, as a woven step does."""
    optimizer, stream = sgd(model), batches(data)

    def advance(steps: int) -> None:
        for _ in range(steps):
            batch = next(stream)
            optimizer.zero_grad(set_to_none=True)
            outputs = model(batch["input"])
            if per_example:
                loss = functional.cross_entropy(outputs, batch["label"], reduction="none").mean()
            else:
                loss = functional.cross_entropy(outputs, batch["label"])
            loss.backward()
            optimizer.step()
            if not math.isfinite(loss.item()):
                raise RuntimeError("the loss is not finite")

    return advance


def woven(data: plait.Data, model: nn.Module, plugins: dict[str, Any] | None = None) -> Callable[[int], None]:
    """The same loop around `plait.weave`."""
    stream, columns = batches(data), {"label": data.train.fields["label"]}  # type: ignore[attr-defined]
    if "group" in data.train.fields:  # type: ignore[attr-defined]
        columns["group"] = data.train.fields["group"]  # type: ignore[attr-defined]
    step = plait.weave(
        model, sgd(model), plugins=plugins or {}, total_steps=ROUNDS, example=next(batches(data)), train=columns
    ).step

    def advance(steps: int) -> None:
        for _ in range(steps):
            step(next(stream))

    return advance


def pytorch_optimizer_sam(data: plait.Data, model: nn.Module) -> Callable[[int], None]:
    """pytorch_optimizer's SAM in the loop of its documentation."""
    from pytorch_optimizer import SAM

    stream = batches(data)
    optimizer = SAM(
        model.parameters(), base_optimizer=torch.optim.SGD, rho=RHO, lr=LR, momentum=MOMENTUM, weight_decay=DECAY,
        foreach=True,
    )  # fmt: skip

    def advance(steps: int) -> None:
        for _ in range(steps):
            batch = next(stream)
            loss = functional.cross_entropy(model(batch["input"]), batch["label"])
            loss.backward()
            optimizer.first_step(zero_grad=True)
            functional.cross_entropy(model(batch["input"]), batch["label"]).backward()
            optimizer.second_step(zero_grad=True)
            loss.item()

    return advance


def composer_sam(data: plait.Data, model: nn.Module) -> Callable[[int], None]:
    """Composer's SAM in Composer's Trainer."""
    from composer import Trainer
    from composer.algorithms import SAM
    from composer.models import ComposerClassifier
    from torch.utils.data import DataLoader, TensorDataset

    fields = data.train.fields  # type: ignore[attr-defined]
    loader = DataLoader(TensorDataset(fields["input"], fields["label"]), batch_size=64, shuffle=True, drop_last=True)
    trainer = Trainer(
        model=ComposerClassifier(model, num_classes=data.info.num_classes),
        train_dataloader=loader,
        optimizers=sgd(model),
        algorithms=[SAM(rho=RHO)],
        max_duration="1ba",
        device="cpu",
        progress_bar=False,
        log_to_console=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    return lambda steps: trainer.fit(duration=f"{steps}ba")


def wide() -> tuple[plait.Data, nn.Module]:
    """A network of 6.3 million parameters, so that copies of them show in the memory."""
    fields = {"input": torch.randn(640, 1024), "label": torch.randint(10, (640,)), "group": torch.randint(2, (640,))}
    info = plait.DataInfo("classification", (1024,), 10, 2, frozenset({*fields, "index"}))
    data = plait.Data(info, *[plait.TensorSplit(fields) for _ in range(3)])
    model = nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))
    return data, model


FAIR = {"fairsam": {"weights": "none", "rho": RHO, "corruptions": []}}
SIDES: dict[str, Callable[[plait.Data, nn.Module], Callable[[int], None]]] = {
    "plain SGD by hand": lambda data, model: by_hand(data, model, per_example=False),
    "fairsam, woven": lambda data, model: woven(data, model, FAIR),
    "pytorch_optimizer's SAM": pytorch_optimizer_sam,
    "Composer's SAM in its Trainer": composer_sam,
}
"""Who takes part in the comparison of sharpness-aware steps."""


def here(name: str) -> bool:
    """Whether what a side needs is installed."""
    return "Composer" not in name or importlib.util.find_spec("composer") is not None


def compared(
    make: Callable[[], tuple[plait.Data, nn.Module]],
    first: Callable[[plait.Data, nn.Module], Callable[[int], None]],
    second: Callable[[plait.Data, nn.Module], Callable[[int], None]],
    stretches: int,
    steps: int,
) -> dict[str, float]:
    """`turns` of two sides that train the same network on the same data."""
    sides = []
    for side in (first, second):
        torch.manual_seed(0)
        sides.append(side(*make()))
    return turns(lambda: sides[0](steps), lambda: sides[1](steps), stretches)


def memory(name: str) -> float:
    """Growth of this process's resident peak over twenty steps, in multiples of the parameters' bytes."""
    torch.manual_seed(0)
    data, model = wide()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SIDES[name](data, model)(20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters())


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer stretches, for a first look")
    parser.add_argument("--memory", choices=SIDES, metavar="SIDE", help="only the memory of one side, in this process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(memory(given.memory))
        return
    stretches = 10 if given.quick else 40
    figures: dict[str, Any] = {}
    for kind, per_example in (("a loss of the whole batch", False), ("a loss of each example", True)):
        name = f"woven step without plugins over the step by hand with {kind}, digits MLP"
        figures[name] = compared(
            digits_mlp, lambda d, m, p=per_example: by_hand(d, m, per_example=p), woven, stretches, 100
        )
    plain = "plain SGD by hand"
    for name, side in SIDES.items():
        if name != plain and here(name):
            figures[f"{name} over {plain}, CNN 32x32, batch 64"] = compared(cnn, SIDES[plain], side, stretches // 2, 10)
    command = [sys.executable, __file__, "--memory"]
    peaks = {
        name: statistics.median(
            float(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.split()[-1])
            for _ in range(3)
        )
        for name in SIDES
        if here(name)
    }
    figures["memory in multiples of the parameters, 6.3 million of them, batch 64"] = peaks
    print(json.dumps({"machine": machine(), "weave": figures}, indent=2))


if __name__ == "__main__":
    main()
