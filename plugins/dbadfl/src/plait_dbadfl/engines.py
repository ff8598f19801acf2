"""The schedules: D-PSGD, DFedAvg(M), swarm, gossip, FedAvg. Card section 2; how to use one: `plait_dbadfl.phases`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.interactions import random_matching, waves
from plait_dbadfl.mixing import Mixing
from plait_dbadfl.names import INTERACTIONS, ORDERS, SWARM_STEPS, Interactions, Order, SwarmSteps
from plait_dbadfl.phases import Engine, Parameters, Phase, mean

__all__ = ["DPSGD", "ENGINES", "DFedAvg", "DFedAvgM", "FedAvg", "Gossip", "Swarm", "make_engine"]


class DPSGD(Engine):
    """Decentralized parallel SGD: one mix in every step.

    Args:
        order: ``mix-then-step`` (as published): x_i <- sum_j W_ij x_j - lr grad_i(x_i), the gradient taken before
            mixing; ``step-then-mix``: x_i <- sum_j W_ij (x_j - lr grad_j(x_j)).
        local_steps: steps, and mixes, that count as one round.
    """

    name = "dpsgd"

    def __init__(
        self,
        mixing: Mixing,
        *,
        order: Order = "mix-then-step",
        local_steps: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(mixing, local_steps=local_steps, **common)
        if self.pace is not None:
            raise DbadflError(
                "engine 'dpsgd' exchanges models after every step, so nodes cannot take numbers of steps of their own; "
                "use another engine, or neither local_epochs nor attacker_steps nor attacker_epochs"
            )
        if order not in ORDERS:
            raise DbadflError(f"engine 'dpsgd': order {order!r} is not one of {', '.join(ORDERS)}")
        self.order = order

    def phases(self) -> list[Phase]:
        when: Literal["around", "after"] = "around" if self.order == "mix-then-step" else "after"
        return [Phase(1, when, self.mixing)] * self.local_steps

    @property
    def local_step(self) -> int:
        return self.step_in_round

    @property
    def local_counts(self) -> Tensor:
        return torch.full((self.n,), self.local_steps)


class DFedAvg(Engine):
    """K local steps on every node, then one mix by W (card: the default engine)."""

    name = "dfedavg"

    def phases(self) -> list[Phase]:
        return [self.phase("after", self.mixing)]


class DFedAvgM(DFedAvg):
    """`DFedAvg` with local momentum 0.9 that starts from zero in every round.

    The optimizer must be given to `before_step` and `after_step`; its momentum is the caller's to set (``momentum``).
    """

    name = "dfedavgm"
    momentum = 0.9

    def __init__(self, mixing: Mixing, **common: Any) -> None:
        super().__init__(mixing, **{**common, "fresh_momentum": True})


class FedAvg(DFedAvg):
    """Federated averaging with equal weights: `DFedAvg` on the complete graph with W = 1/N. The oracle of tests.

    Under a defence there is a server: everybody takes its new model G + server_step (rule({L_j}) - G), with G the model
    that all had before the round and L_j those of the drawn nodes. A rule that looks at a node's own model looks at G,
    which is not one of the models that it chooses among [inferred].

    Args:
        drawn: participants drawn in every round, fewer than N; None (default) is all. Everybody then takes the server's
            new model G + server_step / drawn * sum(L_j - G), L_j the drawn ones' models [code].
        server_step: eta; only with ``drawn``.
        warmup: first rounds whose server step is 1, the ancestor's training before its attack [inferred]; default 0.
        guests: round -> nodes that are among the drawn ones of it in any case.
    """

    name = "fedavg"

    def __init__(
        self,
        mixing: Mixing,
        *,
        drawn: int | None = None,
        server_step: float = 1.0,
        warmup: int = 0,
        guests: Mapping[int, Tensor] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(mixing, **common)
        n = mixing.n
        if len(mixing.receivers) != n * (n - 1) or not torch.allclose(mixing.weights, mixing.own.new_tensor(1 / n)):
            raise DbadflError("engine 'fedavg' needs the complete graph with weights 'average' (W = 1/N)")
        if drawn is not None and not 1 <= drawn < n:
            raise DbadflError(f"engine 'fedavg': drawn={drawn} is outside 1..{n - 1}; leave it out for all {n} nodes")
        if not 0 < server_step <= 1:
            raise DbadflError(f"engine 'fedavg': server_step={server_step} is outside (0, 1]")
        if warmup < 0:
            raise DbadflError(f"engine 'fedavg': warmup={warmup} rounds must not be negative")
        self.drawn, self.server_step, self.warmup, self.guests = drawn, server_step, warmup, guests or {}
        self.defended = self.aggregate is not mean
        self.keep_start = self.keep_start or self.defended

    @property
    def heard(self) -> Mixing:
        return Mixing.server(self.n, torch.arange(self.drawn or self.n)) if self.defended else self.mixing

    @property
    def eta(self) -> float:
        """The server's step in the present round."""
        return 1.0 if self.drawn is None or self.round < self.warmup else self.server_step

    def exchange(self, parameters: Parameters, phase: Phase) -> None:
        if not self.defended:
            super().exchange(parameters, phase)
            return
        assert self.start is not None
        before = [s[:1] for s in self.start]  # G: all models are equal before the round
        beside = [torch.cat([p.detach(), g]) for p, g in zip(parameters, before, strict=True)]
        start = [torch.cat([s, g]) for s, g in zip(self.start, before, strict=True)]
        self.aggregate(beside, self._mixing(phase), start, self.round)
        for p, g, aggregated in zip(parameters, before, beside, strict=True):
            p.copy_(torch.lerp(g, aggregated[-1:], self.eta).expand_as(p))

    def phases(self) -> list[Phase]:
        if self.drawn is None:
            return [self.phase("after", self.heard)]
        first = torch.zeros(self.n)
        order = torch.randperm(self.n, generator=self.generator)
        guests = self.guests.get(self.round)
        if guests is not None:
            first[guests] = 1.0
        chosen = order[first[order].argsort(descending=True, stable=True)][: self.drawn]
        active = torch.zeros(self.n, dtype=torch.bool)
        active[chosen] = True
        if self.defended:
            return [self.phase("after", Mixing.server(self.n, chosen), training=active)]
        # All models are equal before the round, so any node that is not drawn still holds G.
        holder = int((~active).nonzero()[0])
        matrix = torch.zeros(self.n, self.n, dtype=torch.float64)
        matrix[:, chosen] = self.eta / self.drawn
        matrix[:, holder] += 1 - self.eta
        return [self.phase("after", Mixing.from_dense(matrix), training=active)]


class Swarm(Engine):
    """SwarmSGD: a random edge; both its nodes take h local steps, then both become their mean.

    A round is floor(N/2) interactions. Interactions that do not touch run at the same time (see
    `plait_dbadfl.interactions`).

    Args:
        interactions: ``sequential``: edges are drawn independently; the outcome is that of one interaction after the
            other. ``matching``: random maximal matchings, so that fewer, fuller phases make up the round.
        steps: ``fixed``: h = K; ``geometric``: h of every interaction is geometric with mean K.
    """

    name = "swarm"

    def __init__(
        self,
        mixing: Mixing,
        *,
        interactions: Interactions = "sequential",
        steps: SwarmSteps = "fixed",
        **common: Any,
    ) -> None:
        super().__init__(mixing, **common)
        if interactions not in INTERACTIONS or steps not in SWARM_STEPS:
            raise DbadflError(
                f"engine 'swarm': interactions={interactions!r}, steps={steps!r}; they are one of "
                f"{', '.join(INTERACTIONS)} and one of {', '.join(SWARM_STEPS)}"
            )
        if steps == "geometric" and self.pace is not None and self.pace.usual is not None:
            raise DbadflError("engine 'swarm': steps='geometric' draws numbers of steps that local_epochs fixes")
        self.interactions, self.steps = interactions, steps
        edges = mixing.edge_index
        self.edges = edges[:, edges[0] < edges[1]]
        back = edges[:, edges[0] > edges[1]].flip(0)
        if not torch.equal(torch.unique(self.edges, dim=1), torch.unique(back, dim=1)):
            raise DbadflError("engine 'swarm' needs an undirected graph")

    @property
    def heard(self) -> Mixing:
        return in_pairs(self.n)

    def phases(self) -> list[Phase]:
        wanted = self.n // 2
        if self.interactions == "sequential":
            drawn = torch.randint(self.edges.shape[1], (wanted,), generator=self.generator)
            first, second = self.edges[:, drawn]
        else:
            collected = [random_matching(self.edges, self.n, self.generator)]
            while sum(m.shape[1] for m in collected) < wanted:
                collected.append(random_matching(self.edges, self.n, self.generator))
            first, second = torch.cat(collected, dim=1)[:, :wanted]
        return [self._phase(a, b) for a, b in waves(first, second, self.n)]

    def _phase(self, first: Tensor, second: Tensor) -> Phase:
        h = torch.full((len(first),), self.local_steps)
        if self.steps == "geometric" and self.local_steps > 1:
            # The inverse of P(h > m) = (1 - 1/K)^m on h = 1, 2, ...
            uniform = torch.rand(len(first), generator=self.generator, dtype=torch.float64)
            h = 1 + (torch.log1p(-uniform) / math.log1p(-1 / self.local_steps)).floor().long()
        count = torch.zeros(self.n, dtype=torch.int64)
        count[first], count[second] = h, h
        receivers, senders = torch.cat([first, second]), torch.cat([second, first])
        return self.phase("after", Mixing.pairs(self.n, receivers, senders), training=count > 0, counts=count)


class Gossip(Engine):
    """Push gossip: i sends to one uniformly random neighbour j; j <- (x_i + x_j) / 2, then j trains K steps.

    A round is N pushes, one by every node in a random order. Pushes that do not disturb each other run at the same
    time.

    Args:
        age: weight the mean by the models' ages (training steps they have seen); the merged age is the larger one.

    Attributes:
        ages: int64 [N].
    """

    name = "gossip"

    def __init__(self, mixing: Mixing, *, age: bool = False, **common: Any) -> None:
        super().__init__(mixing, **common)
        self.age = age
        self.ages = torch.zeros(mixing.n, dtype=torch.int64)
        senders, receivers = mixing.edge_index
        order = torch.argsort(senders, stable=True)
        self._targets = receivers[order]
        self._out = torch.bincount(senders, minlength=mixing.n)
        self._first = torch.cat([self._out.new_zeros(1), self._out.cumsum(0)[:-1]])
        if int(self._out.min()) < 1:
            raise DbadflError(f"engine 'gossip': node {int(self._out.argmin())} has nobody to send to")

    @property
    def heard(self) -> Mixing:
        return in_pairs(self.n)

    def phases(self) -> list[Phase]:
        senders = torch.randperm(self.n, generator=self.generator)
        share = torch.rand(self.n, generator=self.generator, dtype=torch.float64)
        pick = torch.minimum((share * self._out[senders]).long(), self._out[senders] - 1)
        receivers = self._targets[self._first[senders] + pick]
        collected = []
        for a, b in waves(senders, receivers, self.n, "second"):
            trains = torch.zeros(self.n, dtype=torch.bool)
            trains[b] = True
            collected.append(self.phase("before", training=trains, pairs=(a, b)))
        return collected

    def pairing(self, phase: Phase) -> Mixing:
        assert phase.pairs is not None
        senders, receivers = phase.pairs
        sent, own = self.ages[senders].double(), self.ages[receivers].double()
        weight = torch.where(sent + own > 0, sent / (sent + own).clamp(min=1), 0.5) if self.age else 0.5
        self.ages[receivers] = torch.maximum(self.ages[receivers], self.ages[senders])
        return Mixing.pairs(self.n, receivers, senders, weight)

    def trained(self, phase: Phase) -> None:
        assert phase.active is not None
        self.ages += phase.active.sum(0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ages": self.ages.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ages = state["ages"].clone()


def in_pairs(n: int) -> Mixing:
    """Everybody hears one other node."""
    return Mixing.pairs(n, torch.arange(n), torch.arange(n).roll(1))


ENGINES: dict[str, type[Engine]] = {e.name: e for e in (DPSGD, DFedAvg, DFedAvgM, Swarm, Gossip, FedAvg)}
"""Name -> class."""


def make_engine(name: str, mixing: Mixing, **options: Any) -> Engine:
    """The engine of that name; ``options`` are its class's arguments.

    Raises:
        DbadflError: an unknown name or option, or what the engine refuses.
    """
    if name not in ENGINES:
        raise DbadflError(f"engine {name!r} is not one of {', '.join(ENGINES)}")
    try:
        return ENGINES[name](mixing, **options)
    except TypeError as error:
        raise DbadflError(f"engine {name!r}: {error}") from error
