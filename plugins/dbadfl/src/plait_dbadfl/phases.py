"""Rounds as phases of local steps and exchanges: what all decentralized schedules have in common. Card section 2.

A round is a list of phases; a phase is some local steps and one exchange. An engine does everything but the step
itself, so the same one serves a plain loop and a run of plait::

    while engine.round < rounds:
        active = engine.before_step(parameters, optimizer)   # None: everybody trains; else bool [N]
        ...                                                  # batch, backward, optimizer.step() for all N
        engine.after_step(parameters, optimizer, sending=scale)

``parameters`` are the stacked tensors [N, *s]. Participants who are not active may be stepped like the others:
`after_step` puts their rows, and the optimizer's rows, back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing
from plait_dbadfl.pace import Pace

__all__ = ["Aggregate", "Engine", "Phase"]

Parameters = Sequence[Tensor]
MOST_STEPS = 1 << 32
"""More than the steps of a round; numbers the batches of attackers' further steps."""


class Aggregate(Protocol):
    """What a node makes of its own model and the received ones; default: the weighted mean `Mixing.mix_`."""

    def __call__(self, parameters: Parameters, mixing: Mixing, start: Parameters | None, round: int) -> None:
        """Replace every node's model in ``parameters`` [N, *s], in place.

        Args:
            parameters: the models as sent.
            mixing: who receives from whom.
            start: the receivers' own models before this phase's local steps, or None where the engine keeps none.
            round: finished rounds.
        """


@dataclass(frozen=True)
class Phase:
    """Local steps and one exchange.

    Args:
        steps: local steps.
        when: the exchange comes ``after`` the steps, ``before`` them, or ``around`` them: what is exchanged are the
            models before the step, and the step's update is added to the result.
        mixing: who receives from whom; None: `Engine.pairing` says so at the exchange.
        active: bool [steps, N], who trains in each step; None: everybody.
        pairs: (senders, receivers) of a phase without ``mixing``.
        usual: steps that the phase would have if nobody attacked; None: ``steps``.
    """

    steps: int
    when: Literal["before", "after", "around"]
    mixing: Mixing | None = None
    active: Tensor | None = None
    pairs: tuple[Tensor, Tensor] | None = None
    usual: int | None = None


def mean(parameters: Parameters, mixing: Mixing, start: Parameters | None, round: int) -> None:
    """x <- W x: the undefended `Aggregate`."""
    mixing.mix_(parameters)


class Engine:
    """The common part of all schedules.

    Args:
        mixing: W of the topology.
        local_steps: K >= 1.
        seed: of the engine's own generator (edges, receivers, numbers of steps).
        aggregate: replaces the mean. One that has ``needs_start = True`` sets ``keep_start``.
        keep_start: keep the models as they are before every phase's local steps in ``start`` (card: G).
        pace: nodes' own numbers of local steps instead of K for all.
        fresh_momentum: the optimizer's momentum starts from zero in every round, as with an optimizer of its own for
            each [code].

    Attributes:
        round: finished rounds.
        start: the kept models, or None.
        momentum: what the engine wants of the local optimizer, or None where it does not say.

    Raises:
        DbadflError: local_steps < 1, or a mixing that the schedule does not admit.
    """

    name: ClassVar[str]
    momentum: float | None = None

    def __init__(
        self,
        mixing: Mixing,
        *,
        local_steps: int = 5,
        seed: int = 0,
        aggregate: Aggregate | None = None,
        keep_start: bool = False,
        pace: Pace | None = None,
        fresh_momentum: bool = False,
    ) -> None:
        if local_steps < 1:
            raise DbadflError(f"engine {self.name!r}: local_steps={local_steps}; at least one local step is needed")
        for counts in (pace.usual, pace.attacking) if pace is not None else ():
            if counts is not None and len(counts) != mixing.n:
                raise DbadflError(f"engine {self.name!r}: a pace of {len(counts)} nodes for a mixing of {mixing.n}")
        self.mixing, self.local_steps, self.pace = mixing, local_steps, pace
        self.fresh_momentum = fresh_momentum
        self.aggregate: Aggregate = aggregate or mean
        self.keep_start = keep_start or bool(getattr(aggregate, "needs_start", False))
        self.generator = torch.Generator().manual_seed(seed)
        self.round = 0
        self.start: list[Tensor] | None = None
        self._at = 0
        self._usual = 0
        self._drawn: list[Phase] | None = None
        self._before_draw = self.generator.get_state()
        self._held: dict[tuple[int, str], Tensor] = {}
        self._idle: Tensor | None = None
        self._shift: list[Tensor] | None = None

    # ---- to be written by an engine ----------------------------------------------------------------------------
    def phases(self) -> list[Phase]:
        """The phases of one round; random choices from ``self.generator``, and from nothing that training changes."""
        raise NotImplementedError

    def pairing(self, phase: Phase) -> Mixing:
        """The exchange of a phase without ``mixing``, asked at the exchange."""
        raise NotImplementedError

    def phase(
        self,
        when: Literal["before", "after"],
        mixing: Mixing | None = None,
        *,
        training: Tensor | None = None,
        counts: Tensor | None = None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> Phase:
        """A phase in which every node takes its number of local steps and then waits for the others.

        Args:
            when, mixing, pairs: of the phase.
            training: bool [N], who trains; None is everybody.
            counts: int64 [N], steps instead of K, where the pace says nothing else.
        """
        if self.pace is None and counts is None:
            active = None if training is None else training.expand(self.local_steps, -1)
            return Phase(self.local_steps, when, mixing, active, pairs)
        if self.pace is not None and self.pace.usual is not None:
            counts = self.pace.usual
        elif counts is None:
            counts = torch.full((self.n,), self.local_steps)
        if training is not None:
            counts = counts * training
        own = counts if self.pace is None else self.pace.of(self.round, counts)
        steps = int(own.max())
        everybody = training is None and int(own.min()) == steps
        active = None if everybody else torch.arange(steps)[:, None] < own
        return Phase(steps, when, mixing, active, pairs, int(counts.max()))

    def trained(self, phase: Phase) -> None:
        """After a phase's last local step."""

    def exchange(self, parameters: Parameters, phase: Phase) -> None:
        """The exchange after a phase's local steps."""
        self.aggregate(parameters, self._mixing(phase), self.start, self.round)

    @property
    def heard(self) -> Mixing:
        """Who hears how many in an exchange: what a rule must be able to take."""
        return self.mixing

    # ---- where it is -------------------------------------------------------------------------------------------
    @property
    def n(self) -> int:
        """Number of nodes N."""
        return self.mixing.n

    @property
    def step_in_round(self) -> int:
        """Steps done in the present round."""
        return self._at

    @property
    def steps_in_round(self) -> int:
        """Steps of the present round (of the next one between rounds). Differs between rounds for swarm and gossip."""
        return sum(phase.steps for phase in self._phases())

    @property
    def starts_round(self) -> bool:
        """Whether the next step is the first of a round."""
        return self._at == 0

    @property
    def active(self) -> Tensor | None:
        """Who trains in the next step, bool [N]; None is everybody."""
        phase, step = self._place()
        return None if phase.active is None else phase.active[step]

    @property
    def local_step(self) -> int:
        """Local steps since the last exchange, of those who train in the next step."""
        return self._place()[1]

    @property
    def local_counts(self) -> Tensor:
        """int64 [N], local steps of each node in the present phase."""
        phase, _ = self._place()
        return torch.full((self.n,), phase.steps) if phase.active is None else phase.active.sum(0)

    @property
    def draw(self) -> int:
        """Number of the next step's batch: the steps before it if nobody attacked, so that the arms of a comparison
        share batches; negative in steps that attackers take when everybody else has done his own."""
        phase, step = self._place()
        if step < (phase.steps if phase.usual is None else phase.usual):
            return self._usual + step
        return -1 - (self.round * MOST_STEPS + self._at)

    def steps_of(self, rounds: int) -> int:
        """Steps of the coming ``rounds`` rounds; nothing is drawn from the engine's own generator for it."""
        before, now, total = self.generator.get_state(), self.round, 0
        for self.round in range(now, now + rounds):
            total += sum(phase.steps for phase in self.phases())
        self.round = now
        self.generator.set_state(before)
        return total

    def _phases(self) -> list[Phase]:
        if self._drawn is None:
            self._before_draw = self.generator.get_state()
            self._drawn = self.phases()
        return self._drawn

    def _place(self) -> tuple[Phase, int]:
        at = self._at
        for phase in self._phases():
            if at < phase.steps:
                return phase, at
            at -= phase.steps
        raise AssertionError("a round has no such step")

    # ---- the two calls -----------------------------------------------------------------------------------------
    @torch.no_grad()
    def before_step(self, parameters: Parameters, optimizer: torch.optim.Optimizer | None = None) -> Tensor | None:
        """Exchange models where the phase begins with that; who trains in the coming step, bool [N] or None (all)."""
        phase, step = self._place()
        if step == 0:
            if phase.when == "before":
                start = [p.detach().clone() for p in parameters] if self.aggregate is not mean else None
                self.aggregate(parameters, self._mixing(phase), start, self.round)
            if self.keep_start:
                self._keep(parameters)
            if phase.when == "around":
                # Added after the step; so whatever the step is, its gradient is taken at the models before mixing.
                self._shift = [p.detach().clone() for p in parameters]
                self.aggregate(self._shift, self._mixing(phase), parameters, self.round)
                torch._foreach_sub_(self._shift, list(parameters))
        active = self.active
        self._hold(parameters, optimizer, active)
        return active

    @torch.no_grad()
    def after_step(
        self,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        sending: Callable[[Parameters], None] | None = None,
    ) -> None:
        """Put inactive participants back; at the end of a phase exchange models, at the end of a round count it.

        Args:
            parameters: the same tensors as in `before_step`.
            optimizer: the same optimizer.
            sending: called with the parameters after a phase's last local step and before anybody reads them, to change
                in place what is sent (scaling by gamma; ``start`` is the model before the local steps).
        """
        phase, step = self._place()
        self._release(parameters, optimizer)
        if step == phase.steps - 1:
            self.trained(phase)
            if sending is not None:
                sending(parameters)
            if phase.when == "after":
                self.exchange(parameters, phase)
            elif phase.when == "around":
                assert self._shift is not None
                torch._foreach_add_(list(parameters), self._shift)
                self._shift = None
            self._usual += phase.steps if phase.usual is None else phase.usual
        self._at += 1
        if self._at == self.steps_in_round:
            self.round, self._at, self._drawn = self.round + 1, 0, None
            self._before_draw = self.generator.get_state()
            self.round_ended(parameters, optimizer)

    def round_ended(self, parameters: Parameters, optimizer: torch.optim.Optimizer | None) -> None:
        """After the last exchange of a round."""
        if not self.fresh_momentum or optimizer is None:
            return
        for p in parameters:
            buffer = optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                buffer.zero_()

    def _mixing(self, phase: Phase) -> Mixing:
        return self.pairing(phase) if phase.mixing is None else phase.mixing

    def _keep(self, parameters: Parameters) -> None:
        if self.start is None:
            self.start = [p.detach().clone() for p in parameters]
        else:
            torch._foreach_copy_(self.start, [p.detach() for p in parameters])

    # ---- participants who do not train in a step ----------------------------------------------------------------
    def _hold(self, parameters: Parameters, optimizer: torch.optim.Optimizer | None, active: Tensor | None) -> None:
        self._held, self._idle = {}, None
        if active is None or bool(active.all()):
            return
        self._idle = torch.nonzero(~active).flatten().to(parameters[0].device)
        for key, tensor in _rows(parameters, optimizer).items():
            self._held[key] = tensor[self._idle]

    def _release(self, parameters: Parameters, optimizer: torch.optim.Optimizer | None) -> None:
        if self._idle is None:
            return
        for key, tensor in _rows(parameters, optimizer).items():
            # State that this very step made did not exist for the inactive: theirs is zero.
            tensor[self._idle] = self._held[key] if key in self._held else torch.zeros_like(tensor[self._idle])
        self._held, self._idle = {}, None

    # ---- checkpoints -------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Whatever is kept between steps: numbers and tensors. To be taken between `after_step` and `before_step`."""
        state: dict[str, Any] = {"round": self.round, "at": self._at, "generator": self._before_draw.clone()}
        if self.pace is not None:
            state["usual"] = self._usual
        if self.start is not None:
            state["start"] = [t.clone() for t in self.start]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: the phases of the round are drawn again from the same generator state."""
        self.round, self._at, self._drawn = int(state["round"]), int(state["at"]), None
        self.generator.set_state(state["generator"])
        self._before_draw = state["generator"].clone()
        self._usual = int(state.get("usual", 0))
        self.start = [t.clone() for t in state["start"]] if "start" in state else None


def _rows(parameters: Parameters, optimizer: torch.optim.Optimizer | None) -> dict[tuple[int, str], Tensor]:
    """Every tensor with a row for each participant: parameters, and the optimizer's state of the same shape."""
    rows = {(i, ""): p.detach() for i, p in enumerate(parameters)}
    if optimizer is not None:
        for i, p in enumerate(parameters):
            for name, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    rows[i, name] = value
    return rows
