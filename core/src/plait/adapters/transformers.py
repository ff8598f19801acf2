"""plait's step inside the `Trainer` of transformers, which keeps the loop, the data, the schedule of the learning rate,
the log and the checkpoints.

    trainer = WovenTrainer(model, args, train_dataset=data, plugins={"chase": {"density": 0.2}, "fairsam": {}},
                           train={"group": groups, "label": labels})
    trainer.train()                       # or train(resume_from_checkpoint=True)
    small = trainer.woven.export()

All micro-batches of an optimizer step go through `plait.weave`'s step at the last of them, clipping included; what the
host does with gradients and optimizer afterwards has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset

from plait.data.batches import Parts
from plait.declare.recipe import assemble
from plait.errors import BadCheckpoint, BadInput, Refusal, Refused, RunFailed
from plait.planning.plan import make_plan
from plait.storage import checkpoints
from plait.training.frozen import evaluating, frozen_buffers
from plait.training.random_state import global_random_state, set_global_random_state
from plait.woven import WovenStep, needed_fields, weave

try:
    import transformers
    from transformers.models.auto import modeling_auto
except ModuleNotFoundError as error:
    raise BadInput("this adapter needs transformers: pip install 'plait-core[transformers]'.") from error

FILE = "plait.safetensors"
"""In every checkpoint of the host: what `WovenStep.save` writes."""

OPTIONS = ("example", "task", "loss", "fields", "train", "names", "prepare", "forward", "readout", "compile", "seed")
"""Arguments of `plait.weave` that the caller may set; the others follow from the host's."""

FEW = 8
"""Examples that plugins may look at before training, where the host's batches are smaller."""

TASKS = {"regression": "regression", "multi_label_classification": "multilabel"}


def token_loss(outputs: Tensor, batch: Any, *, shift: bool = True) -> Tensor:
    """Cross-entropy over tokens, as the loss of each example: the mean over examples is the host's mean over tokens.

    Args:
        outputs: logits [B, T, V].
        batch: with ``label`` [B, T], where -100 does not count, and, from `WovenTrainer`, ``tokens`` [B]: how many
            tokens of the whole step the host counts, per example (by default of this batch).
        shift: token t predicts label t + 1 (causal language models); else label t.

    Returns:
        [B].
    """
    labels = batch["label"]
    if shift:
        outputs, labels = outputs[:, :-1], labels[:, 1:]
    each = functional.cross_entropy(outputs.movedim(2, 1).float(), labels, reduction="none").sum(1)
    tokens = batch["tokens"] if "tokens" in batch else (labels != -100).sum() / len(labels)
    scaled: Tensor = each / tokens
    return scaled


PROCESSES = "Train on one device, or on several by torchrun (DDP)."

LOSSES = {
    "ForCausalLM": token_loss,
    "ForMaskedLM": partial(token_loss, shift=False),
    "ForTokenClassification": partial(token_loss, shift=False),
}
"""By the ``loss_type`` of a model of transformers, where it is not the loss of the task."""


class SteppedOptimizer(AcceleratedOptimizer):  # type: ignore[misc]
    """The optimizer as the host and its schedule see it; the woven step has made the step already."""

    _is_accelerate_prepared = True

    def step(self, closure: Any = None) -> None:
        """Nothing."""


class WovenTrainer(transformers.Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose optimizer steps are plait's; with a Trainer of your own,
    ``class Mine(WovenTrainer, MyTrainer)``.

    The loss is the mean over the examples of a step (over tokens for models of tokens), by ``task``, which is read off
    the model's config, or by ``loss``. It must agree with the host's own on the first examples. In micro-batches it is
    still the mean over the whole step, where the host sums theirs for models that take ``num_items_in_batch`` and do
    not divide by it (BERT's classifiers).

    Args:
        args: of the host, followed by its keyword arguments.
        plugins: names, or name -> options.
        options: of the host, and of `plait.weave`: ``task``, ``loss``, ``fields``, ``train``, ``names``, ``prepare``,
            ``forward``, ``readout``, ``compile``, ``seed`` (default the host's) and ``example`` (default the first rows
            of the training set). Columns that a plugin needs, or that ``fields`` names, stay in the batches.

    Attributes:
        woven: the `WovenStep` of the latest ``train()``, None before; ``woven.evaluate(self.get_eval_dataloader())``
            gives the plugins' figures.

    Raises:
        BadInput, Refused: by ``train()``, before the first step: plugins, batches, or settings of the host with which
            the step would not be what it says.
    """

    optimizer: Any
    _signature_columns: Any

    def __init__(
        self, *args: Any, plugins: Sequence[str] | Mapping[str, Mapping[str, Any]] = (), **options: Any
    ) -> None:
        self.woven: WovenStep | None = None
        self._plugins = plugins
        self._options = {name: options.pop(name) for name in OPTIONS if name in options}
        self._micro_batches: list[Any] = []
        self._terms: dict[str, Tensor] = {}
        self._own_columns: list[str] = []
        super().__init__(*args, **options)

    # ---- weaving ------------------------------------------------------------------------------------------------
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Weave before the host builds its schedule, and let it prepare the rest."""
        names = tuple(self._plugins)
        if refusals := [Refusal("weave", names, f"{message}.", fix) for message, fix in self._unfit()]:
            raise Refused(refusals)
        _unpatch(self.model)
        self.create_optimizer()
        given = self.optimizer
        optimizer = given.optimizer if isinstance(given, AcceleratedOptimizer) else given
        groups, processes = len(optimizer.param_groups), self.accelerator.num_processes
        example = self._options.get("example")
        if example is None:
            example = self._first_rows(train_dataloader)
        self.woven = weave(
            self.model,
            optimizer,
            plugins=self._plugins,
            total_steps=max_steps,
            accumulate=self.args.gradient_accumulation_steps,
            batch_size=self.get_total_train_batch_size(self.args),
            clip_norm=self.args.max_grad_norm if self.args.max_grad_norm > 0 else None,
            precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            accelerator=self.accelerator if processes > 1 else None,
            **{**self._defaults(), **self._options, "example": example},
        )
        if self.lr_scheduler is not None and not self._created_lr_scheduler and len(optimizer.param_groups) != groups:
            raise BadInput(
                "a plugin gave some parameters settings of their own, which the scheduler in optimizers=(...) does not "
                "know; leave the scheduler to the Trainer (lr_scheduler_type)."
            )
        self._compare_losses(self.woven, example)
        self.optimizer = SteppedOptimizer(optimizer, device_placement=False)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        _unpatch(self.model)
        return prepared

    def _defaults(self) -> dict[str, Any]:
        """What the model says about the arguments of `weave` that the caller left out."""
        config = getattr(self.model, "config", None)
        task = TASKS.get(getattr(config, "problem_type", None) or "", "classification")
        causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # some of them say no loss_type
        kind = getattr(self.model, "loss_type", None) or ("ForCausalLM" if type(self.model).__name__ in causal else "")
        return {"seed": self.args.seed, "task": task, "loss": LOSSES.get(kind)}

    def _first_rows(self, loader: Any) -> Any:
        """The first rows of the training set as a batch; the random generators stay as they are."""
        if isinstance(loader.dataset, IterableDataset):
            raise BadInput("the training set has no rows to look at: give WovenTrainer(example=a batch).")
        state = global_random_state(self.args.device)
        try:
            rows = range(min(len(loader.dataset), max(self._train_batch_size, FEW)))
            return loader.collate_fn([loader.dataset[row] for row in rows])
        finally:
            set_global_random_state(state, self.args.device)

    def _compare_losses(self, woven: WovenStep, example: Any) -> None:
        """Refuse to train another loss than the host's own, unless the caller or a plugin replaced it."""
        owner = woven.trainer.composed["objective"].owner()
        if self._options.get("loss") is not None or (owner is not None and owner.plugin in woven.plan.plugins):
            return
        inputs, model = self._prepare_inputs(example), self.model
        with torch.no_grad(), evaluating(model), frozen_buffers(model), woven.trainer.forward.autocast():
            try:
                counted = self._get_num_items_in_batch([inputs], self.args.device)
                own = self.compute_loss(model, dict(inputs), num_items_in_batch=counted)
            except Exception:  # a model without a loss of its own
                return
            batch = self._read([inputs], counted)[0]
            ours = woven.trainer.objective(woven.trainer.call(model, batch), batch).mean()
        if isinstance(own, Tensor) and own.ndim == 0 and not torch.isclose(own.float(), ours.float(), rtol=1e-4):
            raise BadInput(
                f"on the first examples the Trainer's own loss is {own:.5g}, the one that plait would train {ours:.5g} "
                f"(task {woven.trainer.info.task!r}). Give the right task=..., or loss=loss(outputs, batch) -> [B], "
                "the loss of each example."
            )

    def _unfit(self) -> Iterator[tuple[str, str]]:
        """Settings of the host that the woven step cannot follow: what is wrong, and what to do."""
        args, optim = self.args, str(getattr(self.args.optim, "value", self.args.optim))
        precision = self.accelerator.mixed_precision
        own_loss = "Write it as loss=loss(outputs, batch) -> [B], the loss of each example."
        step, late = super().training_step, transformers.TrainerCallback.on_pre_optimizer_step
        if self.is_deepspeed_enabled:
            yield "DeepSpeed steps its own optimizer and spreads the weights", PROCESSES
        if self.is_fsdp_enabled or args.fsdp or args.parallelism_config is not None:
            yield "FSDP, tensor or context parallelism spreads weights or rows, and masks need the whole", PROCESSES
        if args.n_gpu > 1:
            yield "several GPUs in one process (DataParallel) split every batch", PROCESSES
        if precision not in ("no", "bf16"):
            yield f"{precision} scales the loss and skips steps", "Use bf16=True or full precision."
        if args.torch_compile:
            yield "torch_compile compiles before plugins trace the model", "Give WovenTrainer(compile=True) instead."
        if any(word in optim for word in ("lomo", "layerwise", "schedule_free", "8bit", "4bit")):
            what = "steps in the backward pass, or keeps codes or averages that a mask cannot hold at zero"
            yield f"optim={optim!r} {what}", "Take another, adamw_torch say."
        if args.label_smoothing_factor != 0:
            yield "label_smoothing_factor would not act", own_loss
        if self.compute_loss_func is not None:
            yield "compute_loss_func gives one number for all examples", own_loss
        if step.__func__ is not transformers.Trainer.training_step:
            yield f"{step.__qualname__} would not be called", "Write it as the optimizer_step of a plugin."
        if args.auto_find_batch_size:
            yield "auto_find_batch_size goes on after a step that broke off", "Set per_device_train_batch_size."
        if args.load_best_model_at_end and args.save_only_model:
            yield "load_best_model_at_end needs the masks, which save_only_model leaves out", "Drop one of them."
        for callback in self.callback_handler.callbacks:
            if type(callback).on_pre_optimizer_step is not late:
                name = f"{type(callback).__name__}.on_pre_optimizer_step"
                yield f"{name} would come after the step, which clips and updates at once", "Leave the callback out."

    # ---- one step -----------------------------------------------------------------------------------------------
    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """As the host's; the micro-batches of the step are kept for it."""
        if self.woven is not None and self.woven.steps != self.state.global_step:
            raise RunFailed(
                f"the Trainer counts {self.state.global_step} steps and plait made {self.woven.steps}: something in "
                f"front of WovenTrainer.training_step does not call it ({type(self).training_step.__qualname__})."
            )
        self._micro_batches, counted = super().get_batch_samples(*args, **options)
        return self._micro_batches, counted

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The whole woven step at the last micro-batch, and nothing before.

        Returns:
            The loss of the step, 0 before.
        """
        assert self.woven is not None
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        model.train()
        parts = self._read(self._micro_batches, num_items_in_batch)
        report = self.woven.step(parts[0] if self.args.gradient_accumulation_steps == 1 else Parts(parts))
        self._terms = report.terms
        return report.loss

    def _read(self, batches: Sequence[Any], counted: Any) -> list[Any]:
        """Micro-batches in plait's form, with ``tokens`` where the host counts what the loss is a mean over."""
        assert self.woven is not None
        parts = [self.woven.read(self._prepare_inputs(batch)) for batch in batches]
        if counted is not None:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            tokens = torch.as_tensor(counted) / processes / sum(part.size for part in parts)
            for part in parts:
                part["tokens"] = tokens.expand(part.size)
        return parts

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm before the step clipped it."""
        assert self.woven is not None
        return self.woven.trainer.gradient_norm

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> Any:
        """On several processes the woven step's own wrapper, so that gradients are averaged once."""
        if training and self.woven is not None and self.accelerator.num_processes > 1:
            return self.woven.trainer.network
        return super()._wrap_model(model, training, dataloader)

    def autocast_smart_context_manager(self, *args: Any, **options: Any) -> AbstractContextManager[Any]:
        """The precision of the host's evaluations: the woven step's."""
        if self.woven is None:
            context: AbstractContextManager[Any] = super().autocast_smart_context_manager(*args, **options)
            return context
        return self.woven.trainer.forward.autocast()

    # ---- columns, log, checkpoints ------------------------------------------------------------------------------
    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns for plugins, which the model does not take."""
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            renamed = self._options.get("fields")
            named = {*needed_fields(make_plan(assemble(plugins=self._plugins)))}
            named |= set(renamed) if isinstance(renamed, Mapping) else set()
            self._own_columns = sorted(named - set(self._signature_columns))
            self._signature_columns += self._own_columns

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """The host's own, which evaluations show, without the plugins' columns."""
        self._set_signature_columns_if_needed()
        taken = {name: value for name, value in inputs.items() if name not in self._own_columns}
        return super().compute_loss(model, taken, *args, **options)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """As the host's, with the plugins' terms of the latest step and their latest values."""
        if self.woven is not None and "loss" in logs:
            terms = {name: self.accelerator.reduce(term.float(), "mean").item() for name, term in self._terms.items()}
            logs = {**logs, **terms, **self.woven.values}
        super().log(logs, *args, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.woven is not None and self.args.should_save:
            self.woven.save(Path(output_dir) / FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Not yet: the weights come with the masks, and in their shapes, when the step is woven."""
        if not (Path(resume_from_checkpoint) / FILE).is_file():
            raise BadCheckpoint(
                f"{resume_from_checkpoint} has no {FILE}, so it is no checkpoint of a WovenTrainer to resume (or "
                "save_only_model was set). To begin from its weights, load the model from it and call train()."
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.woven is not None and checkpoint is not None:
            self.woven.load_state_dict(checkpoints.load(Path(checkpoint) / FILE))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        """The best state with its masks."""
        assert self.woven is not None
        self.woven.load_state_dict(checkpoints.load(Path(self.state.best_model_checkpoint) / FILE))


def _unpatch(model: nn.Module) -> None:
    """Take off what Accelerate leaves on a module that it prepared; precision and averages are the woven step's."""
    if "_original_forward" in vars(model):
        del model._original_forward
        vars(model).pop("forward", None)
    vars(model).pop("_is_accelerate_prepared", None)
