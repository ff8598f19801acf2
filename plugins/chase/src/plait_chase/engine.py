"""The engine: owns the decision which masks and channels live, and nothing else. Card sections 3 to 7 and 9.

It works on plain dicts: 0/1 mask tensors that somebody else applies (the plait core, or
:class:`plait_chase.chase.Chase`), weights to read, and a callable that hands over dense gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, prod
from typing import Any

import torch
from torch import Tensor

from plait_chase import exploration, schedules
from plait_chase.channels import (
    ChannelGroup,
    check_reachable,
    kept_channels,
    min_channels,
    rounded_alive,
    select_channels,
    tensor_name,
)
from plait_chase.config import ChaseConfig
from plait_chase.erk import budget, fill_random, layer_counts
from plait_chase.errors import ChaseError
from plait_chase.layout import ChannelLayout
from plait_chase.scores import group_scores
from plait_chase.shrink import Plan

__all__ = ["ChaseEngine", "Update", "present_channels"]

_STATE_VERSION = 2


@dataclass(frozen=True)
class Update:
    """What one call of the engine did.

    Args:
        step: the step it was called for.
        changed: whether any mask changed; if so, apply masks to weights and optimizer state.
        channels_removed: channels removed by this call.
        explored: whether weights were dropped or grown.
        nnz: non-zero maskable weights now, or None where nothing happened.
        notes: one-line remarks for the report (layers at their floor, a full network).
    """

    step: int
    changed: bool = False
    channels_removed: int = 0
    explored: bool = False
    nnz: int | None = None
    notes: tuple[str, ...] = field(default=())


def present_channels(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Producer -> boolean ``[C original]``: the channels that were physically there when ``state`` was saved.

    To resume a run that was sliced while training, first ``engine.load_state_dict(state)``, then ``plan =
    shrink_plan(model, groups, present_channels(state))``, ``apply_shrink(model, plan)`` and ``engine.compact(plan)``;
    then load weights and masks.
    """
    prefix = "present."
    return {key.removeprefix(prefix): value.bool() for key, value in state.items() if key.startswith(prefix)}


class ChaseEngine:
    """Dynamic sparse training with gradual channel removal, on dicts of tensors.

    Args:
        config: options.
        total_steps: T, optimizer steps of the whole run.
        masks: tensor name -> 0/1 tensor of the parameter's shape and dtype; changed IN PLACE. Entries with two or more
            dimensions are sparsified and define N; one-dimensional entries (biases of producers) only lose the entries
            of removed channels and are never counted.
        groups: prunable channel groups; may be empty when ``channel_sparsity`` is 0.
        generator: source of all randomness; default a CPU generator seeded with 0.

    Attributes:
        total: N, maskable weights of the original dense network.
        budget: K, non-zeros of the final network.
        channels: C, prunable channels of the original network.
        floors: producer -> smallest number of channels it keeps.
        removed_sparse: channels removed so far that were sparser than most living channels of their layer.

    Raises:
        ChaseError: bad options, intervals longer than the run, no prunable group, a group that does not fit its
            tensors, or a channel sparsity that the floors make unreachable.
    """

    def __init__(
        self,
        config: ChaseConfig,
        total_steps: int,
        masks: MutableMapping[str, Tensor],
        groups: Sequence[ChannelGroup] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self.config = config
        self.schedule = config.schedule(total_steps)
        self.layout = ChannelLayout(masks, groups)
        self.groups = self.layout.groups
        self.names = self.layout.names
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.total = sum(prod(shape) for shape in self.layout.shapes.values())
        if not self.total:
            raise ChaseError("no maskable weight: a model needs at least one weight with two or more dimensions")
        self.budget = budget(config.density, self.total)
        if not self.budget:
            raise ChaseError(f"density={config.density} leaves no weight of {self.total}")
        if config.channel_sparsity and not self.groups:
            raise ChaseError(f"channel_sparsity={config.channel_sparsity} but the model has no prunable channel group")
        widths = self.layout.widths
        self.floors = {
            name: min_channels(width, config.channel_sparsity, config.min_layer_factor)
            for name, width in widths.items()
        }
        if config.channel_sparsity:
            check_reachable(widths, config.channel_sparsity, config.min_layer_factor)
        self.channels = sum(widths.values())
        self.step = 0
        self.finished = False
        self.removed_sparse = 0

    # Reading

    @property
    def masks(self) -> MutableMapping[str, Tensor]:
        """The masks, in their present shapes."""
        return self.layout.masks

    @property
    def alive(self) -> dict[str, Tensor]:
        """Producer -> boolean ``[C]`` over ORIGINAL channels."""
        return self.layout.alive

    @property
    def alive_channels(self) -> int:
        """Living channels over all groups."""
        return self.layout.alive_channels

    def alive_now(self) -> dict[str, Tensor]:
        """Producer -> boolean ``[C present]``: what :func:`plait_chase.shrink.shrink_plan` wants."""
        return self.layout.alive_now()

    def nnz(self) -> dict[str, int]:
        """Non-zeros per maskable tensor."""
        return self.layout.nnz()

    def at_floor(self) -> tuple[str, ...]:
        """Producers that cannot lose another channel."""
        return tuple(name for name, alive in self.alive.items() if int(alive.sum()) <= self.floors[name])

    @property
    def removed_sparser(self) -> float:
        """Share of the removed channels that held fewer weights than most living channels of their layer did then."""
        gone = self.channels - self.alive_channels
        return self.removed_sparse / gone if gone else float("nan")

    def scores(self, weights: Mapping[str, Tensor], score: str | None = None) -> list[Tensor]:
        """Score of every PRESENT channel, ``[C present]`` per group on the CPU; entries of dead channels mean nothing.

        A coupled group scores the mean over its producers [inferred]. ``score`` replaces the configured one.
        """
        alive = self.alive_now()
        return group_scores(
            score or self.config.score,
            [[tensor_name(module, "weight") for module in group.producers] for group in self.groups],
            [alive[group.producer] for group in self.groups],
            weights,
            self.masks,
            self.layout.shapes,
            self.generator,
        )

    # Acting

    def start(self) -> Update:
        """Draw the initial masks in place: exactly K ones at random places, ERK (or uniform) per layer."""
        counts = layer_counts(self.layout.shapes, self.budget, self.config.distribution)
        for name in self.names:
            fill_random(self.masks[name], counts[name], self.generator)
        return Update(0, changed=True, nnz=self.budget)

    def removes_channels(self, step: int) -> bool:
        """Whether channels may be removed at ``step``."""
        s = self.schedule
        return self.config.channel_sparsity > 0 and schedules.channel_event(
            step, s.channel_interval, s.exploration_interval, s.removal_end
        )

    def explores(self, step: int) -> bool:
        """Whether weights are dropped and grown at ``step``."""
        s = self.schedule
        return (
            self.config.explore
            and step <= s.explore_until
            and schedules.exploration_event(step, s.exploration_interval, s.total_steps)
        )

    def needs_gradient(self, step: int) -> bool:
        """Whether ``update(step, ...)`` will ask for dense gradients: growth steps of gradient growth only."""
        return self.config.growth == "gradient" and self.explores(step)

    def update(
        self, step: int, weights: Mapping[str, Tensor], gradients: Callable[[str], Tensor | None] | None = None
    ) -> Update:
        """Do what is due after optimizer step ``step`` (from 1, strictly rising); masks change in place.

        Order: channel removal, then drop, then growth. A weight dropped and regrown by the same update never left.

        Args:
            step: number of the optimizer step just made.
            weights: tensor name -> parameter, at least for all maskable tensors; read only.
            gradients: tensor name -> DENSE gradient of the last mini-batch (not masked; accumulated, if it was); called
                only if ``needs_gradient(step)``. None where the last mini-batch gave none (a branch that it did not
                take): the mask of that tensor stays as it is until another update.

        Raises:
            ChaseError: a step out of order, or non-finite weights or gradients. Nothing has changed then.
        """
        if step <= self.step or self.finished:
            raise ChaseError(f"update of step={step} after step {self.step}{' and finish()' if self.finished else ''}")
        removing, exploring = self.removes_channels(step), self.explores(step)
        if not removing and not exploring:
            self.step = step
            return Update(step)
        exploration.require_finite({name: weights[name] for name in self.names}, "weight")
        grads: dict[str, Tensor | None] | None = None
        if self.needs_gradient(step):
            if gradients is None:
                raise ChaseError(f"step {step} grows weights by gradient: dense gradients are required")
            grads = {name: gradients(name) for name in self.names}
            exploration.require_finite({n: g for n, g in grads.items() if g is not None}, "gradient")
        notes: list[str] = []
        removed = self._remove_channels(step, weights, notes) if removing else 0
        if exploring:
            self._explore(step, weights, grads, notes)
        self.step = step
        changed = exploring or removed > 0
        nnz = sum(self.nnz().values()) if changed else None
        return Update(step, changed, removed, exploring, nnz, tuple(notes))

    def finish(self, weights: Mapping[str, Tensor]) -> Update:
        """Prune, never grow, to at most K non-zeros; call once after the last step.

        Fewer than K remain only where the network is full, or channels went after the last growth; ``notes`` says so.
        """
        exploration.require_finite({name: weights[name] for name in self.names}, "weight")
        nnz = self.nnz()
        before = sum(nnz.values())
        if before > self.budget:
            drops: exploration.Counts = before - self.budget
            if self.config.scope == "layer":
                target = self._layer_targets(self.budget)
                drops = [max(0, nnz[name] - target[name]) for name in self.names]
            self._prune(weights, drops)
            # Layers below their share leave the rest to a global cut.
            self._prune(weights, sum(self.nnz().values()) - self.budget)
        self.finished = True
        after = sum(self.nnz().values())
        notes: list[str] = []
        room = sum(self.layout.capacity().values())
        if after < self.budget:
            why = "the network is full" if after == room else "channels were removed after the last growth"
            notes.append(f"nnz={after} is below the budget K={self.budget}: {why} ({room} positions are alive)")
        wanted = kept_channels(self.channels, self.config.channel_sparsity)
        if self.config.channel_sparsity and self.alive_channels != wanted:
            notes.append(f"{self.alive_channels} channels are alive, {wanted} were asked for")
        return Update(self.step, after != before, 0, after != before, after, tuple(notes))

    def _prune(
        self, weights: Mapping[str, Tensor], counts: exploration.Counts, names: Sequence[str] | None = None
    ) -> None:
        names = self.names if names is None else names
        exploration.prune([weights[n] for n in names], [self.masks[n] for n in names], counts)

    def _layer_targets(self, total: int) -> dict[str, int]:
        shapes = self.layout.alive_shapes()
        room = sum(prod(shape) for shape in shapes.values())
        return layer_counts(shapes, min(total, room), self.config.distribution)

    def _remove_channels(self, step: int, weights: Mapping[str, Tensor], notes: list[str]) -> int:
        share = schedules.channel_target(step, self.schedule.removal_end, self.config.channel_sparsity)
        need = self.alive_channels - kept_channels(self.channels, share)
        if need <= 0:
            return 0
        alive = self.alive_now()
        producers = [group.producer for group in self.groups]
        scores = self.scores(weights)
        gone = select_channels(scores, [alive[p] for p in producers], need, [self.floors[p] for p in producers])
        keep = {p: alive[p] & ~dead for p, dead in zip(producers, gone, strict=True)}
        keep = rounded_alive(keep, self.config.round_channels, dict(zip(producers, scores, strict=True)), alive)
        for name, density in zip(producers, self.scores(weights, "connection-density"), strict=True):
            living, going = density[alive[name]], density[alive[name] & ~keep[name]][:, None]
            self.removed_sparse += int(((living > going).sum(1) > (living < going).sum(1)).sum())
        removed = self.layout.kill({p: alive[p] & ~keep[p] for p in producers})
        floor_layers = self.at_floor()
        if floor_layers:
            notes.append(f"at their floor: {', '.join(floor_layers)}")
        return removed

    def _explore(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        grads: Mapping[str, Tensor | None] | None,
        notes: list[str],
    ) -> None:
        config, schedule = self.config, self.schedule
        names = [n for n in self.names if grads is None or grads[n] is not None]
        if len(names) < len(self.names):
            first = next(n for n in self.names if n not in names)
            more = len(self.names) - len(names) - 1
            notes.append(f"{first!r}{f' and {more} more' if more else ''} had no gradient: left as they were this time")
        room = sum(self.layout.capacity().values())
        soft = step < schedule.phase_a_steps
        goal = self.budget
        rate = 0.0
        if soft:
            share = schedules.bound(step, schedule.phase_a_steps, config.density, config.death_rate, config.bound_extra)
            # The tiny addition undoes binary rounding of an exact product.
            goal = max(self.budget, floor(share * self.total + 1e-6))
        else:
            rate = schedules.drop_rate(step, schedule.total_steps, config.drop_start, config.drop_end)
        if goal > room:
            notes.append(f"only {room} positions are alive for {goal} weights: the network is full")
        goal = min(goal, room)
        nnz = self.nnz()
        drops: exploration.Counts
        adds: exploration.Counts
        if config.scope == "layer":
            base, final = self._layer_targets(self.budget), self._layer_targets(goal)
            lost = {n: min(nnz[n], max(ceil(rate * nnz[n]), nnz[n] - base[n])) for n in names}
            drops = list(lost.values())
            adds = [max(0, final[n] - (nnz[n] - lost[n])) for n in names]
        else:
            whole = sum(nnz.values())
            have = sum(nnz[n] for n in names)
            # tensors that are left as they are keep their share of the excess, too
            drops = max(ceil(rate * have), -(-(whole - self.budget) * have // max(1, whole)))
            adds = goal - (whole - min(drops, have))
        self._prune(weights, drops, names)
        exploration.grow(
            [self.masks[n] for n in names],
            [self.layout.allowed(n) for n in names],
            adds,
            None if grads is None else [g for g in grads.values() if g is not None],
            self.generator,
        )

    # Physical slicing and checkpoints

    def compact(self, plan: Plan, masks: MutableMapping[str, Tensor] | None = None) -> None:
        """Follow a physical slice of the network made while training.

        N, K, scores, and the order of ties stay those of the original network, so the sliced run chooses what
        the masked run chooses.

        Args:
            plan: the plan the model was sliced with.
            masks: the sliced masks, where their owner has sliced them; default: this engine's masks are replaced, in
                the dict it holds, by sliced ones.

        Raises:
            ChaseError: the plan cuts a living channel, or shapes do not match afterwards.
        """
        self.layout.compact(plan, masks)

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between steps except the masks: a flat dict of tensors and JSON scalars."""
        state: dict[str, Any] = {
            "version": _STATE_VERSION,
            "step": self.step,
            "finished": self.finished,
            "total": self.total,
            "budget": self.budget,
            "total_steps": self.schedule.total_steps,
            "removed_sparse": self.removed_sparse,
            "generator": self.generator.get_state(),
        }
        for name, alive in self.alive.items():
            present = torch.zeros_like(alive)
            present[self.layout.present[name]] = True
            state[f"alive.{name}"] = alive.to(torch.uint8)
            state[f"present.{name}"] = present.to(torch.uint8)
        return state

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise :class:`ChaseError` if ``state`` is of another model, density, length of run or version."""
        expected = {
            "version": _STATE_VERSION,
            "total": self.total,
            "budget": self.budget,
            "total_steps": self.schedule.total_steps,
        }
        for key, value in expected.items():
            if state.get(key) != value:
                raise ChaseError(f"the checkpoint was saved with {key}={state.get(key)}, this run has {key}={value}")
        saved = {key.removeprefix("alive.") for key in state if key.startswith("alive.")}
        if saved != set(self.alive):
            odd = ", ".join(sorted(saved.symmetric_difference(self.alive)))
            raise ChaseError(f"the checkpoint has other channel groups than this model: {odd}")
        for name, alive in self.alive.items():
            width = state[f"alive.{name}"].numel()
            if width != alive.numel():
                raise ChaseError(f"the checkpoint has {width} channels in {name!r}, this model {alive.numel()}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; the masks are restored by their owner. See :func:`present_channels` for runs sliced while training.

        Raises:
            ChaseError: the state is of another model, density, length of run or version, or sliced otherwise.
        """
        self.check_state(state)
        for name, present in present_channels(state).items():
            if int(present[self.layout.present[name]].sum()) != int(present.sum()):
                raise ChaseError(f"this model lacks channels of {name!r} that the checkpoint has")
        self.layout.alive = {name: state[f"alive.{name}"].bool().cpu().clone() for name in self.alive}
        self.step = int(state["step"])
        self.finished = bool(state["finished"])
        self.removed_sparse = int(state["removed_sparse"])
        self.generator.set_state(state["generator"].cpu())
