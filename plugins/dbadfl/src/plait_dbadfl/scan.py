"""The scan: what attackers can observe of their distances from their own models. Card, section 4.

An attacker sees its own model, its own images and the others' signatures. Nothing here takes a graph, a mixing matrix,
another node's data or a benign node's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import SIGNATURE_TARGETS
from plait_dbadfl.poisoning import Poison
from plait_dbadfl.sampling import generator
from plait_dbadfl.triggers import stamp

__all__ = ["Signatures", "make_signatures", "pair_sequences", "probe_features"]

CHUNK = 1 << 23
"""Most values of stamped probe images in one forward pass."""


@dataclass(frozen=True)
class Signatures:
    """One signature per attacker and one control per signature, which nobody trains on.

    Args:
        mask: bool [M, H, W]; [S, M, H, W] for S networks at once.
        value: float of the same shape, 0 or 1.
        target: int64 [M] or [S, M].
        control_mask, control_value: the same shapes, from the same generator.
    """

    mask: Tensor
    value: Tensor
    target: Tensor
    control_mask: Tensor
    control_value: Tensor

    def poison(self, ratio: float) -> Poison:
        """Every attacker stamps its own signature on a share ``ratio`` of its samples; one row an attacker, [S * M].

        Raises:
            DbadflError: ratio outside [0, 1].
        """
        if not 0.0 <= ratio <= 1.0:
            raise DbadflError(f"scan ratio={ratio} (r_s) is outside [0, 1]")
        height, width = self.mask.shape[-2:]
        mask, value = self.mask.reshape(-1, height, width), self.value.reshape(-1, height, width)
        return Poison(mask, value, torch.full((len(mask),), ratio, device=mask.device), self.target.flatten())

    @classmethod
    def stacked(cls, several: Sequence[Signatures]) -> Signatures:
        """Of S networks with M attackers each, [S, M, ...]."""
        names = ("mask", "value", "target", "control_mask", "control_value")
        return cls(*(torch.stack([getattr(s, name) for s in several]) for name in names))

    def to(self, device: torch.device | str) -> Signatures:
        """On another device."""
        return Signatures(
            *(t.to(device) for t in (self.mask, self.value, self.target, self.control_mask, self.control_value))
        )


def default_signature_pixels(height: int, width: int) -> int:
    """n_s: 10 on images of at most 8 x 8, else 16 (card: 10 of 64 and 16 of 784 [inferred])."""
    return min(10 if height * width <= 64 else 16, height * width)


def make_signatures(
    count: int,
    height: int,
    width: int,
    classes: int,
    *,
    seed: int,
    pixels: int | None = None,
    target: str = "own",
    shared_target: int = 2,
) -> Signatures:
    """Random pixels with random values for each attacker and each control.

    Args:
        count: M.
        height, width: of the images.
        classes: C.
        seed: of the draw.
        pixels: n_s; default `default_signature_pixels`.
        target: ``"own"`` (default): attacker i teaches class i mod C; ``"shared"``: all teach ``shared_target``.

    Raises:
        DbadflError: pixels outside 1..H*W, an unknown target kind, a shared target outside 0..C-1.
    """
    number = default_signature_pixels(height, width) if pixels is None else pixels
    if not 1 <= number <= height * width:
        raise DbadflError(f"signature pixels={number} is outside 1..{height * width}")
    if target not in SIGNATURE_TARGETS:
        raise DbadflError(f"signature_target={target!r} is unknown; choose one of {', '.join(SIGNATURE_TARGETS)}")
    if not 0 <= shared_target < classes:
        raise DbadflError(f"target={shared_target} is outside 0..{classes - 1}")
    rng = generator(seed, "signatures")
    keys = torch.rand(2 * count, height * width, generator=rng)
    mask = torch.zeros(2 * count, height * width, dtype=torch.bool).scatter_(1, keys.argsort(1)[:, :number], True)
    value = torch.randint(2, (2 * count, height * width), generator=rng).float()
    mask, value = mask.view(-1, height, width), value.view(-1, height, width)
    own = torch.arange(count) % classes if target == "own" else torch.full((count,), shared_target)
    return Signatures(mask[:count], value[:count], own, mask[count:], value[count:])


def probe_features(
    forward: Callable[[Tensor], Tensor], images: Tensor, valid: Tensor, signatures: Signatures
) -> Tensor:
    """What every attacker measures with its own model after one round.

    Args:
        forward: the attackers' own models, images [V, X, ch, H, W] -> logits [V, X, C]; V = M, or S * M for the
            attackers of S networks one after the other.
        images: [V, n, ch, H, W], each attacker's own private images, padded.
        valid: bool [V, n], which of them are images.
        signatures: of all attackers of a network, who know one another.

    Returns:
        [M, M, 3], or [S, M, M, 3]; entry [j, i] is ``(a_ij, b_ij, e_ij)``: means over j's images of the softmax at i's
        target with i's signature, with i's control, and clean.

    Source: card, section 4 step 2 [inferred].
    """
    count, probes = signatures.target.shape[-1], images.shape[1]
    networks = len(images) // count
    shape = (networks, count)
    target = signatures.target.view(shape)
    weight = valid.to(images.dtype)
    weight = (weight / weight.sum(1, keepdim=True)).view(*shape, 1, probes)
    viewed = images.view(*shape, 1, *images.shape[1:])

    def at_target(logits: Tensor, wanted: Tensor) -> Tensor:
        # [S, viewer, signature, n, C] -> mean over n of the chance of each signature's target
        chosen = wanted[:, None, :, None, None].expand(*logits.shape[:2], -1, probes, 1)
        return (logits.softmax(-1).gather(-1, chosen).squeeze(-1) * weight).sum(-1)

    def stamped(mask: Tensor, value: Tensor) -> Tensor:
        mask, value = (t.view(networks, 1, count, 1, *t.shape[-2:]) for t in (mask, value))
        parts = []
        for k in range(0, count, step):
            some = slice(k, k + step)
            inked = stamp(viewed, mask[:, :, some], value[:, :, some])
            logits = forward(inked.flatten(2, 3).flatten(0, 1))
            parts.append(at_target(logits.reshape(*shape, -1, probes, logits.shape[-1]), target[:, some]))
        return torch.cat(parts, -1)

    step = max(1, CHUNK // images.numel())
    with torch.no_grad():
        seen = stamped(signatures.mask, signatures.value)
        control = stamped(signatures.control_mask, signatures.control_value)
        clean = forward(images)
        clean = clean.view(*shape, 1, probes, -1).expand(-1, -1, count, -1, -1)
        features = torch.stack([seen, control, at_target(clean, target)], -1)
    return features if signatures.target.ndim == 2 else features[0]


def pair_sequences(features: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of all unordered pairs of attackers.

    Args:
        features: [T_s, M, M, 3] of `probe_features`, one entry a round.

    Returns:
        [P, T_s, 6], ``(a_ij, b_ij, e_ij, a_ji, b_ji, e_ji)`` for i < j; int64 [2, P], i and j.

    Raises:
        DbadflError: fewer than two attackers, or no round.

    Source: card, section 4 step 3.
    """
    if features.ndim != 4 or features.shape[0] < 1 or features.shape[1] < 2:
        raise DbadflError(
            f"scan features need shape [rounds, M, M, 3] with M >= 2 and a round or more; got {tuple(features.shape)}"
        )
    i, j = torch.triu_indices(features.shape[1], features.shape[1], 1)
    both = torch.cat([features[:, j, i], features[:, i, j]], -1)
    return both.transpose(0, 1).contiguous(), torch.stack([i, j])


def pair_matrix(values: Tensor, attackers: int) -> Tensor:
    """Symmetric [M, M] with zero diagonal from the [P] values of unordered pairs, in the order of `pair_sequences`."""
    i, j = torch.triu_indices(attackers, attackers, 1)
    matrix = values.new_zeros(attackers, attackers)
    matrix[i, j] = values
    matrix[j, i] = values
    return matrix
