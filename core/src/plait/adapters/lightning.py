"""plait's composed step in Lightning's ``Trainer``: accumulation, clipping, precision, schedules, logs and checkpoints
stay the host's, and what it cannot do rightly is refused before the first step.

```python
class Digits(WovenModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

module = Digits(network, plugins={"chase": {"density": 0.2}, "fairsam": {}}, train={"label": labels, "group": groups})
lightning.Trainer(max_epochs=5, accumulate_grad_batches=4, gradient_clip_val=1.0).fit(module, loader)
small = module.woven.export()
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.declare.results import Metric
from plait.errors import BadCheckpoint, BadInput, nearest
from plait.training.random_state import global_random_state, set_global_random_state
from plait.woven import WovenStep, weave

try:
    from lightning.pytorch import LightningModule
except ModuleNotFoundError as error:
    raise BadInput("this adapter needs Lightning: pip install 'plait-core[lightning]'.") from error

Base: Any = object  # the mixin stands before the user's own LightningModule

SAVED = "plait"
"""The key of the woven step's state in a Lightning checkpoint."""

OPTIONS = ("task", "loss", "fields", "train", "names", "prepare", "forward", "readout", "batch_size", "compile", "seed")
"""Arguments of `plait.weave` that a module may be given; the others follow from Lightning's ``Trainer``."""

OF_THE_HOST = {
    "accumulate": "accumulate_grad_batches",
    "clip_norm": "gradient_clip_val",
    "precision": "precision",
    "accelerator": "devices",
}
"""Arguments of `plait.weave` -> the name that Lightning's ``Trainer`` has for them."""

PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16"}

TAKEN_HOOKS = ("training_step", "backward", "optimizer_step")
SILENT_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")

CALLBACKS = {
    "GradientAccumulationScheduler": "changes how many batches make a step, and so the number of steps",
    "StochasticWeightAveraging": "averages weights past the masks; a plugin that averages keeps them",
    "WeightAveraging": "averages weights past the masks; a plugin that averages keeps them",
    "ModelPruning": "replaces the parameters that the plugins hold",
    "BaseFinetuning": "freezes and unfreezes parameters during training; freeze them before it",
    "LearningRateFinder": "trains on trial and rewinds without the plugins; look for the rate without plait",
    "BatchSizeFinder": "trains on trial and rewinds without the plugins; look for the size without plait",
}


class WovenMixin(Base):  # type: ignore[misc]
    """Makes a ``LightningModule`` train by plait's step; name it before that class among the bases.

    ``configure_optimizers`` is the user's, over the parameters of ``self.model``, with any schedule of Lightning's. The
    forward pass and the loss are those of `plait.weave`, so there is no ``training_step`` to write. Where an epoch ends
    amid the batches of a step, the step takes the mean over what there is; Lightning alone would divide by all.

    Logged at every step: ``train/loss``, ``train/lr``, and the plugins' terms and scalars as ``<plugin>/<name>``. A
    checkpoint of the ``Trainer`` has the whole woven state and can be loaded with ``weights_only=True``;
    ``Trainer.fit(ckpt_path=...)`` from one that was saved at the end of an epoch ends with the bits of an unbroken run.

    Args:
        model: the network; on the device of the ``Trainer`` when training begins.
        plugins: names, or name -> options.
        total_steps: the steps at whose end the plugins' schedules end; default those of this ``Trainer``. Give it where
            a resumed training shall be longer than the first.
        options: those of `plait.weave` that `OPTIONS` names. The set is judged at the first step, with its first batch.

    Attributes:
        model: the network.
        woven: the `plait.woven.WovenStep` (``export``, ``evaluate``, ``notes``), from the first step on.

    Raises:
        BadInput: an option that Lightning's ``Trainer`` sets; when training begins, what the adapter cannot do.
    """

    def __init__(
        self,
        model: nn.Module,
        plugins: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
        *,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in options:
            if name in OF_THE_HOST:
                raise BadInput(f"{name!r} is Lightning's to set: Trainer({OF_THE_HOST[name]}=...).")
            if name not in OPTIONS:
                raise BadInput(f"no option {name!r}.{nearest(name, OPTIONS)} Known: {', '.join(OPTIONS)}.")
        self.model = model
        self.woven: WovenStep | None = None
        self._total_steps, self._options = total_steps, {"plugins": plugins, **options}
        self._held: list[Any] = []
        self._saved: dict[str, Any] | None = None
        self._resized: list[str] = []

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's outputs."""
        return self.model(*inputs, **named)

    def on_fit_start(self) -> None:
        """Refuse what the adapter cannot do; a module that overrides this hears it at its first step."""
        super().on_fit_start()
        self._judge_host()

    # ---- the step --------------------------------------------------------------------------------------------------
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Hold a batch until its step; the loss is not a number before."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._held = []  # of a step that an epoch broken off left unmade; the host drops its gradients, too
        self._held.append(batch)
        return torch.full((), float("nan"), device=self.device)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing: the woven step computes the gradients, as often as the plugins need them."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The whole step of the batches held, outside the host's autocast, whose cache would keep weights of one pass
        for the next."""
        loss = optimizer_closure()
        plain = getattr(optimizer, "optimizer", optimizer)
        if self.woven is None or self.woven.optimizer is not plain:
            self.woven = self._weave(plain)
        report = self.woven.step(*self._held)
        self._held = []
        loss.copy_(report.loss)  # the host hands it to callbacks as outputs["loss"]
        self.log("train/loss", report.loss, prog_bar=True)
        self.log_dict({"train/lr": self.woven.trainer.lr, **report.terms, **self.woven.values})

    def _weave(self, optimizer: torch.optim.Optimizer) -> WovenStep:
        """Weave around the network as the host has set it up, and go on from its checkpoint where there is one."""
        trainer = self.trainer
        self._judge_host()
        saved = self._saved if trainer.ckpt_path else None
        if trainer.ckpt_path and saved is None:
            raise BadCheckpoint(
                f"{trainer.ckpt_path} has no state of plait's step: it was saved by another module, or by one that "
                "overrides on_save_checkpoint or on_load_checkpoint without super(). To begin from its weights alone, "
                "load them into the network and fit without ckpt_path."
            )
        steps = self._total_steps or self._steps_of_host(resumed=saved is not None)
        options = {"batch_size": sum(map(_rows, self._held)) or None, **self._options}
        if saved is not None:
            train = saved["recipe"]["train"]
            options["batch_size"] = train["batch_size"]
            if train["steps"] != steps:
                raise BadCheckpoint(
                    f"the plugins of {trainer.ckpt_path} plan for {train['steps']} steps, this Trainer for {steps}; "
                    f"give total_steps={train['steps']} to go on with their schedules as they began."
                )
        before, groups = global_random_state(self.device), len(optimizer.param_groups)
        woven = weave(
            self.model,
            optimizer,
            total_steps=steps,
            example=self._held[0],
            accumulate=trainer.accumulate_grad_batches,
            clip_norm=trainer.gradient_clip_val or None,
            precision=PRECISIONS[str(trainer.precision)],
            **options,
        )
        if trainer.lr_scheduler_configs and len(optimizer.param_groups) != groups:
            raise BadInput(
                "a plugin gives the optimizer parameter groups of their own, of which the schedule made in "
                "configure_optimizers does not know; train without a schedule, or with plait.run."
            )
        if saved is not None:
            woven.load_state_dict(saved)
            self._saved = None
        if saved is None or saved["epoch_ended"]:  # else the host has drawn for an epoch that had begun already
            set_global_random_state(before, self.device)
        return woven

    def _steps_of_host(self, resumed: bool) -> int:
        """How many steps this ``Trainer`` makes, those before its checkpoint included.

        Raises:
            BadInput: it knows no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise BadInput("the plugins' schedules need an end: Trainer(max_steps=...), or max_epochs and sized data.")
        return int(steps) - (0 if resumed else self.trainer.global_step)

    def _judge_host(self) -> None:
        """Refuse what the host would do past the composed step, or leave out without a word.

        Raises:
            BadInput: with the reason and what to do.
        """
        trainer: Any = self.trainer
        if not self.automatic_optimization:
            raise BadInput("plait's step is Lightning's automatic one; leave automatic_optimization at True.")
        strategy = type(trainer.strategy)
        if trainer.world_size > 1 or all(kind.__name__ != "SingleDeviceStrategy" for kind in strategy.__mro__):
            raise BadInput(
                f"plait trains in Lightning on one device, not by {strategy.__name__} on {trainer.world_size}: give "
                "Trainer(devices=1), or train on several with plait.run or plait.weave(accelerator=...)."
            )
        if str(trainer.precision) not in PRECISIONS:
            raise BadInput(f"precision {trainer.precision!r} is not among plait's: {', '.join(PRECISIONS)}.")
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm not in (None, "norm"):
            raise BadInput("plait clips by the norm of the gradient; drop gradient_clip_algorithm='value'.")
        for callback in trainer.callbacks:
            for kind in type(callback).__mro__:
                if kind.__name__ in CALLBACKS:
                    raise BadInput(f"the callback {kind.__name__} {CALLBACKS[kind.__name__]}. Leave it out.")
        for hook in TAKEN_HOOKS:
            if _overrides(self, hook, WovenMixin):
                raise BadInput(
                    f"{type(self).__name__}.{hook} is overridden or compiled, and plait's step stands in its place. "
                    "Change batches in on_after_batch_transfer, give loss=... or forward=... for another loss or pass, "
                    "and compile=True to compile."
                )
        for hook in (*SILENT_HOOKS, "configure_gradient_clipping"):
            for owner in (self, *trainer.callbacks):
                host = next(k for k in type(owner).__mro__ if k.__name__ in ("LightningModule", "Callback"))
                if hasattr(host, hook) and _overrides(owner, hook, host):
                    raise BadInput(
                        f"{type(owner).__name__}.{hook} would see no gradients: the step computes and applies them in "
                        "one. Look at them through optimizer.register_step_pre_hook in configure_optimizers."
                    )

    # ---- evaluation and checkpoints ------------------------------------------------------------------------------
    def log_figures(self, batches: Iterable[Any], views: Sequence[str] | None = None) -> None:
        """Log the plugins' figures on these batches, e.g. in ``on_train_epoch_end``; nothing before the first step.

        Args:
            batches: the whole set in batches, as of `plait.woven.WovenStep.evaluate`.
            views: as there.
        """
        if self.woven is not None:
            before = global_random_state(self.device)
            figures = self.woven.evaluate(batches, views=views)
            set_global_random_state(before, self.device)  # a look does not change the training
            self.log_dict({name: each.value for name, each in figures.items() if isinstance(each, Metric)})

    def on_fit_end(self) -> None:
        """Refuse to end with weights that only a first step would have put back."""
        super().on_fit_end()
        if self.woven is None and self._resized:
            raise BadCheckpoint(
                f"{self.trainer.ckpt_path} is at the end of its training, and its network was shrunk; no step was made "
                "that would have shrunk this one, so it has not those weights. Train a step more, with total_steps=..."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the woven state into the host's checkpoint, beside the host's own; a file of weights alone stays so."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" not in checkpoint:
            return
        if self.woven is not None:
            ended = bool(self.trainer.is_last_batch)
            checkpoint[SAVED] = {**self.woven.state_dict(), "epoch_ended": ended}
        elif self._saved is not None:
            checkpoint[SAVED] = self._saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the woven state; the first step goes on from it, weights and optimizer included."""
        super().on_load_checkpoint(checkpoint)
        trainer: Any = getattr(self, "_trainer", None)
        if trainer is None or trainer.state.fn != "fit":
            return
        self.woven, self._saved = None, checkpoint.get(SAVED)
        if self._saved is None:
            return
        checkpoint["optimizer_states"] = []  # of tensors that a plugin may have to shrink first
        now, saved = self.state_dict(), checkpoint["state_dict"]
        self._resized = [name for name, tensor in saved.items() if name in now and now[name].shape != tensor.shape]
        saved |= {name: now[name] for name in self._resized}
        # before the host begins the epoch, whose order it may draw
        set_global_random_state(self._saved["random"], trainer.strategy.root_device)


class WovenModule(WovenMixin, LightningModule):  # type: ignore[misc]
    """A ``LightningModule`` around a plain network, trained by plait's step; see `WovenMixin`.

    Subclass it with ``configure_optimizers`` and, where there is validation, ``validation_step``.
    """


def _overrides(owner: Any, hook: str, base: type) -> bool:
    return getattr(getattr(owner, hook), "__func__", None) is not getattr(base, hook)


def _rows(batch: Any) -> int:
    """How many examples a mapping or tuple of tensors has; 0 where it does not show it."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)
