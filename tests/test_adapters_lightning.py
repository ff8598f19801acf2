"""chase and fairsam together in Lightning's own Trainer: masks, shrinking, accumulation, bf16, resuming."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import plait
from plait.declare.recipe import Component
from plait.errors import BadCheckpoint
from plait.loading import load_data
from plait.planning.discovery import pretend
from plait_chase.plugin import ChasePlugin
from plait_fairsam.plugin import FairsamPlugin

lightning = pytest.importorskip("lightning")
callbacks = importlib.import_module("lightning.pytorch.callbacks")
adapter = importlib.import_module("plait.adapters.lightning")

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [pytest.mark.usefixtures("lone_process"), pytest.mark.filterwarnings("ignore:.*")]

CHASE: dict[str, Any] = {"density": 0.3, "exploration_interval": 2, "channel_interval": 4, "timing_repeats": 0}
BOTH: dict[str, Any] = {"chase": CHASE, "fairsam": {}}
SHRINKING: dict[str, Any] = {"chase": {**CHASE, "shrink_during": True}, "fairsam": {}}
FIELDS = ("input", "label", "group")


@pytest.fixture(scope="module", autouse=True)
def _methods_only() -> Iterator[None]:
    with pretend(ChasePlugin, FairsamPlugin, distribution="plait", alone=True):
        yield


@pytest.fixture(scope="module")
def columns() -> dict[str, Tensor]:
    train: Any = load_data(Component(name="tiny-images"), 0).train
    return {name: train.fields[name] for name in FIELDS}


class Net(nn.Module):
    """A small network that can shrink, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        outputs: Tensor = self.head(self.drop(x.mean((2, 3))))
        return outputs


def net() -> Net:
    torch.manual_seed(0)
    return Net()


class Module(adapter.WovenModule):  # type: ignore[misc,name-defined]
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def on_train_epoch_end(self) -> None:
        self.log_figures(self.trainer.train_dataloader, views=["clean"])


class MasksHold(callbacks.Callback):  # type: ignore[misc,name-defined]
    """Masked weights are exactly zero after every batch."""

    def __init__(self) -> None:
        self.boundaries, self.masked = 0, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.woven is not None:
            self.boundaries += 1
            parameters = dict(pl_module.model.named_parameters())
            for name, (live, total) in pl_module.woven.trainer.masks.counts().items():
                self.masked += total - live
                assert int((parameters[name] == 0).sum()) >= total - live


def fit(
    columns: dict[str, Tensor],
    plugins: dict[str, Any],
    folder: Path | None = None,
    resume: Path | None = None,
    epochs: int = 3,
    watch: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A module trained by a quiet Trainer, which keeps every epoch's checkpoint where it has a folder."""
    keeper = [callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)] if folder else []
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=4,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        callbacks=[*keeper, *([watch] if watch else [])],
        **options,
    )
    counted = {name: columns[name] for name in ("label", "group")}
    module = Module(net(), plugins, fields=FIELDS, train=counted)
    rows = TensorDataset(*(columns[name] for name in FIELDS))
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(rows, 16, shuffle=True), ckpt_path=resume, weights_only=bool(resume) or None)
    return module, trainer


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("plugins", [BOTH, SHRINKING], ids=["masked", "shrinking"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_log_and_resume(
    tmp_path: Path, columns: dict[str, Tensor], plugins: dict[str, Any], precision: str
) -> None:
    watch = MasksHold()
    whole, trainer = fit(columns, plugins, tmp_path / "a", watch=watch, precision=precision)
    steps = trainer.global_step
    assert whole.woven.steps == steps == 3 * -(-len(columns["label"]) // 64)
    assert watch.boundaries > steps
    assert watch.masked
    logged = trainer.callback_metrics
    assert {"train/loss", "train/lr", "chase/density", "task/accuracy"} <= logged.keys()
    assert float(logged["chase/density"]) < 0.5
    for epoch in (0, 1):
        fresh, _ = fit(columns, plugins, tmp_path / "b", tmp_path / f"a/epoch={epoch}.ckpt", precision=precision)
        assert same(whole, fresh), epoch
    exported = whole.woven.export()
    assert exported(columns["input"][:4]).shape == (4, 10)


def test_the_bits_of_a_loop_by_hand(columns: dict[str, Tensor]) -> None:
    batches: list[Any] = []

    class Keep(callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch)
            noise.append(torch.get_rng_state())

    noise: list[Tensor] = []
    module, trainer = fit(columns, BOTH, watch=Keep())
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    woven = plait.weave(
        model,
        optimizer,
        plugins=BOTH,
        total_steps=trainer.global_step,
        example=batches[0],
        fields=FIELDS,
        train={name: columns[name] for name in ("label", "group")},
        accumulate=4,
        batch_size=64,
        clip_norm=1.0,
    )
    for first in range(0, len(batches), 4):
        torch.set_rng_state(noise[first + 3])
        woven.step(*batches[first : first + 4])
    assert same(module.model, model)


def test_a_finished_training_of_a_shrunk_network_is_no_fresh_one(tmp_path: Path, columns: dict[str, Tensor]) -> None:
    whole, _ = fit(columns, SHRINKING, tmp_path)
    assert whole.model.conv1.out_channels < 8
    with pytest.raises(BadCheckpoint, match="at the end of its training"):
        fit(columns, SHRINKING, tmp_path, tmp_path / "epoch=2.ckpt")
