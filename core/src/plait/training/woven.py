"""The woven step: one network, its optimizer, masks and shadows, and the plugins that act on them together.

This is the engine of a run. It knows no loop, no files and no data set: whoever drives it hands in batches.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plait.data import DataInfo
from plait.data.batches import ByShape, Parts, in_parts, not_finite
from plait.data.seeds import seed_of
from plait.declare.recipe import Recipe
from plait.declare.rules import Composed
from plait.distributed import fsdp
from plait.distributed.world import NOTHING, World
from plait.errors import BadInput, RunFailed, blame, failing
from plait.training import optimizers, replicas
from plait.training.forward import Forward
from plait.training.frozen import frozen_buffers
from plait.training.masks import MaskSet
from plait.training.objectives import default_objective
from plait.training.random_state import global_random_state, random_state, set_global_random_state, set_random_state
from plait.training.shadows import Shadows
from plait.training.slicing import slice_tensors

RUN_STOPS = "The run stops; the last checkpoint is kept."
LOWER_RATE = "Try a smaller learning rate (--set optimizer.lr=...)."


@dataclass
class LossReport:
    """What one pass gave.

    Attributes:
        loss: the scalar that was differentiated (before ``scale``), detached.
        per_example: the objective, [B] (or [N, B]), detached, without weights.
        terms: ``<plugin>/<name>`` -> scalar, detached.
        gradients: of a ``probe`` pass only: aligned with ``trainer.parameters``, None where a parameter took no part.
        noise: of a ``probe`` pass only: the state of the random generators before it, for ``replay``.
    """

    loss: Tensor
    per_example: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[Tensor | None] | None = None
    noise: Sequence[Tensor] = ()

    @property
    def size(self) -> int:
        """B."""
        return self.per_example.shape[-1]

    @classmethod
    def joined(cls, reports: Sequence[LossReport]) -> LossReport:
        """The report of a batch from those of its parts, whose losses are scaled by their shares already."""
        if len(reports) == 1:
            return reports[0]
        terms = {name: torch.stack([r.terms[name] for r in reports]).sum() for name in reports[0].terms}
        loss = torch.stack([r.loss for r in reports]).sum()
        return cls(loss, torch.cat([r.per_example for r in reports], dim=-1), terms)


class Woven:
    """A network with its optimizer, masks and plugins, and the composed step.

    Args:
        recipe: optimizer, schedule, precision, seed and accumulation.
        plugins: the active plugins by name.
        composed: hook -> its ordered implementations.
        world: this process among those that train together.

    Attributes:
        model: the plain module (never a DDP or compiled wrapper).
        info: what the data says of itself.
        optimizer: the base optimizer over ``parameters``.
        masks: the masks, one owner per tensor.
        step: the number of the current step, counted from 1; 0 before the first.
        total_steps: the budget.
        device, rank, world: where this process computes, and as which of how many.
        sharded: whether each parameter is spread over the ranks (FSDP); then ``plain`` is a whole copy of the model.
        share: this rank's rows of the current batch over the mean rows of a rank.
        gradient_norm: of the latest step before its gradient was clipped; None where nothing clips.
        replicas: N of a model whose parameters carry a leading replica axis [N, ...], else None; see
            `plait.training.replicas`.
    """

    def __init__(
        self, recipe: Recipe, plugins: Mapping[str, Any], composed: Mapping[str, Composed], world: World
    ) -> None:
        self.recipe, self.plugins, self.composed = recipe, plugins, composed
        self._world = world
        self.device, self.rank, self.world = world.device, world.rank, world.size
        self.accumulate = recipe.train.accumulate
        self.sharded = world.size > 1 and recipe.distributed.strategy == "fsdp"
        self.step, self.share = 0, 1.0
        self.phase = (0, 0)
        self.total_steps = 0
        self.in_step = False
        self.stopping, self.lower_rate = RUN_STOPS, LOWER_RATE  # what to say of numbers that are not finite
        self.gradient_norm: Tensor | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._modules: dict[str, tuple[nn.Module, torch.optim.Optimizer | None]] = {}
        # what a plugin makes later in a resumed run finds its state here when it is made
        self._waiting: dict[str, dict[str, Any]] = {"generators": {}, "extra": {}, "shadows": {}}

    # ---- building -----------------------------------------------------------------------------------------------
    def take(
        self,
        model: nn.Module,
        info: DataInfo,
        forward: Forward,
        total_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Take a transformed model, on the device, for ``total_steps`` steps; the plugins set themselves up.

        Args:
            model: whose parameters are trained.
            info: of the data.
            forward: how a batch goes through the model.
            total_steps: the budget.
            optimizer: of the caller's own, who then also sets its learning rate; default the recipe's.
        """
        self.model, self.info, self.forward, self.total_steps = model, info, forward, total_steps
        self.plain = fsdp.shard(model, self.device, self.world) if self.sharded else None
        self.replicas: int | None = getattr(model, "replicas", None)
        self.phase = (0, total_steps)
        self.masks = MaskSet(model)
        self._shadows = Shadows(model, self.masks)
        self.scheduled = optimizer is None
        self.optimizer = optimizer or optimizers.make_optimizer(self.recipe.optimizer, model.parameters())
        self.refresh()
        for plugin in self.plugins.values():
            with blame(plugin.name):
                plugin.setup(self)
        self.masks.hold()
        self._shadows.begin()

    def refresh(self) -> None:
        """Gather the parameters and the wrapped network again, after parameters were replaced."""
        self.parameters: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters += [p for module, _ in self._modules.values() for p in module.parameters()]
        network = self.model if self.sharded else self._world.averaging(self.model)
        self.network: nn.Module = torch.compile(network) if self.recipe.compile else network  # type: ignore[assignment]

    def add_module(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Train a plugin's own module along (class centres, scores) and keep it in checkpoints.

        Args:
            name: unique, e.g. ``flamefinder.centres``.
            module: moved to the run's device.
            optimizer: its own optimizer; None adds its parameters to the run's optimizer.
        """
        module.to(self.device)
        if optimizer is None:
            group = {"params": list(module.parameters()), "initial_lr": self.optimizer.defaults["lr"]}
            self.optimizer.add_param_group(group)
        self._modules[name] = (module, optimizer)
        self.refresh()
        if name in self._waiting["extra"]:
            self._load_module(name, self._waiting["extra"].pop(name))
        return module

    def group_parameters(self, names: Iterable[str], **settings: float) -> None:
        """Give parameters of the model settings of their own in the run's optimizer.

        Args:
            names: as in ``model.named_parameters()``.
            settings: ``lr`` (peak; the schedule acts on it too), ``weight_decay``, or another of the optimizer's.

        Raises:
            BadInput: a parameter that the model does not have.
        """
        optimizers.regroup(self.optimizer, self.model, names, settings)

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator of this run, seeded by (seed, name) and kept in checkpoints."""
        if name not in self._generators:
            self._generators[name] = torch.Generator().manual_seed(seed_of(self.recipe.seed, "generator", name))
            if name in self._waiting["generators"]:
                self._generators[name].set_state(self._waiting["generators"].pop(name))
        return self._generators[name]

    def shadow(self, name: str) -> dict[str, Tensor]:
        """A tensor for each parameter of the model, by its name, to be changed in place; see `plait.training.shadows`.

        It begins as a copy of the weights, is zero where a mask is, and goes along when the network is sliced, saved,
        resumed, or put back to a snapshot.

        Args:
            name: unique, e.g. the plugin's.
        """
        shadow = self._shadows.take(name)
        if name in self._waiting["shadows"]:
            self._shadows.load(name, self._waiting["shadows"].pop(name))
        return shadow

    # ---- the composed loss --------------------------------------------------------------------------------------
    def call(self, model: Callable[..., Any], batch: Any) -> Any:
        """A model's outputs on the examples of a batch, with the data's ``prepare``, ``forward`` and ``readout``."""
        return self.forward(model, batch)

    def readout(self, raw: Any, batch: Any) -> Any:
        """The outputs of the batch's examples out of all that was computed, by the data's ``readout``."""
        return self.forward.outputs(raw, batch)

    def objective(self, outputs: Any, batch: Any) -> Tensor:
        """Per-example loss [B] (or [N, B]), by the plugin that replaces it or by the task.

        Raises:
            BadInput: a result that is not per example, naming the plugin.
        """
        owner = self.composed["objective"].owner()
        if owner is None:
            losses = default_objective(self.info, outputs, batch)
            if losses.ndim != 1 and self.replicas is None:
                given = f"outputs {tuple(outputs.shape)} have {list(losses.shape)} losses"
                raise BadInput(
                    f"{given}, and the model is no stack of replicas: the loss of each example is needed, [B]. For "
                    "tokens or pixels give an objective of your own."
                )
            return losses
        result = owner({"trainer": self, "outputs": outputs, "batch": batch})
        if not isinstance(result, Tensor) or result.ndim == 0:
            wanted = "the loss of each example, shape [B], so that other plugins can weight examples"
            raise BadInput(f"plugin {owner.plugin!r}: its objective is one number; return {wanted}.")
        return result

    def example_weights(self, batch: Any, per_example: Tensor, without: Collection[str] = ()) -> Tensor | None:
        """The product of the plugins' weights, [B] (or [N, B] for stacked replicas), or None when no plugin gives any.

        Raises:
            BadInput: weights of another shape, naming the plugin.
        """
        product: Tensor | None = None
        for implementation in self.composed["example_weights"].implementations:
            plugin = implementation.plugin
            if plugin in without:
                continue
            weights = implementation({"trainer": self, "batch": batch})
            if not isinstance(weights, Tensor) or weights.shape not in (per_example.shape, per_example.shape[-1:]):
                shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
                wanted = tuple(per_example.shape[-1:])
                raise BadInput(f"plugin {plugin!r}: example_weights gave {shape}, expected a tensor {wanted}.")
            product = weights if product is None else product * weights
        return product

    def loss_terms(
        self, outputs: Any, batch: Any, per_example: Tensor, weights: Tensor | None, raw: Any
    ) -> dict[str, Tensor]:
        """``<plugin>/<name>`` -> scalar of every plugin's terms, ``model/<name>`` -> of the model's own."""
        composed, own = self.composed["loss_terms"], getattr(self.model, "loss_terms", None)
        terms = {} if own is None else {f"model/{name}": term for name, term in own(raw, batch).items()}
        if not composed:
            return terms
        if weights is None:
            weights = per_example.new_ones(per_example.shape[-1:])
        named = composed.named(
            trainer=self, outputs=outputs, batch=batch, per_example=per_example, weights=weights, raw=raw
        )
        return terms | {f"{plugin}/{name}": term for plugin, given in named for name, term in given.items()}

    def _pass(self, batch: Any, without: Collection[str], portion: float, scale: float) -> LossReport:
        """One forward and backward pass; ``portion`` is the batch's part of the whole one."""
        with self.forward.autocast():
            raw = self.forward.raw(self.network, batch)
            outputs = self.forward.outputs(raw, batch)
            per_example = self.objective(outputs, batch)
            weights = self.example_weights(batch, per_example, without)
            weighted = per_example if weights is None else per_example * weights
            # over N stacked replicas [N, B] the sum gives every replica the gradient of its own mean
            loss = weighted.mean(-1) if weighted.ndim == 1 else weighted.mean(-1).sum()
            terms = self.loss_terms(outputs, batch, per_example, weights, raw)
            for term in terms.values():
                loss = loss + term
        factor = portion * scale
        (loss if factor == 1.0 else loss * factor).backward()  # type: ignore[no-untyped-call]
        detached = {name: term.detach() * portion for name, term in terms.items()} if terms else {}
        return LossReport(loss.detach() if portion == 1.0 else loss.detach() * portion, per_example.detach(), detached)

    # ---- one step -----------------------------------------------------------------------------------------------
    def gradients(
        self,
        batch: Any,
        *,
        rows: Tensor | None = None,
        without: Collection[str] = (),
        probe: bool = False,
        accumulate: bool = False,
        scale: float = 1.0,
        replay: LossReport | None = None,
        freeze_statistics: bool = False,
        sync: bool = True,
    ) -> LossReport:
        """Gradients of the composed loss at the present weights; repeatable within a step.

        masks -> forward -> objective x example weights + terms -> backward -> masked gradients in ``p.grad``.

        Args:
            batch: a batch of the run's data, B examples.
            rows: only these rows, int64 [M]; the mean is then over M.
            without: plugins whose ``example_weights`` are left out of this pass.
            probe: for information: the gradients come back in the report, ``p.grad`` stays as it was, and mask owners
                that asked for dense gradients do not see this pass.
            accumulate: add to ``p.grad`` instead of replacing it.
            scale: factor on the gradient.
            replay: repeat the random choices (dropout) of that earlier pass.
            freeze_statistics: running statistics (BatchNorm and every other buffer) stay as they are.
            sync: average gradients over the ranks; False keeps this rank's own.

        Raises:
            BadInput: an objective or weights of a shape other than [B], naming the plugin.
        """
        if not sync and self.sharded:
            raise BadInput("distributed.strategy = 'fsdp' has no gradients of one rank alone (sync=False); use ddp.")
        if rows is not None:
            batch = batch.take(rows)
        noise: Sequence[Tensor] = random_state(self.device) if probe else ()
        if replay is not None:
            set_random_state(replay.noise, self.device)
        stashed = [p.grad for p in self.parameters] if probe else []
        if probe or not accumulate:
            for p in self.parameters:
                p.grad = None
        if self.masks:
            self.masks.hold()
        if self.share != 1.0 and rows is None:
            scale = scale * self.share
        with frozen_buffers(self.model) if freeze_statistics else NOTHING:
            if self.accumulate == 1 and self.world == 1 and not isinstance(batch, Parts):
                report = self._pass(batch, without, 1.0, scale)
            else:
                report = self._in_parts(batch, without, scale, sync)
        if self.masks:
            self.masks.mask_gradients(keep=not probe, accumulate=accumulate)
        if probe:
            report.noise = noise
            report.gradients = [p.grad for p in self.parameters]
            for p, gradient in zip(self.parameters, stashed, strict=True):
                p.grad = gradient
        return report

    def _in_parts(self, batch: Any, without: Collection[str], scale: float, sync: bool) -> LossReport:
        """The passes of a batch that is computed in parts; the last one averages over the ranks."""
        parts = in_parts(batch) if self.accumulate == 1 else batch.chunks(self.accumulate)
        # ranks may have other shapes, and another number of them
        by_shape = isinstance(batch, ByShape) and self.world > 1
        if by_shape and self.sharded:
            raise BadInput("distributed.strategy = 'fsdp' takes no batches that are lists by shape; use ddp.")
        reports = []
        for position, part in enumerate(parts):
            portion = 1.0 if len(parts) == 1 else part.size / batch.size
            averages = sync and position == len(parts) - 1 and not by_shape
            with NOTHING if averages or self.world == 1 else self._world.separate(self.network):
                reports.append(self._pass(part, without, portion, scale))
        if by_shape and sync:
            self._world.average(p for p in self.model.parameters() if p.requires_grad)
        return LossReport.joined(reports)

    def apply_gradients(self) -> None:
        """One update from ``p.grad``; masked weights stay exactly zero."""
        if self.world > 1:
            for module, _ in self._modules.values():
                for p in module.parameters():  # outside DDP, which averages the model's own
                    p.grad = None if p.grad is None else self.sum_over_ranks(p.grad) / self.world
        if self.recipe.optimizer.clip_norm is not None:
            self.gradient_norm = replicas.clip_norm(self.parameters, self.recipe.optimizer.clip_norm, self.replicas)
        self.optimizer.step()
        for _, own in self._modules.values():
            if own is not None:
                own.step()
        if self.masks:
            self.masks.hold()

    def train_step(self, batch: Any) -> LossReport:
        """One whole step on a batch that is on the device: step wrappers, update, masks.

        Raises:
            RunFailed: a loss that is not finite, or masks that differ between ranks.
        """
        self.step += 1
        if self.scheduled:
            optimizers.set_lr(self.optimizer, self.recipe.scheduler, self.step - 1 - self.phase[0], self.phase[1])
        self.in_step = True

        def innermost() -> LossReport:
            report = self.gradients(batch)
            self.apply_gradients()
            return report

        steps = self.composed["optimizer_step"]
        report: LossReport = steps.wrap(innermost, trainer=self, batch=batch) if steps else innermost()
        if not isinstance(report, LossReport):
            names = " or ".join(repr(i.plugin) for i in steps.implementations)
            raise BadInput(f"plugin {names}: optimizer_step returned {type(report).__name__}; return the LossReport.")
        self.in_step = False
        looks = self.device.type == "cpu" or self.step % self.recipe.train.log_every == 0  # looking waits for a GPU
        if looks and not math.isfinite(report.loss.item()):
            self._refuse_non_finite(batch, report)
        for implementation in self.composed["update_masks"].implementations:
            with failing(self.step, implementation.plugin):
                implementation({"trainer": self})
        if self.masks:
            if self.world > 1 and self.masks.dirty and not self._world.all_equal(self.masks.checksum()):
                why = "an owner chose by local randomness"
                raise RunFailed(f"step {self.step}: the masks differ between ranks; {why}.")
            self.masks.hold_state(self.optimizer)
        return report

    def _refuse_non_finite(self, batch: Any, report: LossReport) -> None:
        """Raise `RunFailed` that names the step, and the inputs or the plugin behind a loss that is not finite."""
        if odd := not_finite(batch):
            raise RunFailed(
                f"step {self.step}: the loss is {report.loss.item()}, and so is the data: {odd}. Mend or leave out "
                f"such rows. {self.stopping}"
            )
        culprits = [name for name, term in report.terms.items() if not bool(torch.isfinite(term))]
        if not culprits and not bool(torch.isfinite(report.per_example).all()):
            owner = self.composed["objective"].owner()
            culprits = [f"the objective of plugin {owner.plugin!r}" if owner else "the default objective"]
        if not culprits:
            for implementation in self.composed["example_weights"].implementations:
                if not bool(torch.isfinite(implementation({"trainer": self, "batch": batch})).all()):
                    culprits.append(f"the example weights of plugin {implementation.plugin!r}")
        where = ", ".join(culprits) or "the weighted loss"
        steppers = ", ".join(i.plugin for i in self.composed["optimizer_step"].implementations)
        active = f" Active in the step: {steppers}." if steppers else ""
        raise RunFailed(
            f"step {self.step}: the loss is {report.loss.item()}, first seen in {where}.{active} {self.stopping} "
            f"{self.lower_rate}"
        )

    def require_finite_weights(self) -> None:
        """Refuse to save or deliver weights that are not finite.

        Raises:
            RunFailed: naming the step and the first such parameter.
        """
        for name, parameter in self.model.named_parameters():
            own: Any = parameter.detach()
            if not bool(torch.isfinite(own.to_local() if self.sharded else own).all()):
                raise RunFailed(
                    f"step {self.step}: the weights {name!r} are not finite. Nothing was saved of this step; the last "
                    f"checkpoint is kept. {self.lower_rate}"
                )

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks (itself on one process)."""
        return self._world.sum(value)

    @property
    def lr(self) -> float:
        """The present learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    # ---- phases -------------------------------------------------------------------------------------------------
    def begin_phase(self, steps: int, *, fresh: bool = False, weights: Mapping[str, Tensor] | None = None) -> None:
        """Start anew over the next ``steps`` steps (rounds, fine-tuning): the learning-rate schedule.

        Args:
            steps: length of the phase.
            fresh: also forget the optimizer's state (momentum, moments).
            weights: the model's tensors to begin from, as in ``model.state_dict()``; masked ones become zero, and
                shadows begin anew as copies of them.
        """
        if weights is not None:
            self.model.load_state_dict(weights)
            self.masks.hold()
            self._shadows.begin()
        self.phase = (self.step, steps)
        if fresh:
            self.optimizer.state.clear()

    def snapshot_model(self) -> dict[str, Any]:
        """A copy of weights, buffers, masks and shadows."""
        return {
            "weights": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
            "masks": self.masks.state_dict(),
            "shadows": self._shadows.state_dict(),
        }

    def restore_model(self, snapshot: Mapping[str, Any]) -> None:
        """Put back what `snapshot_model` took; masked weights are zeroed."""
        self.model.load_state_dict(snapshot["weights"])
        self.masks.load_state_dict(snapshot["masks"])
        for name, saved in snapshot["shadows"].items():
            self._shadows.load(name, saved)
        self.masks.hold_state(self.optimizer)

    def slice_tensors(self, plan: Mapping[str, Sequence[tuple[int, Tensor]]]) -> None:
        """Shrink parameters, buffers, masks, shadows and optimizer state physically, in the middle of a run.

        Args:
            plan: tensor name -> (dimension, kept positions int64) pairs. Module attributes that repeat a size
                (``out_channels``) are the caller's to set.
        """
        if self.world > 1:
            # the wrapper that averages gradients holds what autograd knows of the parameters, shapes included
            self.network = self.model
            gc.collect()
        slice_tensors(self.model, self.optimizer, self.masks, plan)
        self._shadows.slice_tensors(plan)
        self.refresh()

    # ---- state --------------------------------------------------------------------------------------------------
    def whole_model(self) -> nn.Module:
        """A copy of the model in eval mode, with every parameter whole."""
        if self.plain is not None:
            self.plain.load_state_dict(fsdp.whole(self.model.state_dict()))
            return self.plain.to(self.device).eval()
        return copy.deepcopy(self.model).eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the step needs to go on, between two steps."""
        assert not self.in_step, "a checkpoint inside a step would hold perturbed weights"
        modules = {
            name: {"module": module.state_dict(), "optimizer": optimizers.state_to_tree(own) if own else None}
            for name, (module, own) in self._modules.items()
        }
        state = {
            "step": self.step,
            "phase": list(self.phase),
            "model": self.model.state_dict(),
            "optimizer": optimizers.state_to_tree(self.optimizer),
            "extra": self._waiting["extra"] | modules,
            "masks": self.masks.state_dict(),
            "shadows": self._waiting["shadows"] | self._shadows.state_dict(),
            "plugins": {name: plugin.state_dict() for name, plugin in self.plugins.items()},
            "generators": self._waiting["generators"] | {name: g.get_state() for name, g in self._generators.items()},
            "random": global_random_state(self.device),
        }
        return fsdp.whole(state) if self.sharded else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Plugins first: one that shrank the network shrinks it again before weights load."""
        for name, plugin in self.plugins.items():
            plugin.load_state_dict(copy.copy(state["plugins"].get(name, {})))
        weights, momenta = state["model"], state["optimizer"]
        if self.sharded:
            weights = fsdp.weights_like(self.model, weights)
            momenta = fsdp.state_like(self.optimizer, momenta)
        optimizers.load_weights(self.model, weights)
        self.masks.load_state_dict(state["masks"])
        optimizers.tree_to_state(self.optimizer, momenta)
        self._waiting = {kind: dict(state.get(kind, {})) for kind in self._waiting}
        for name in self._shadows.sets:
            self._shadows.load(name, self._waiting["shadows"].pop(name))
        for name in self._modules:
            self._load_module(name, self._waiting["extra"].pop(name))
        for name, generator in self._generators.items():
            generator.set_state(self._waiting["generators"].pop(name))
        self.step, self.phase = state["step"], tuple(state["phase"])
        set_global_random_state(state["random"], self.device)

    def _load_module(self, name: str, saved: Mapping[str, Any]) -> None:
        module, own = self._modules[name]
        optimizers.load_weights(module, saved["module"])
        if own is not None:
            optimizers.tree_to_state(own, saved["optimizer"])
