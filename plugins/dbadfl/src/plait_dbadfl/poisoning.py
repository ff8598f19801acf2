"""What attackers do to their own training: poisoned batches, the distance term, scaled updates. Card, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.training.replicas import wide
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.options import AttackOptions
from plait_dbadfl.triggers import stamp

__all__ = ["Poison", "active", "poison", "scale_update"]

MAX_GAMMA = 100.0


@dataclass(frozen=True)
class Poison:
    """What every node does to its batches; a benign node has ratio 0.

    Args:
        mask: bool [N, H, W], the pixels that the node overwrites.
        value: float [N, H, W], what it writes there.
        ratio: float [N], chance of each sample to be poisoned, in [0, 1].
        target: int64 [N], label given to poisoned samples.
        first: None (default), or the ancestor's mode: the first k samples of each batch of a node whose ratio is
            positive, instead of a chance per sample [code].

    Raises:
        DbadflError: shapes that do not agree, a ratio outside [0, 1], a negative k, or a node that poisons without
            any pixel.
    """

    mask: Tensor
    value: Tensor
    ratio: Tensor
    target: Tensor
    first: int | None = None

    def __post_init__(self) -> None:
        n = self.mask.shape[0]
        if self.mask.ndim != 3 or self.value.shape != self.mask.shape or self.ratio.shape != (n,):
            raise DbadflError(
                f"poison needs mask and value [N, H, W] and ratio [N]; got {tuple(self.mask.shape)}, "
                f"{tuple(self.value.shape)}, {tuple(self.ratio.shape)}"
            )
        if self.target.shape != (n,):
            raise DbadflError(f"poison target needs shape [{n}]; got {tuple(self.target.shape)}")
        if not bool(((self.ratio >= 0) & (self.ratio <= 1)).all()):
            raise DbadflError(f"poison ratio {self.ratio.tolist()} is outside [0, 1]")
        if self.first is not None and self.first < 0:
            raise DbadflError(f"first={self.first} poisoned samples must not be negative")
        empty = (self.ratio > 0) & ~self.mask.flatten(1).any(1)
        if bool(empty.any()):
            raise DbadflError(f"node {int(empty.nonzero()[0])} poisons its batches without any trigger pixel")

    @classmethod
    def none(cls, nodes: int, height: int, width: int) -> Poison:
        """Nobody poisons."""
        return cls(
            torch.zeros(nodes, height, width, dtype=torch.bool),
            torch.zeros(nodes, height, width),
            torch.zeros(nodes),
            torch.zeros(nodes, dtype=torch.int64),
        )

    def set(self, nodes: Tensor, mask: Tensor, value: Tensor | float, ratio: Tensor, target: Tensor | int) -> Poison:
        """A copy in which ``nodes`` int64 [M] poison with mask [M, H, W], ratio [M] and the given value and target."""
        new = Poison(self.mask.clone(), self.value.clone(), self.ratio.clone(), self.target.clone(), self.first)
        new.mask[nodes], new.value[nodes], new.ratio[nodes], new.target[nodes] = (
            mask,
            torch.as_tensor(value, dtype=new.value.dtype).expand(mask.shape),
            ratio.to(new.ratio.dtype),
            torch.as_tensor(target, dtype=torch.int64).expand(len(nodes)),
        )
        new.__post_init__()
        return new

    def rows(self, nodes: Tensor) -> Poison:
        """What ``nodes`` int64 [n] do, in that order."""
        return Poison(self.mask[nodes], self.value[nodes], self.ratio[nodes], self.target[nodes], self.first)

    def only(self, active: Tensor) -> Poison:
        """A copy in which the nodes outside ``active`` bool [N] do not poison."""
        return Poison(self.mask, self.value, self.ratio * active, self.target, self.first)

    def to(self, device: torch.device | str) -> Poison:
        """On another device."""
        return Poison(
            self.mask.to(device), self.value.to(device), self.ratio.to(device), self.target.to(device), self.first
        )

    @property
    def attackers(self) -> Tensor:
        """int64, the nodes with a positive ratio."""
        return self.ratio.nonzero().flatten()


def poison(images: Tensor, labels: Tensor, how: Poison, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Poison the batches of all nodes at once; neither input is changed.

    Args:
        images: [N, B, ch, H, W] in [0, 1].
        labels: int64 [N, B]. Samples that already have the target label are eligible [code].
        how: who stamps what.
        generator: on the CPU; one number per sample, drawn whatever the ratios are, so that arms stay paired.

    Returns:
        Images and labels, of the same shapes. Bit-identical to the input where the ratio is 0.
    """
    count, batch = labels.shape
    if images.ndim != 5 or images.shape[:2] != labels.shape or how.ratio.shape != (count,):
        raise DbadflError(
            f"poison needs images [N, B, ch, H, W] and labels [N, B] for N={len(how.ratio)}; got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if how.first is None:
        chosen = torch.rand(count, batch, generator=generator).to(images.device) < how.ratio[:, None]
    else:
        position = torch.arange(batch, device=images.device)
        chosen = (position < how.first)[None] & (how.ratio > 0)[:, None]
    mask = chosen[:, :, None, None] & how.mask[:, None]
    return stamp(images, mask, how.value[:, None]), torch.where(chosen, how.target[:, None], labels)


def distance_to_start(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """``||x_i - x_round_start||_2`` of every node; the stealth term that alpha < 1 weighs.

    Args:
        parameters, start: the same list of stacked tensors [N, *s].

    Returns:
        [N], differentiable; 0 with gradient 0 at the start itself.

    Source: card, section 3 [code].
    """
    squares = [wide(p - s).flatten(1).square().sum(1) for p, s in zip(parameters, start, strict=True)]
    total = torch.stack(squares).sum(0)
    # The gradient of a norm at 0 is not a number; at the start of a round every node is exactly there.
    return torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny).sqrt(), torch.zeros_like(total))


def check_gamma(gamma: float) -> None:
    """Raise `DbadflError` unless ``0 < gamma <= 100``."""
    if not 0.0 < gamma <= MAX_GAMMA:
        raise DbadflError(
            f"gamma={gamma} is outside (0, {MAX_GAMMA:g}]; 1/W_ij of an edge already replaces the neighbour's model"
        )


def scale_update(after: Tensor, before: Tensor, gamma: float, nodes: Tensor) -> Tensor:
    """Model replacement: ``G + gamma (X - G)`` at ``nodes``; parameters only, never buffers.

    Args:
        after, before: [N, *s], a parameter after local training and at the start of the round.
        gamma: in (0, 100].
        nodes: int64 [M] or bool [N], the attackers.

    Returns:
        ``after`` itself when gamma is 1, else a new tensor.

    Raises:
        DbadflError: gamma out of range.

    Source: card, section 3 [code]; Bagdasaryan et al. 2020.
    """
    check_gamma(gamma)
    if gamma == 1.0:
        return after
    scaled = after.clone()
    scaled[nodes] = before[nodes] + gamma * (after[nodes] - before[nodes])
    return scaled


def check_finite(parameters: Sequence[Tensor], round_: int) -> None:
    """Raise `DbadflError` naming the first node with a parameter that is NaN or infinite, and the round."""
    finite = torch.stack([torch.isfinite(p.flatten(1)).all(1) for p in parameters]).all(0)
    if not bool(finite.all()):
        node = int((~finite).nonzero()[0])
        raise DbadflError(
            f"round {round_}: node {node} has NaN or infinite parameters; lower gamma or the learning rate"
        )


def active(options: AttackOptions, round_: int) -> Tensor:
    """bool [M], which attackers poison in a round: all from the first one on, or attacker k in its own round only."""
    if options.schedule == "multi":
        return torch.full((options.attackers,), round_ >= options.attack_start)
    rounds = torch.tensor(options.attack_rounds)
    return rounds[torch.arange(options.attackers) % len(rounds)] == round_
