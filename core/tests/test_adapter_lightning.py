"""plait's step in Lightning's own Trainer, against the Trainer without it and against a loop by hand."""

from __future__ import annotations

import builtins
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import plait
from plait import BadInput, Metric, Ownership, Plugin, hookimpl
from plait.errors import BadCheckpoint
from plait.planning.discovery import pretend

lightning = pytest.importorskip("lightning")
callbacks = importlib.import_module("lightning.pytorch.callbacks")
adapter = importlib.import_module("plait.adapters.lightning")

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.usefixtures("lone_process"),
    pytest.mark.filterwarnings("ignore:.*"),
    pytest.mark.filterwarnings("error:.*lr_scheduler.step.*"),
]

ROWS, MICRO, EPOCHS = 72, 8, 3  # 9 batches an epoch: with 4 in a step the last step of an epoch has one
PLUGINS: dict[str, Any] = {"sharp": {}}


class SharpPlugin(Plugin):
    """Sharpness-aware and masked: a second pass at perturbed weights, half of a weight held at zero."""

    name = "sharp"
    contract = 1

    def ownership(self) -> tuple[Ownership, ...]:
        return (Ownership("parameters", "0.weight"),)

    def setup(self, trainer: Any) -> None:
        self.mask = trainer.masks.own("sharp", ["0.weight"])["0.weight"]
        self.mask[::2] = 0
        trainer.masks.changed()
        self.seen = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    @hookimpl
    def loss_terms(self, trainer: Any) -> dict[str, Tensor]:
        return {"decay": 1e-2 * sum(p.square().sum() for p in trainer.model.parameters())}

    @hookimpl
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        report = trainer.gradients(batch)
        self.seen += float(report.loss)
        places = [p for p in trainer.parameters if p.grad is not None]
        moves = [0.5 * p.grad / torch.stack([q.grad.norm() for q in places]).norm() for p in places]
        with torch.no_grad():
            torch._foreach_add_(places, moves)
        trainer.gradients(batch, freeze_statistics=True)
        with torch.no_grad():
            torch._foreach_sub_(places, moves)
        trainer.apply_gradients()
        trainer.log({"sharp/seen": self.seen})
        return report

    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        self.mask.copy_(self.mask.roll(1, 0))
        trainer.masks.changed()

    @hookimpl
    def evaluate(self, predictions: Any) -> dict[str, Metric]:
        return {"rows": Metric(float(len(predictions["clean"].fields["index"])), "", "neither")}


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    with pretend(SharpPlugin, alone=True):
        yield


def network(dropout: float = 0.3, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10), nn.BatchNorm1d(10) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(10, 3))


def loader(batch_size: int = MICRO, shuffle: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(ROWS, 6, generator=generator), torch.randint(3, (ROWS,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=shuffle)


def optimizer_of(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)


class Configured:
    model: nn.Module
    trainer: Any

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_of(self.model, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", functional.cross_entropy(self(batch[0]), batch[1]))  # type: ignore[attr-defined,operator]


class Woven(Configured, adapter.WovenModule):  # type: ignore[misc,name-defined]
    pass


class Constant(Woven):
    """Without a schedule, and without a look at the data before the host has put them back to their place."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.model.parameters(), lr=0.01)


class Unadapted(Configured, lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.model(batch[0]), batch[1])


def host(path: Path | None = None, epochs: int = EPOCHS, keep: bool = False, **options: Any) -> Any:
    """A quiet Trainer that keeps a checkpoint of every epoch where it has a folder."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    keeper = [callbacks.ModelCheckpoint(dirpath=path, filename="{epoch}", save_top_k=-1)] if path else []
    own = [*options.pop("callbacks", []), *keeper]
    checkpoints: dict[str, Any] = {"enable_checkpointing": keep or path is not None}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=own, **quiet, **checkpoints, **options)


def fit(module: Any, trainer: Any, batches: DataLoader[Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(7)  # order and dropout
    trainer.fit(module, batches or loader(), **options)
    return module


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "norm"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.3},
    ],
)
def test_without_plugins_the_bits_of_the_host_alone(options: dict[str, Any]) -> None:
    validation = loader(shuffle=False)
    alone = fit(Unadapted(network()), host(**options), val_dataloaders=validation)
    woven = fit(Woven(network()), host(**options), val_dataloaders=validation)
    assert same(alone, woven)
    assert not same(alone.model, network())


@pytest.mark.parametrize(("precision", "kept"), [("32-true", "fp32"), ("bf16-mixed", "bf16")])
def test_the_bits_of_a_loop_by_hand(precision: str, kept: str) -> None:
    """In bf16 the host's autocast around both passes would give the second the weights of the first."""
    options: dict[str, Any] = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "precision": precision}
    module = fit(Woven(network(), PLUGINS), host(**options), loader(shuffle=False))
    steps = 3 * EPOCHS
    model, batches = network(), [*loader(shuffle=False)]
    optimizer, schedule = optimizer_of(model, steps)
    given: dict[str, Any] = {"plugins": PLUGINS, "example": batches[0], "batch_size": 4 * MICRO}
    woven = plait.weave(model, optimizer, total_steps=steps, accumulate=4, clip_norm=0.5, precision=kept, **given)
    torch.manual_seed(7)
    for _ in range(EPOCHS):
        iter(loader())  # the host's iterator draws a seed for workers
        for group in (batches[:4], batches[4:8], batches[8:]):
            woven.step(*group)
            schedule.step()
    assert module.woven.steps == woven.steps == steps
    assert same(module.model, model)


def test_accumulation_is_one_large_batch_in_both_passes() -> None:
    plain: dict[str, Any] = {"dropout": 0.0, "norm": False}
    large = fit(Woven(network(**plain), PLUGINS), host(), loader(4 * MICRO, shuffle=False))
    parts = fit(Woven(network(**plain), PLUGINS), host(accumulate_grad_batches=4), loader(shuffle=False))
    assert parts.woven.steps == large.woven.steps == 3 * EPOCHS
    for x, y in zip(large.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4, "precision": "bf16-mixed"}])
@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_from_the_hosts_checkpoint_with_the_bits_of_the_unbroken(
    tmp_path: Path, epoch: int, options: dict[str, Any]
) -> None:
    validation = {"val_dataloaders": loader(shuffle=False)}
    unbroken = fit(Woven(network(), PLUGINS), host(tmp_path / "a", **options), **validation)
    torch.rand(3)
    fresh, again = Woven(network(), PLUGINS), host(tmp_path / "b", **options)
    again.fit(fresh, loader(), ckpt_path=tmp_path / f"a/epoch={epoch}.ckpt", weights_only=True, **validation)
    assert again.global_step == unbroken.woven.steps == fresh.woven.steps
    assert same(unbroken, fresh)
    assert fresh.woven.trainer.plugins["sharp"].seen == unbroken.woven.trainer.plugins["sharp"].seen


def test_broken_off_by_a_shorter_trainer_and_taken_up(tmp_path: Path) -> None:
    whole = fit(Constant(network(), PLUGINS, total_steps=36), host(epochs=4))
    first = host(epochs=2)
    fit(Constant(network(), PLUGINS, total_steps=36), first)
    first.save_checkpoint(tmp_path / "x.ckpt")
    second = Constant(network(), PLUGINS, total_steps=36)
    host(epochs=4).fit(second, loader(), ckpt_path=tmp_path / "x.ckpt")
    assert second.woven.steps == 36
    assert same(whole, second)
    with pytest.raises(BadCheckpoint, match=r"plan for 36 steps, this Trainer for 27; give total_steps=36"):
        host(epochs=3).fit(Constant(network(), PLUGINS), loader(), ckpt_path=tmp_path / "x.ckpt")


class Resumable(DataLoader[Any]):
    """Batches in order that know their place, as of torchdata's StatefulDataLoader."""

    place = 0

    def __iter__(self) -> Any:
        start, self.place = self.place % len(self), self.place % len(self)
        for batch in [*super().__iter__()][start:]:
            self.place += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    keeper = callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=5)
    rows = loader().dataset
    unbroken = fit(Constant(network(), PLUGINS), host(callbacks=[keeper], keep=True), Resumable(rows, MICRO))
    fresh = Constant(network(), PLUGINS)
    host().fit(fresh, Resumable(rows, MICRO), ckpt_path=tmp_path / "step=15.ckpt")
    assert fresh.woven.steps == 27
    assert same(unbroken, fresh)


def test_a_checkpoint_of_weights_alone_or_of_another_module(tmp_path: Path) -> None:
    trainer = host(epochs=1)
    fit(Woven(network(), PLUGINS), trainer)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "plait" not in torch.load(tmp_path / "weights.ckpt", weights_only=True)
    alone = host(epochs=1)
    fit(Unadapted(network()), alone)
    alone.save_checkpoint(tmp_path / "alone.ckpt")
    with pytest.raises(BadCheckpoint, match=r"alone.ckpt has no state of plait's step"):
        host(epochs=2).fit(Woven(network(), PLUGINS), loader(), ckpt_path=tmp_path / "alone.ckpt")


def test_a_second_fit_begins_anew() -> None:
    module = Woven(network(), PLUGINS)
    fit(module, host(epochs=1))
    before = module.woven
    fit(module, host(epochs=1))
    assert module.woven is not before
    assert module.woven.steps == 9


class Watch(callbacks.Callback):  # type: ignore[misc,name-defined]
    """Masks at every step boundary, and what the host says of each."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.keys: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        if pl_module.woven is None:
            return
        weight, mask = pl_module.model[0].weight, pl_module.woven.trainer.plugins["sharp"].mask
        assert int(mask.sum()) == mask.numel() // 2
        assert not weight[mask == 0].any()
        self.rates.append(float(trainer.callback_metrics["train/lr"]))
        self.keys |= trainer.callback_metrics.keys()


def test_masks_log_and_schedule_at_every_step() -> None:
    watch = Watch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(lr_scheduler|training_step).*")
        module = fit(Woven(network(), PLUGINS), host(callbacks=[watch], accumulate_grad_batches=3))
    assert watch.keys == {"train/loss", "train/lr", "sharp/decay", "sharp/seen"}
    rates = list(dict.fromkeys(watch.rates))
    assert rates == pytest.approx([0.1 * (1 - 0.9 * step / 9) for step in range(9)])
    known = [loss for loss in watch.losses if loss == loss]
    assert len(watch.losses) == 27
    assert sum(known) == pytest.approx(module.woven.trainer.plugins["sharp"].seen)


def test_a_schedule_that_watches_the_validation() -> None:
    class Plateau:
        model: nn.Module

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)
            return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "validation"}

    kinds: list[Any] = [type("Watching", (Plateau, kind), {}) for kind in (Unadapted, Woven)]
    alone, woven = (fit(kind(network()), host(), val_dataloaders=loader(shuffle=False)) for kind in kinds)
    assert woven.woven.trainer.lr < 0.1
    assert same(alone, woven)


def test_figures_are_logged_and_change_nothing() -> None:
    class Looking(Woven):
        def on_train_epoch_end(self) -> None:
            self.log_figures(loader())

    trainer = host()
    looking = fit(Looking(network(), PLUGINS), trainer)
    assert trainer.callback_metrics["sharp/rows"] == ROWS
    assert "task/accuracy" in trainer.callback_metrics
    assert same(looking.model, fit(Woven(network(), PLUGINS), host()).model)


def test_an_epoch_broken_off_in_the_middle_of_a_step() -> None:
    class Short(Woven):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 6 else None

    module = fit(Short(network(), total_steps=9), host(accumulate_grad_batches=4))
    assert module.woven.steps == EPOCHS


class TestRefused:
    def refused(self, match: str, module: Any = None, **options: Any) -> None:
        module = module or Woven(network(), PLUGINS)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with pytest.raises(BadInput, match=match):
            fit(module, host(**options))
        assert module.woven is None
        assert all(torch.equal(before[name].to(t.dtype), t) for name, t in module.state_dict().items())

    def test_what_the_host_has_under_another_name(self) -> None:
        with pytest.raises(BadInput, match=r"'clip_norm' is Lightning's to set: Trainer\(gradient_clip_val"):
            Woven(network(), clip_norm=1.0)
        with pytest.raises(BadInput, match=r"no option 'fieds'\. Did you mean 'fields'"):
            Woven(network(), fieds=("input", "label"))

    def test_precision_and_clipping(self) -> None:
        self.refused("precision 'bf16-true'", precision="bf16-true")
        self.refused("clips by the norm", gradient_clip_val=1.0, gradient_clip_algorithm="value")

    def test_another_strategy(self) -> None:
        self.refused("on one device, not by DDPStrategy on 1", strategy="ddp", devices=1)

    def test_no_end(self) -> None:
        self.refused("need an end", epochs=-1, max_time="00:00:01:00")

    def test_callbacks_past_the_step(self) -> None:
        self.refused("StochasticWeightAveraging averages", callbacks=[callbacks.StochasticWeightAveraging(0.01)])
        self.refused("WeightAveraging averages", callbacks=[callbacks.EMAWeightAveraging()])
        self.refused("changes how many batches", callbacks=[callbacks.GradientAccumulationScheduler({1: 2})])

    @pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping"])
    def test_hooks_that_would_see_no_gradients(self, hook: str) -> None:
        def look(*args: Any, **kwargs: Any) -> None:
            """Nothing."""

        kind = type("Looking", (Woven,), {hook: look})
        self.refused(f"Looking.{hook} would see no gradients", kind(network(), PLUGINS))
        if hook.startswith("on_"):
            self.refused(f"LambdaCallback.{hook}", callbacks=[callbacks.LambdaCallback(**{hook: look})])

    @pytest.mark.parametrize("hook", ["training_step", "optimizer_step"])
    def test_steps_of_the_users_own(self, hook: str) -> None:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(super(kind, self), hook)(*args, **kwargs)

        kind = type("Own", (Woven,), {hook: step})
        self.refused(f"Own.{hook} is overridden", kind(network(), PLUGINS))

    def test_manual_optimization(self) -> None:
        module = Woven(network(), PLUGINS)
        module.automatic_optimization = False
        self.refused("leave automatic_optimization", module)

    def test_compiled(self) -> None:
        with pytest.raises(BadInput, match="training_step is overridden or compiled"):
            fit(torch.compile(Woven(network(), PLUGINS)), host())

    def test_a_hook_without_super_hears_it_at_the_first_step(self) -> None:
        class Silent(Woven):
            def on_fit_start(self) -> None:
                """Nothing."""

        self.refused("clips by the norm", Silent(network()), gradient_clip_val=1.0, gradient_clip_algorithm="value")

    def test_parameters_outside_the_network(self) -> None:
        class More(Woven):
            def __init__(self) -> None:
                super().__init__(network(), PLUGINS)
                self.scale = nn.Parameter(torch.ones(()))

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        self.refused("1 parameters that are not of this model", More())


def test_the_mixin_for_a_base_class_of_ones_own() -> None:
    class House(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.started = 0

        def on_train_start(self) -> None:
            self.started += 1

    class Mixed(Configured, adapter.WovenMixin, House):  # type: ignore[misc,name-defined]
        """Nothing of its own."""

    mixed: Any = Mixed
    module = fit(mixed(network(), PLUGINS), host())
    assert module.started == 1
    assert same(module.model, fit(Woven(network(), PLUGINS), host()).model)


def test_without_lightning_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("lightning", "pytorch_lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "plait.adapters.lightning")
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(BadInput, match=r"^this adapter needs Lightning: pip install 'plait-core\[lightning\]'.$"):
        importlib.import_module("plait.adapters.lightning")
