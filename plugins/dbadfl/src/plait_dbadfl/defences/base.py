"""What all aggregation rules share: a node's own model beside the received ones, in blocks of nodes. Card, defences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.training.replicas import wide
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing

__all__ = ["Defence", "Verdict"]

Losses = Callable[[Tensor, Tensor], Tensor]
"""(receivers int64 [m], senders int64 [m]) -> [m]: loss of each sender's model on its receiver's own batch."""

ELEMENTS = 2**24
"""Numbers held at a time of all models that a block of nodes looks at (64 MiB in float32)."""


@dataclass(frozen=True)
class Verdict:
    """What a rule made of one exchange.

    Args:
        models: [N, P], every node's new model.
        accept: bool [E], aligned with the mixing's ``receivers`` and ``senders``: which messages took part; None for
            rules that select nothing.
    """

    models: Tensor
    accept: Tensor | None


@dataclass(frozen=True)
class Block:
    """Some nodes with everything they look at. Place 0 is the node itself, then its D neighbours, then padding.

    Of a server, place 0 is the model G that it sent out, which is not one of those that it chooses among.

    Args:
        nodes: int64 [n].
        senders: int64 [n, m], m = D + 1, who sent each model (padding: 0).
        mask: bool [n, m], False at padding, and at place 0 of a server.
        members: [n, m, P], the models.
        weights: [n, m], W's row (padding: 0).
        start: [n, P], the nodes' own models before their local steps, or None.
        round, rounds: finished rounds, and rounds in all (T).
        losses: for rules that try models on a node's data.
    """

    nodes: Tensor
    senders: Tensor
    mask: Tensor
    members: Tensor
    weights: Tensor
    start: Tensor | None
    round: int
    rounds: int
    losses: Losses | None

    @property
    def own(self) -> Tensor:
        """[n, P]."""
        return self.members[:, 0]

    @property
    def counts(self) -> Tensor:
        """Models chosen among, own one included (a server's is not): n of the card, int64 [n]."""
        return self.mask.sum(1)

    def shares(self, how: str) -> Tensor:
        """Weights [n, m] of a row: ``mixing`` (W's) or ``equal``."""
        return self.weights if how == "mixing" else self.mask.to(self.weights) / self.counts[:, None]


class Defence:
    """An aggregation rule, at every node at once.

    A rule is called on all models and may keep state between rounds.

    Attributes:
        selects: it accepts or refuses whole models.
        needs_start: it works on updates, so it needs every node's own model before the local steps.
        coordinatewise: every coordinate is treated alone.
    """

    name: ClassVar[str]
    selects: ClassVar[bool] = False
    needs_start: ClassVar[bool] = False
    coordinatewise: ClassVar[bool] = False

    def legal(self, count: int) -> str | None:
        """Why the rule cannot be applied to ``count`` models (own one included), or None."""
        return None

    def caution(self, degrees: Tensor) -> str | None:
        """What to say of the rule on a graph of these degrees though it is legal, or None."""
        return None

    def lacking(self) -> str | None:
        """What the rule looks at that a server does not have, or None."""
        return None

    def check(self, degrees: Tensor, votes: Tensor | None = None) -> None:
        """Raise `DbadflError` that names a node whose number of neighbours the rule cannot take, or a server's.

        Nodes without any neighbour keep their model and are not looked at.

        Args:
            degrees: int64 [N].
            votes: bool [N], of `plait_dbadfl.mixing.Mixing`; None: everybody's own model counts.
        """
        for degree in torch.unique(degrees[degrees > 0]).tolist():
            node = int(torch.nonzero(degrees == degree)[0])
            serves = votes is not None and not bool(votes[node])
            if serves and self.lacking() is not None:
                raise DbadflError(
                    f"defence {self.name!r} looks at {self.lacking()}, which the server of federated averaging does "
                    "not have; take another rule or another engine"
                )
            reason = self.legal(degree if serves else degree + 1)
            if reason is not None:
                who = f"the server of {degree} drawn nodes" if serves else f"node {node} of degree {degree}"
                raise DbadflError(f"defence {self.name!r}: {who} {reason}")

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """New models [n, P] and, for rules that select, accepted places bool [n, m]."""
        raise NotImplementedError

    def observe(self, models: Tensor, start: Tensor | None) -> None:
        """Called once per exchange before the blocks, for rules with a history."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept between exchanges: tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict` back."""

    @torch.no_grad()
    def __call__(
        self,
        models: Tensor,
        mixing: Mixing,
        *,
        start: Tensor | None = None,
        round: int = 0,
        rounds: int = 1,
        losses: Losses | None = None,
        elements: int = ELEMENTS,
    ) -> Verdict:
        """One exchange.

        Args:
            models: X [N, P], as sent; not changed.
            mixing: who receives from whom; W is used by rules that weight.
            start: [N, P], own models before the local steps.
            round: finished rounds t.
            rounds: rounds in all T.
            losses: see `Losses`.
            elements: numbers held at a time; nodes, or coordinates of coordinatewise rules, go in chunks.

        Raises:
            DbadflError: an illegal degree, or something the rule needs that is not given.
        """
        if len(models) != mixing.n or models.ndim != 2:
            raise DbadflError(f"defence {self.name!r}: models {tuple(models.shape)} are not [N={mixing.n}, P]")
        if self.needs_start and start is None:
            raise DbadflError(f"defence {self.name!r} works on updates: give start, the models before the local steps")
        exact = _real(models, self.name)
        if exact.dtype != models.dtype:  # rules are of real numbers, in which squares can be summed
            begun = None if start is None else _real(start, self.name)
            verdict = self(exact, mixing, start=begun, round=round, rounds=rounds, losses=losses, elements=elements)
            return replace(verdict, models=_back(verdict.models, models))
        self.check(mixing.degrees, mixing.votes)
        self.observe(models, start)
        aggregated = models.clone()
        accept = torch.zeros(len(mixing.receivers), dtype=torch.bool, device=models.device) if self.selects else None
        width = models.shape[1]
        for nodes in mixing.blocks(max(1, elements // width)):
            index, mask, entry = mixing.padded(nodes)
            senders, seen = torch.cat([nodes[:, None], index], 1), torch.cat([mixing.votes[nodes, None], mask], 1)
            weights = torch.cat([mixing.own[nodes, None], mixing.weights[entry] * mask], 1).to(models)
            senders, seen, there = senders.to(models.device), seen.to(models.device), nodes.to(models.device)
            part = max(1, elements // senders.numel()) if self.coordinatewise else width
            for at in range(0, width, part):
                columns = models[:, at : at + part]
                begun = None if start is None else start[there, at : at + part]
                block = Block(there, senders, seen, columns[senders], weights, begun, round, rounds, losses)
                aggregated[there, at : at + part], taken = self.block(block)
                if accept is not None and taken is not None:
                    accept[entry[mask].to(models.device)] = taken[:, 1:][seen[:, 1:]]
        return Verdict(aggregated, accept)


def _real(models: Tensor, name: str) -> Tensor:
    """Models as real numbers, complex parameters as two each, half precision as float32."""
    if not (models.is_floating_point() or models.is_complex()):
        raise DbadflError(f"defence {name!r}: models of {models.dtype} are no numbers to aggregate")
    return wide(models).flatten(1)


def _back(real: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_real`."""
    numbers = torch.view_as_complex(real.reshape(len(real), -1, 2)) if like.is_complex() else real
    return numbers.to(like.dtype)


def require_finite(models: Tensor, round: int) -> None:
    """Raise `DbadflError` that names the first node (row of models [N, P]) with NaN or infinite parameters."""
    finite = torch.isfinite(models).all(dim=1)
    if not bool(finite.all()):
        node = int(torch.nonzero(~finite)[0])
        raise DbadflError(
            f"round {round}: node {node} has NaN or infinite parameters; lower gamma or the learning rate"
        )


def require(name: str, condition: bool, what: str) -> None:
    """Raise `DbadflError` unless an option holds."""
    if not condition:
        raise DbadflError(f"defence {name!r}: {what}")


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean norms over the last axis."""
    size: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return size


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Median along axis 1 of values [n, m] or [n, m, P] where mask [n, m]; for even counts the mean of both middles.

    Every row needs one True.
    """
    wide = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
    ranked = ascending(values if bool(mask.all()) else values.masked_fill(~wide, float("inf")))
    counts = mask.sum(1)
    pick = torch.stack([(counts - 1) // 2, counts // 2], 1)
    middle = ranked.gather(1, pick.reshape(*pick.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:]))
    return middle.mean(1)


NETWORK_UP_TO = 24
"""Models up to which odd-even exchanges are faster than ``torch.sort`` along that axis (measured, one core)."""


def ascending(values: Tensor) -> Tensor:
    """Values [n, m, ...] sorted along axis 1."""
    m = values.shape[1]
    if m > NETWORK_UP_TO or values.ndim < 3:
        return values.sort(dim=1).values
    ranked = values.clone()
    for turn in range(m):
        low, high = ranked[:, turn % 2 : m - 1 : 2], ranked[:, turn % 2 + 1 : m : 2]
        smaller, larger = torch.minimum(low, high), torch.maximum(low, high)
        low.copy_(smaller)
        high.copy_(larger)
    return ranked


def shrink(vectors: Tensor, limit: Tensor) -> Tensor:
    """clip(z, tau) = z min(1, tau / ||z||) of vectors [..., P] by limits [...]."""
    size = lengths(vectors)
    # A zero vector stays zero whatever its limit.
    factor = torch.where(size > limit, limit / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0)
    return vectors * factor[..., None]
