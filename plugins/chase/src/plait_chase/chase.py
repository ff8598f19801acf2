"""Chase in anybody's training loop: applies the engine's masks to a model and its optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from plait_chase.channels import ChannelGroup, rounded_alive, tensor_name
from plait_chase.config import ChaseConfig
from plait_chase.engine import ChaseEngine, Update, present_channels
from plait_chase.errors import ChaseError
from plait_chase.flops import computed_weights, dense_macs, layer_costs, layer_table, sparse_macs
from plait_chase.groups import computed_in_graph, find_channel_groups
from plait_chase.shrink import (
    Plan,
    apply_shrink,
    copied,
    require_shapes,
    require_sliceable,
    reslice_optimizer,
    shrink_plan,
    unwrapped,
)
from plait_chase.weights import owned_weights, unreached

__all__ = ["Chase", "initialise"]


@torch.no_grad()
def initialise(model: nn.Module, fan: str = "fan_out", generator: torch.Generator | None = None) -> None:
    """The official code's weight initialisation, in place.

    Convolutions Kaiming-normal with zero bias, linear layers normal(0, 0.01) with zero bias, norms weight 1 and bias 0.

    Args:
        model: the network.
        fan: ``"fan_out"`` (default, CIFAR) or ``"fan_in"`` (ImageNet) [code].
        generator: source of randomness; default torch's global one.

    Raises:
        ChaseError: unknown fan.
    """
    if fan not in ("fan_in", "fan_out"):
        raise ChaseError(f"fan={fan!r} is unknown; choose fan_in or fan_out")
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            if isinstance(module.weight, Tensor):
                nn.init.ones_(module.weight)
        else:
            continue
        if isinstance(module.bias, Tensor):
            nn.init.zeros_(module.bias)


class Chase:
    """Dynamic sparse training with channel removal for a plain PyTorch loop.

    ::

        chase = Chase(model, optimizer, total_steps=600, density=0.1, channel_sparsity=0.5)
        for images, labels in batches:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            chase.step()
        small = chase.shrink()

    Weights are masked by value, so gradients stay dense: growth reads them at masked positions from ``.grad``.

    Frozen weights, parametrized layers, and weights that the forward pass computes others from are left alone. So are
    weights without a gradient: known from ``example_input``, or after the first step, when masks are drawn anew without
    them and they get their values back. The channels of a group with such a layer stay.

    Args:
        model: the network, on its final device. Out of the wrappers of ``torch.compile``, ``DataParallel`` and
            ``DistributedDataParallel``, which may go on being called: names are the plain ones, ``shrink()`` is plain.
        optimizer: any optimizer over its parameters; state tensors shaped like their parameter are masked along.
        total_steps: T, optimizer steps of the whole run.
        density: D, share of non-zero weights at the end, in (0, 1]; default 0.1.
        channel_sparsity: S_c, share of prunable channels to remove, in [0, 1); default 0.5.
        config: all options at once; excludes ``density``, ``channel_sparsity`` and ``options``.
        groups: channel groups; default :func:`find_channel_groups`.
        exclude: names of parameters that stay dense and do not count in N (globs); a group with one of them keeps its
            channels.
        include: names of parameters to own (globs); default all. A pattern that matches only parameters without
            gradients asks for them.
        generator: source of all randomness; default a CPU generator seeded with 0.
        example_input: one batch, for models that cannot be traced otherwise, for ``prune_residual``, to know which
            weights are read as they are, and for the FLOPs of :meth:`report`.
        prune_residual: also prune residual streams ("prune skip").
        shrink_during: slice the network physically after each channel removal: the same run, faster. Parameters are
            replaced by new ones in ``model`` and ``optimizer``.
        options: further fields of :class:`ChaseConfig`.

    Attributes:
        engine: the :class:`ChaseEngine`.
        masks: tensor name -> 0/1 tensor.

    Raises:
        ChaseError: bad options, or a model that has no prunable channel, is scripted, or has a lazy layer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        density: float | None = None,
        channel_sparsity: float | None = None,
        *,
        config: ChaseConfig | None = None,
        groups: Sequence[ChannelGroup] | None = None,
        exclude: Iterable[str] = (),
        include: Iterable[str] = ("*",),
        generator: torch.Generator | None = None,
        example_input: Any = None,
        prune_residual: bool = False,
        shrink_during: bool = False,
        **options: Any,
    ) -> None:
        given = {"density": density, "channel_sparsity": channel_sparsity, **options}
        given = {name: value for name, value in given.items() if value is not None}
        if config is not None and given:
            raise ChaseError(f"give config or single options, not both: {', '.join(given)}")
        unknown = set(given) - set(ChaseConfig.__dataclass_fields__)
        if unknown:
            raise ChaseError(f"unknown option {', '.join(sorted(unknown))}")
        config = config or ChaseConfig(**given)
        if shrink_during and any(isinstance(each, DistributedDataParallel) for each in model.modules()):
            raise ChaseError("shrink_during=True replaces parameters, which DistributedDataParallel does not follow")
        self.model = model = unwrapped(model)
        self.optimizer = optimizer
        self.shrink_during = shrink_during
        self._example_input = example_input
        if groups is None:
            wanted = config.channel_sparsity > 0
            groups = find_channel_groups(model, example_input, prune_residual=prune_residual) if wanted else ()
        require_shapes(model)
        copied(model)  # what cannot be copied cannot be shrunk in the end
        require_sliceable(model, groups)
        self._config, self._groups, self._total_steps = config, tuple(groups), total_steps
        self._patterns = {"include": tuple(include), "exclude": tuple(exclude)}
        self._computed: frozenset[str] = frozenset()
        without: set[str] = set()
        if example_input is not None:
            inputs = example_input if isinstance(example_input, tuple) else (example_input,)
            self._computed = computed_weights(model, example_input)
            without = unreached(model, lambda copy: copy(*inputs))
        else:
            self._computed = frozenset(computed_in_graph(model))
        self._generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self._drawn_from = self._generator.get_state()
        self.masks: dict[str, Tensor] = {}
        self._dense_gradients: dict[str, Tensor] = {}
        self._notes: dict[str, None] = {}
        self._costs = layer_costs(model, example_input) if example_input is not None else None
        self._without_gradient = without
        self._draw()
        # until the first step tells which weights have gradients
        self._initial = {name: p.detach().clone() for name, p in self._masked_parameters().items()}
        self.apply()

    def _draw(self) -> None:
        """Choose what is owned, and draw its masks; the same choice gives the same masks."""
        owned = owned_weights(
            self.model,
            self._groups,
            computed=self._computed,
            without_gradient=self._without_gradient,
            **self._patterns,
        )
        parameters = dict(self.model.named_parameters())
        self.masks.clear()
        for name in owned.names:
            mask = torch.ones_like(parameters[name], memory_format=torch.contiguous_format, requires_grad=False)
            self.masks[name] = mask
        self._generator.set_state(self._drawn_from)
        try:
            self.engine = ChaseEngine(self._config, self._total_steps, self.masks, owned.groups, self._generator)
        except ChaseError as error:
            raise ChaseError("; ".join([str(error), *owned.remarks])) from error
        self.engine.start()
        self._notes = dict.fromkeys(owned.remarks)

    @torch.no_grad()
    def _release(self, names: Iterable[str]) -> None:
        """Give back weights that turned out to have no gradients, and draw the other masks anew."""
        before = dict(self.masks)
        self._without_gradient |= set(names)
        self._draw()
        parameters = dict(self.model.named_parameters())
        for name, initial in self._initial.items():
            parameters[name].copy_(torch.where(before[name] == 0, initial, parameters[name]))

    @torch.no_grad()
    def apply(self) -> None:
        """Zero masked weights and the optimizer state that belongs to them."""
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for name, parameter in self._masked_parameters().items():
            state = self.optimizer.state.get(parameter, {})
            for tensor in (parameter, *state.values()):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    tensors.append(tensor)
                    masks.append(self.masks[name].to(tensor.dtype))
        torch._foreach_mul_(tensors, masks)

    @torch.no_grad()
    def before_step(self) -> None:
        """Optional, between ``backward()`` and gradient clipping: mask ``.grad`` so that norms see active weights only.

        On growth steps the dense gradients are kept aside first.
        """
        growing = self.engine.needs_gradient(self.engine.step + 1)
        self._dense_gradients = {}
        for name, parameter in self._masked_parameters().items():
            if parameter.grad is not None:
                if growing:
                    self._dense_gradients[name] = parameter.grad.clone()
                parameter.grad.mul_(self.masks[name])

    @torch.no_grad()
    def step(self) -> Update:
        """Call after every ``optimizer.step()``; after the last one the network has exactly its budget.

        Returns:
            What changed.

        Raises:
            ChaseError: non-finite weights or gradients, a missing gradient at a growth step, or more steps than
                ``total_steps``.
        """
        number = self.engine.step + 1
        if number > self.engine.schedule.total_steps:
            raise ChaseError(f"step {number} is beyond total_steps={self.engine.schedule.total_steps}")
        parameters = self._masked_parameters()
        if number == 1 and self._initial:
            absent = [name for name, p in parameters.items() if p.grad is None]
            if absent and len(absent) < len(parameters):
                self._release(absent)
                parameters = self._masked_parameters()
            self._initial = {}
        update = self.engine.update(number, parameters, self._gradient)
        self._dense_gradients = {}
        self._notes.update(dict.fromkeys(update.notes))
        if number == self.engine.schedule.total_steps:
            last = self.engine.finish(parameters)
            self._notes.update(dict.fromkeys(last.notes))
            update = Update(
                number,
                update.changed or last.changed,
                update.channels_removed,
                update.explored,
                last.nnz,
                (*update.notes, *last.notes),
            )
        self.apply()
        if update.channels_removed and self.shrink_during:
            self._slice()
        return update

    def _masked_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.masks}

    def _gradient(self, name: str) -> Tensor | None:
        if name in self._dense_gradients:
            return self._dense_gradients[name]
        gradient = self.model.get_parameter(name).grad
        if gradient is None and all(p.grad is None for p in self._masked_parameters().values()):
            raise ChaseError(f"{name!r} has no gradient at a growth step: call step() before zero_grad()")
        return gradient

    def _plan(self, multiple: int = 1) -> Plan:
        alive = self.engine.alive_now()
        return shrink_plan(self.model, self.engine.groups, rounded_alive(alive, multiple))

    def _slice(self) -> None:
        plan = self._plan()
        reslice_optimizer(self.optimizer, apply_shrink(self.model, plan), plan)
        self.engine.compact(plan)

    def shrink(self, multiple: int = 1) -> nn.Module:
        """A copy of the model without its dead channels; computes the same in eval mode.

        Args:
            multiple: keep some dead channels (as zero filters) so that every width is a multiple; default 1.
        """
        small = copied(self.model)
        apply_shrink(small, self._plan(multiple))
        return small

    def report(self) -> dict[str, Any]:
        """What was asked for and what was reached, as plain data.

        Densities: ``density`` is of the original network, ``density_inside`` of the shrunk one. Channel sparsity is
        over prunable channels, ``channel_share_all`` over all filters of maskable tensors. MACs are per sample.
        """
        engine = self.engine
        nnz = engine.nnz()
        small = self.shrink()
        rows = layer_table(self.model, self.masks, engine.layout.shapes, small)
        total = sum(nnz.values())
        filters = sum(row["channels_before"] for row in rows)
        channels = engine.channels
        empty = [
            int(((self.masks[tensor_name(g.producer, "weight")].flatten(1).sum(1) == 0).cpu() & alive).sum())
            for g, alive in ((g, engine.alive_now()[g.producer]) for g in engine.groups)
        ]
        report: dict[str, Any] = {
            "step": engine.step,
            "weights": engine.total,
            "budget": engine.budget,
            "nnz": total,
            "density_requested": engine.config.density,
            "density": total / engine.total,
            "density_inside": total / sum(dict(small.named_parameters())[row["tensor"]].numel() for row in rows),
            "channels": channels,
            "channels_alive": engine.alive_channels,
            "channels_alive_but_empty": sum(empty),
            "channel_sparsity_requested": engine.config.channel_sparsity,
            "channel_sparsity": 1 - engine.alive_channels / channels if channels else 0.0,
            "channel_share_all": 1 - sum(row["channels_after"] for row in rows) / filters,
            "at_floor": list(engine.at_floor()) if engine.config.channel_sparsity else [],
            "layers": rows,
            "notes": list(self._notes),
        }
        if self._costs is not None:
            report["macs_dense"] = dense_macs(self._costs)
            report["macs_shrunk"] = dense_macs(layer_costs(small, self._example_input))
            report["macs_sparse"] = sparse_macs(self._costs, nnz)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Engine state and masks (as bits), flat: tensors and JSON scalars. Model and optimizer are saved beside it."""
        state = self.engine.state_dict()
        return {**state, **{f"mask.{name}": _pack(mask) for name, mask in self.masks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Call before loading model and optimizer: a run sliced while training slices the fresh model first.

        Raises:
            ChaseError: the state is of another model, density or length of run.
        """
        saved = {key.removeprefix("mask.") for key in state if key.startswith("mask.")}
        if int(state["step"]):
            if saved and saved < set(self.masks):
                self._without_gradient |= set(self.masks) - saved
                self._draw()
            self._initial = {}
        self.engine.load_state_dict(state)
        original = self.engine.layout.present
        present = {name: kept[original[name]] for name, kept in present_channels(state).items()}
        if not all(bool(kept.all()) for kept in present.values()):
            plan = shrink_plan(self.model, self.engine.groups, present)
            reslice_optimizer(self.optimizer, apply_shrink(self.model, plan), plan)
            self.engine.compact(plan)
        for name, mask in self.masks.items():
            mask.copy_(_unpack(state[f"mask.{name}"], mask.shape))


def _pack(mask: Tensor) -> Tensor:
    bits = (mask != 0).flatten().cpu()
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = (packed.cpu()[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[: shape.numel()].view(shape)
