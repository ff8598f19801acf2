"""The woven step beside the loops that people have: by hand, Composer's and pytorch_optimizer's SAM, and the hosts.

Both sides of a figure take turns in short stretches of one process, CPU time of one thread is read, and the figure is
the median over the stretches of one side's time over the other's. Memory is the growth of the resident peak over twenty
steps in a process of its own (Linux), in multiples of the parameters' bytes.

Composer does not install beside today's torch; without its own dependencies it works: ``pip install --no-deps --target
DIR mosaicml`` and what its import asks for, then ``PYTHONPATH=DIR``. What is not installed is left out of the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

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


class Keywords(nn.Module):
    """A network as transformers' Trainer wants it: fields by name, the loss beside the logits."""

    main_input_name = "input"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = self.inner(input)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def in_transformers(data: plait.Data, model: nn.Module, steps: int, *, adapted: bool) -> float:
    """CPU seconds of ``steps`` steps in the Trainer of transformers, without its set-up."""
    import transformers

    from plait.adapters.transformers import WovenTrainer

    began = ended = 0.0

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal began, ended
            ended = time.thread_time()
            if state.global_step == 1:
                began = ended

    fields = data.train.fields  # type: ignore[attr-defined]
    rows = [{"input": x, "labels": y} for x, y in zip(fields["input"], fields["label"], strict=True)]
    network = Keywords(model)
    optimizer = sgd(network)
    kind = WovenTrainer if adapted else transformers.Trainer
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=64, max_steps=steps + 1, max_grad_norm=0.0, logging_strategy="no",
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        kind(network, arguments, train_dataset=rows, callbacks=[Clock()], optimizers=(optimizer, schedule)).train()
    return ended - began


def in_lightning(data: plait.Data, model: nn.Module, steps: int, *, adapted: bool) -> float:
    """CPU seconds of ``steps`` steps in Lightning's Trainer, without its set-up."""
    import lightning

    from plait.adapters.lightning import WovenModule

    began = ended = 0.0

    class Clock(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            nonlocal began, ended
            ended = time.thread_time()
            if trainer.global_step == 1:
                began = ended

    class Woven(WovenModule):
        def configure_optimizers(self) -> Any:
            return sgd(self.model)

    class Alone(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def configure_optimizers(self) -> Any:
            return sgd(self.model)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log_dict({"train/loss": loss, "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
            return loss

    fields = data.train.fields  # type: ignore[attr-defined]
    loader = DataLoader(TensorDataset(fields["input"], fields["label"]), 64, shuffle=True, drop_last=True)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_steps=steps + 1, accelerator="cpu", devices=1, callbacks=[Clock()], **quiet)
    trainer.fit(Woven(model) if adapted else Alone(model), loader)
    return ended - began


HOSTS = {"transformers' Trainer": in_transformers, "Lightning's Trainer": in_lightning}


def adapted_over_alone(host: Callable[..., float], turns_of: int, steps: int) -> dict[str, float]:
    """Median ratio of a host with the adapter and no plugin over the host alone, digits MLP."""
    ratios = []
    for turn in range(turns_of + 1):
        spent = {}
        for adapted in (False, True) if turn % 2 else (True, False):
            torch.manual_seed(0)
            spent[adapted] = host(*digits_mlp(), steps, adapted=adapted)
        if turn:  # the first turn warms up
            ratios.append(spent[True] / spent[False])
    quartiles = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "ratio_q1": quartiles[0], "ratio_q3": quartiles[2]}


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


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory(name: str) -> float:
    """Growth of the resident peak over the making of a side and twenty steps, in multiples of the parameters' bytes."""
    torch.manual_seed(0)
    data, model = wide()
    before = resident("VmRSS")
    advance = SIDES[name](data, model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    advance(20)
    return (resident("VmHWM") - before) / sum(p.numel() * p.element_size() for p in model.parameters())


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer stretches, for a first look")
    parser.add_argument("--memory", choices=SIDES, metavar="SIDE", help="only the memory of one side, in this process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
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
    for name, host in HOSTS.items():
        figures[f"{name} with the adapter over it alone, digits MLP"] = adapted_over_alone(host, stretches // 4, 300)
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
